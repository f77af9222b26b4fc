"""What several image tests need: writing through a chain, and content as one string."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from vhdtool.image.chain.check import check_chain
from vhdtool.image.chain.locate_parent import find_parent
from vhdtool.image.chain.open import open_chain
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage
from vhdtool.vhd.footer import DIFFERENCING
from vhdtool.vhd.header import SIZE, Header
from vhdtool.vhd.units import SECTOR


def write(path: Path, *writes: tuple[int, bytes]) -> None:
    """Writes through the chain as a guest would."""
    storage = FileStorage(path, writable=True)
    meta = read_metadata(storage)
    below = None
    if meta.footer.disk_type == DIFFERENCING and meta.header is not None:
        below = open_chain(
            find_parent(str(path), storage, meta.header), raw=meta.header.parent_uuid.int == 0
        )
    disk = DynamicDisk(storage, parent=below)
    for offset, data in writes:
        disk.write(offset, data)
    disk.close()
    if below is not None:
        below.close()


def content(path: Path) -> bytes:
    """All that the chain shows."""
    with open_chain(path) as reader:
        return reader.read(0, reader.size)


def clean(path: Path) -> None:
    """Asserts that image and parents are consistent."""
    report = check_chain(path)
    faults = [one for one in report.links if one.severity != "info"]
    faults += [one for each in report.reports for one in each.findings if one.severity != "info"]
    assert faults == []


def change_header(path: Path, **fields: object) -> None:
    """Changes fields of the header; the checksum stays right."""
    with FileStorage(path, writable=True) as storage:
        header = Header.unpack(storage.pread(SECTOR, SIZE))
        storage.pwrite(SECTOR, replace(header, **fields).pack())  # type: ignore[arg-type]


def nearly_full(monkeypatch: pytest.MonkeyPatch, folder: Path, left: int) -> None:
    """The file system of `folder` says that it has `left` free blocks."""
    unit = os.statvfs(folder).f_frsize

    class Full:
        f_bavail = left
        f_frsize = unit

    monkeypatch.setattr("os.statvfs", lambda path: Full())
