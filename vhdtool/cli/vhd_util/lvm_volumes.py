"""Volumes of an LVM group, read from the underlying devices without activating them.

Only the first segment of a volume can be read so; a scan needs no more.
"""

import fnmatch
import functools
import subprocess
from dataclasses import dataclass

from vhdtool.errors import UnsupportedImage, VhdtoolError
from vhdtool.storage import FileStorage, Storage
from vhdtool.storage.base import ReadOnlyStorage

_BYTES = ("--noheadings", "--units", "b", "--nosuffix", "--separator", "|")


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of `size` bytes. Its first segment is `first` bytes long, at `start` on `device`."""

    name: str
    size: int
    device: str
    start: int
    first: int
    linear: bool

    def matches(self, pattern: str) -> bool:
        return fnmatch.fnmatchcase(self.name, pattern)

    def open(self) -> Storage:
        """Open the first segment for reading. Raises StorageError, UnsupportedImage."""
        if not self.linear:
            raise UnsupportedImage(f"{self.name}: only linear volumes can be scanned")
        return _DeviceRange(self)


class _DeviceRange(ReadOnlyStorage):
    """A range of a device as a storage of its own."""

    def __init__(self, volume: Volume) -> None:
        self.name = volume.name
        self._start, self._size = volume.start, volume.first
        self._device = FileStorage(volume.device)

    def pread(self, offset: int, length: int) -> bytes:
        length = min(length, self._size - offset)
        return self._device.pread(self._start + offset, length) if length > 0 else b""

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        self._device.close()


@functools.cache
def volumes_of_group(group: str) -> tuple[Volume, ...]:
    """All volumes of a group, by name. Raises VhdtoolError for an unknown group."""
    starts = {}
    for device, first_extent in _rows("pvs", "-o", "pv_name,pe_start", "-S", f"vg_name={group}"):
        starts[device] = int(first_extent)
    volumes: dict[str, Volume] = {}
    fields = "lv_name,lv_size,segtype,seg_start,seg_size,devices,vg_extent_size"
    for name, size, kind, at, length, devices, extent in _rows("lvs", "-o", fields, group):
        if int(at) or name in volumes:
            continue
        device, _, first = devices.split(",")[0].partition("(")
        start = starts.get(device, 0) + int(first.rstrip(")") or 0) * int(extent)
        volumes[name] = Volume(name, int(size), device, start, int(length), kind == "linear")
    return tuple(sorted(volumes.values(), key=lambda one: one.name))


def _rows(tool: str, *arguments: str) -> list[list[str]]:
    try:
        done = subprocess.run(
            [tool, *_BYTES, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise VhdtoolError(f"{tool}: {error.strerror}; volume groups need LVM's tools") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise VhdtoolError(f"{tool}: {lines[-1].strip()}")
    return [
        [field.strip() for field in line.split("|")] for line in done.stdout.splitlines() if line
    ]


def volume_name(path: str) -> str:
    """The name of the volume at a path: for /dev/mapper decoded, else the last component.

    Device-mapper joins group and volume by a dash, and doubles the dashes within both.
    """
    name = path.rsplit("/", 1)[-1]
    parts = name.replace("--", "\0").split("-")
    return parts[1].replace("\0", "-") if len(parts) == 2 and "--" in name else name
