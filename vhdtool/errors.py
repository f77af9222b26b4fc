"""The one error tree. Each message names the file, the place and what to do next.

`errno` is the number of the C library's error that fits best, or None. An error that Python has a
class for is of that class too: a file that is missing is a FileNotFoundError, for example.
"""

from errno import EBADF, EBUSY, EEXIST, EINVAL, ENOTSUP, ESTALE, EUCLEAN


class VhdtoolError(Exception):
    """Base of every error a user can meet; the command line prints it as one line."""

    errno: int | None = None


class NotAVhd(VhdtoolError):
    """The file shows neither a VHD footer nor a dynamic disk header."""

    errno = EINVAL


class DamageError(VhdtoolError):
    """The image cannot be used as it is: repair it, or salvage its data."""

    errno = EUCLEAN


class CorruptImage(DamageError):
    """The image contradicts itself; reading on would return wrong data."""


def damaged(name: str, what: str) -> CorruptImage:
    """The error for metadata of the image `name` that cannot be used, and where to go from here."""
    return CorruptImage(f"{name}: {what}; `vhdtool check` says what helps")


class UncleanImage(DamageError):
    """The image was not closed; nothing is lost, but it needs a repair or a reopen."""


class UnsupportedImage(VhdtoolError):
    """A valid image that this operation cannot serve."""

    errno = ENOTSUP


class ImageExists(FileExistsError, VhdtoolError):
    """A file that would be created is there already."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.errno = EEXIST


class LockedError(VhdtoolError):
    """Another process or host has the image, or none can be excluded; nothing was changed."""

    errno = EBUSY


class ActivationRefused(LockedError):
    """The proof that an activation needs is missing (lease held, no footer, ...)."""


class LeaseLost(VhdtoolError):
    """The epoch on the shared storage is no longer ours; nothing more may be written."""

    errno = ESTALE


class SplitBrain(VhdtoolError):
    """On-disk metadata differs from memory: another writer has been here."""

    errno = ESTALE


class StateError(VhdtoolError):
    """The operation does not fit the state that the disk is in."""

    errno = EINVAL


class ClosedError(VhdtoolError, ValueError):
    """The image, or its parent, was closed; a ValueError as for a closed file of Python's."""

    errno = EBADF


class LabError(VhdtoolError):
    """The lab itself failed: a host, QEMU, or the guest; says nothing about the image."""


class ShimImageError(LabError):
    """A shim could not use its image; a second attempt of the case would hide that."""


class UsageError(VhdtoolError):
    """The caller asked for something that does not exist or makes no sense."""

    errno = EINVAL
