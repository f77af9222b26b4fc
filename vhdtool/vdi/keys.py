"""The keys of a VDI: which host has an image active, and what holds up an activation.

They are in a file beside the image, on the shared storage. Each change writes all keys at once to
the older one of two slots, so a change that a crash interrupts has not happened. Keys coordinate
hosts; what excludes a second writer are the image lock and the lease.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.leases.lease import owner_of
from vhdtool.leases.owner import Owner
from vhdtool.leases.shared_file import SharedFile
from vhdtool.machine import UNKNOWN_BOOT, boot_id
from vhdtool.storage.paths import persistent_path

SUFFIX = ".keys"
SLOT = 32 << 10
"""Bytes of a slot: the keys of a pool's 64 hosts."""
ACTIVATING, PAUSED, RELINKING = "activating", "paused", "relinking"
HOST = "host_"
READ_WRITE, READ_ONLY = "RW", "RO"


class KeyFileError(VhdtoolError):
    """The file beside the image is not a key file, or is damaged."""


@dataclass(frozen=True)
class Key:
    """One key. `mode`: RW or RO for a host's key, else empty."""

    name: str
    number: int
    """The change that made the key; `--force` names it. No two activations have one number."""
    owner: Owner
    mode: str = ""

    @property
    def is_host(self) -> bool:
        return self.name.startswith(HOST)

    @property
    def state(self) -> str:
        """What is proven of the owner: it lives, or is gone, or neither."""
        if self.owner.is_gone():
            return "gone"
        same_boot = self.owner.boot == boot_id() != UNKNOWN_BOOT
        return "living" if same_boot and self.owner.start > 0 else "unknown"

    def is_of_machine(self, other: "Key") -> bool:
        """Whether both keys are of one host, in one boot."""
        return (self.owner.host, self.owner.boot) == (other.owner.host, other.owner.boot)

    def __str__(self) -> str:
        mode = f" ({self.mode})" if self.mode else ""
        return f"{self.name}{mode} of {self.owner}, key {self.number}"


class Keys(dict[str, Key]):
    """The keys by name, at one change. `number` is that change's."""

    def __init__(self, keys: dict[str, Key], number: int) -> None:
        super().__init__(keys)
        self.number = number

    def add(self, name: str, owner: Owner, mode: str = "") -> None:
        """Adds a key, made by the change that writes it."""
        self[name] = Key(name, self.number + 1, owner.now(), mode)

    def drop(self, *dropped: Key) -> None:
        for key in dropped:
            self.pop(key.name, None)

    def gone(self) -> list[Key]:
        """Keys whose owner is proven gone."""
        return [key for key in self.values() if key.state == "gone"]


class KeyFile(SharedFile):
    """The keys' file. It stays when its last key is removed, so that numbers never come again."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "key file", SLOT)

    def read(self) -> Keys:
        """Returns the keys as they are now; none without a file. Raises KeyFileError."""
        slots = [self.raw(0), self.raw(SLOT)]
        found = [keys for keys in map(_parse, slots) if keys is not None]
        if found:
            return max(found, key=lambda keys: keys.number)
        if any(slot.strip(b"\0 \n") for slot in slots):
            raise KeyFileError(
                f"{self.path}: is no key file, or a damaged one; if it is nothing else, deactivate "
                "the image on all hosts, then remove the file"
            )
        return Keys({}, 0)

    @contextlib.contextmanager
    def change(self) -> Iterator[Keys]:
        """Gives the keys to change while every other process waits; writes them if they changed.

        An exception in the block changes nothing. Raises KeyFileError, StorageError, and
        ActivationRefused when another process does not let go of the file.
        """
        with self.mutex():
            try:
                keys = self.read()
                before = dict(keys)
                yield keys
                if keys != before:
                    self._write(keys)
            finally:
                # A file that was made for nothing.
                self.remove_empty()

    def _write(self, keys: Keys) -> None:
        number = keys.number + 1
        fields = {key.name: {**asdict(key.owner), "number": key.number, "mode": key.mode}
                  for key in keys.values()}  # fmt: skip
        text = json.dumps({"number": number, "keys": fields}).encode()
        data = b"%08x %s\n" % (zlib.crc32(text), text)
        if len(data) > SLOT:
            raise VhdtoolError(f"{self.path}: too many keys")
        # Both slots: no change fails later for want of space.
        self.reserve_bytes(2 * SLOT)
        self.write_raw(number % 2 * SLOT, data.ljust(SLOT, b"\n"))
        self.flush()
        keys.number = number


def _parse(slot: bytes) -> Keys | None:
    """Parses a slot; None for one that is blank, incomplete, or not ours."""
    check, _, text = slot.partition(b"\n")[0].partition(b" ")
    try:
        if int(check, 16) != zlib.crc32(text):
            return None
        state = json.loads(text)
        keys = {
            name: Key(name, int(fields["number"]), owner_of(fields), str(fields["mode"]))
            for name, fields in state["keys"].items()
        }
        return Keys(keys, int(state["number"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def key_path(image: str | os.PathLike[str]) -> Path:
    """The key file of an image: beside the real file, by whatever path it is reached."""
    return Path(persistent_path(image) + SUFFIX)


@contextlib.contextmanager
def key_file(image: str | os.PathLike[str]) -> Iterator[KeyFile]:
    """Opens the key file of an image. Raises StorageError without the image's directory."""
    file = KeyFile(key_path(image))
    try:
        yield file
    finally:
        file.close()


def host_key(host: str) -> str:
    """The name of a host's key. Raises UsageError for a name that no host has."""
    good = 0 < len(host) <= 64 and host.isprintable() and "/" not in host
    if not good or host.startswith(".") or " " in host:
        raise UsageError(f"--host {host!r}: write a host's name, without spaces and slashes")
    return HOST + host
