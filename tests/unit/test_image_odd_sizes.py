"""A raw file that ends within a sector has that sector, filled up with zeros, in every command."""

import os
from pathlib import Path

import pytest

from tests.support.image_tools import content
from vhdtool.cli.main import run
from vhdtool.image.chain.open import open_chain
from vhdtool.image.disk.flat import FlatDisk
from vhdtool.image.disk.open import disk_size, open_disk
from vhdtool.storage import FileStorage
from vhdtool.vhd.units import SECTOR, pad

MIB = 1 << 20
SIZES = [1, 1_000_001, 2 * MIB - 100, 2 * MIB + 1]


@pytest.fixture(params=SIZES)
def raw(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "a.raw"
    path.write_bytes(os.urandom(request.param))
    return path


def shown(path: Path) -> bytes:
    data = path.read_bytes()
    return data.ljust(pad(len(data)), b"\0")


def test_what_is_served_has_the_tail(raw: Path) -> None:
    expected = shown(raw)
    assert disk_size(raw, "raw") == len(expected)
    for direct in (False, True):
        disk = open_disk(FileStorage(raw, direct=direct), str(raw), kind="raw")
        assert disk.size == len(expected)
        assert disk.read(0, disk.size) == expected
        assert disk.read(disk.size - SECTOR, SECTOR) == expected[-SECTOR:]
        assert disk.extents(0, disk.size, 100) == [(disk.size, True)]
        disk.abandon()


def test_a_write_to_the_last_sector_makes_it_whole(raw: Path) -> None:
    expected = shown(raw)
    disk = FlatDisk(FileStorage(raw, writable=True), raw=True)
    disk.write(disk.size - SECTOR, b"x" * SECTOR)
    disk.abandon()
    assert raw.read_bytes() == expected[:-SECTOR] + b"x" * SECTOR
    assert disk_size(raw, "raw") == len(expected)


@pytest.mark.parametrize("words", [["--fixed", "b.vhd"], ["b.vhd"], ["b.raw"]])
def test_a_copy_has_the_tail(raw: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(raw.parent)
    assert run(["convert", "-q", "a.raw", *words]) == 0
    expected = shown(raw)
    if words[-1] == "b.raw":
        assert Path("b.raw").read_bytes() == expected
        return
    assert content(Path("b.vhd")) == expected
    assert run(["read", "b.vhd", "-o", "c.raw"]) == 0
    assert Path("c.raw").read_bytes() == expected


def test_a_child_has_the_tail_and_gives_it_back(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(raw.parent)
    expected = shown(raw)
    assert run(["snapshot", "-q", "--raw-parent", "a.raw", "c.vhd"]) == 0
    assert run(["check", "-q", "c.vhd"]) == 0
    assert content(Path("c.vhd")) == expected
    with open_chain("c.vhd") as reader:
        assert reader.layers[1].size == len(expected)
        assert list(reader.data_ranges(0, len(expected) + SECTOR)) == [
            (len(expected), True),
            (SECTOR, False),
        ]
    disk = open_disk(FileStorage("c.vhd", writable=True), "c.vhd")
    disk.write(disk.size - SECTOR, b"y" * SECTOR)
    disk.finish()
    disk.abandon()
    assert run(["coalesce", "-q", "c.vhd"]) == 0
    assert raw.read_bytes() == expected[:-SECTOR] + b"y" * SECTOR


def test_a_tail_that_is_a_hole_reads_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "hole.raw"
    with path.open("wb") as file:
        file.truncate(1_000_001)
    disk = open_disk(FileStorage(path), str(path), kind="raw")
    assert disk.read(disk.size - SECTOR, SECTOR) == bytes(SECTOR)
    sizes = [size for size, _ in disk.extents(0, disk.size, 100)]
    assert sum(sizes) == disk.size
    assert all(size % SECTOR == 0 for size in sizes)
