"""The one error tree. Each message names the file, the place and what to do next."""


class VhdtoolError(Exception):
    """Base of every error a user can meet; the command line prints it as one line."""


class NotAVhd(VhdtoolError):
    """The file shows neither a VHD footer nor a dynamic disk header."""


class CorruptImage(VhdtoolError):
    """The image contradicts itself; reading on would return wrong data."""


def damaged(name: str, what: str) -> CorruptImage:
    """The error for metadata of the image `name` that cannot be used, and where to go from here."""
    return CorruptImage(f"{name}: {what}; `vhdtool check` says what helps")


class UncleanImage(VhdtoolError):
    """The image was not closed; nothing is lost, but it needs a repair or a reopen."""


class UnsupportedImage(VhdtoolError):
    """A valid image that this operation cannot serve."""


class ImageExists(VhdtoolError):
    """A file that would be created is there already."""


class LeaseLost(VhdtoolError):
    """The epoch on the shared storage is no longer ours; nothing more may be written."""


class SplitBrain(VhdtoolError):
    """On-disk metadata differs from memory: another writer has been here."""


class ActivationRefused(VhdtoolError):
    """The proof that an activation needs is missing (lease held, no footer, ...)."""


class StateError(VhdtoolError):
    """The operation does not fit the state that the disk is in."""


class LabError(VhdtoolError):
    """The lab itself failed: a host, QEMU, or the guest; says nothing about the image."""


class ImageTrouble(LabError):
    """A shim could not use the image that it found: trying once more would hide that."""


class UsageError(VhdtoolError):
    """The caller asked for something that does not exist or makes no sense."""
