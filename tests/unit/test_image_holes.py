"""Whoever asks which ranges hold data is told the holes, and never one that has data by now."""

import os
from pathlib import Path

import pytest

from tests.support.image_tools import write
from vhdtool.cli.qemu_img import ChainExport
from vhdtool.image.chain.open import open_chain
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.image.disk.base import OpenDisk
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.disk.flat import FlatDisk
from vhdtool.image.disk.open import open_disk
from vhdtool.ranges import merge_data
from vhdtool.storage import FileStorage
from vhdtool.storage.sparse import Contents
from vhdtool.vhd.footer import SECTOR

MIB = 1 << 20
SIZE = 8 * MIB
PAGE = 64 << 10
MOST = 1 << 14


def flat(path: Path, kind: str) -> FlatDisk:
    if kind == "raw":
        path.touch()
        os.truncate(path, SIZE)
    else:
        create_fixed(path, SIZE)
    return FlatDisk(FileStorage(path, writable=True), raw=kind == "raw")


def opened(path: Path) -> OpenDisk:
    return open_disk(FileStorage(path, writable=True), str(path))


@pytest.mark.parametrize("kind", ["raw", "fixed"])
def test_a_flat_disk_tells_its_holes(tmp_path: Path, kind: str) -> None:
    disk = flat(tmp_path / "disk", kind)
    assert disk.extents(0, SIZE) == [(SIZE, False)]
    disk.write(2 * MIB, b"x" * PAGE)
    assert disk.extents(0, SIZE) == [
        (2 * MIB, False),
        (PAGE, True),
        (SIZE - 2 * MIB - PAGE, False),
    ]
    assert disk.extents(0, SIZE, most=1) == [(2 * MIB, False)]
    assert disk.extents(2 * MIB + SECTOR, SECTOR) == [(SECTOR, True)]


@pytest.mark.parametrize("kind", ["raw", "fixed"])
def test_no_answer_is_older_than_its_question(tmp_path: Path, kind: str) -> None:
    """What was a hole at the last question is data after a write; freed data is a hole again."""
    disk = flat(tmp_path / "disk", kind)
    for place in range(0, SIZE, MIB):
        assert disk.extents(place, MIB) == [(MIB, False)]
        disk.write(place, b"x" * MIB)
        assert disk.extents(place, MIB) == [(MIB, True)]
    assert disk.extents(0, SIZE) == [(SIZE, True)]
    disk.write_zeroes(MIB, MIB)
    assert disk.extents(0, SIZE) == [(MIB, True), (MIB, False), (SIZE - 2 * MIB, True)]


def test_a_fixed_disk_cut_off_is_data_to_be_read_and_refused(tmp_path: Path) -> None:
    """A range behind the end of the file must not be told as zeros."""
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, MIB)
    held = merge_data(Contents(FileStorage(path)).data_ranges(0, 2 * MIB), MOST)
    assert held == [(MIB, False), (MIB, True)]


@pytest.mark.parametrize("base", ["raw", "fixed", "dynamic"])
def test_a_child_tells_what_its_parents_do_not_hold(tmp_path: Path, base: str) -> None:
    if base == "dynamic":
        create_dynamic(tmp_path / "base", SIZE)
        write(tmp_path / "base", (4 * MIB, b"x" * PAGE))
    else:
        disk = flat(tmp_path / "base", base)
        disk.write(4 * MIB, b"x" * PAGE)
        disk.abandon()
    snapshot(tmp_path / "base", tmp_path / "mid.vhd", raw=base == "raw", skip_empty=False)
    snapshot(tmp_path / "mid.vhd", tmp_path / "leaf.vhd", skip_empty=False)
    leaf = opened(tmp_path / "leaf.vhd")
    assert leaf.extents(0, SIZE, MOST) == [
        (4 * MIB, False),
        (PAGE, True),
        (SIZE - 4 * MIB - PAGE, False),
    ]
    leaf.write(0, b"y" * PAGE)
    leaf.write(4 * MIB - SECTOR, b"y" * SECTOR)
    assert leaf.extents(0, SIZE, MOST) == [
        (PAGE, True),
        (4 * MIB - SECTOR - PAGE, False),
        (PAGE + SECTOR, True),
        (SIZE - 4 * MIB - PAGE, False),
    ]


def test_a_child_larger_than_its_parent_ends_with_zeros(tmp_path: Path) -> None:
    disk = flat(tmp_path / "base", "fixed")
    disk.write(SIZE - PAGE, b"x" * PAGE)
    disk.abandon()
    from vhdtool.image.create.differencing import create_child, parent_facts

    create_child(tmp_path / "leaf.vhd", parent_facts(tmp_path / "base"), 3 * SIZE)
    assert opened(tmp_path / "leaf.vhd").extents(0, 3 * SIZE, MOST) == [
        (SIZE - PAGE, False),
        (PAGE, True),
        (2 * SIZE, False),
    ]


def test_a_hole_below_an_allocated_block_is_told(tmp_path: Path) -> None:
    """A served image allocates whole blocks, of which the guest has written little."""
    create_dynamic(tmp_path / "a.vhd", SIZE)
    disk = DynamicDisk(FileStorage(tmp_path / "a.vhd", writable=True), whole=True)
    disk.write(MIB, b"x" * PAGE)
    told = disk.extents(0, SIZE, MOST)
    assert sum(size for size, _ in told) == SIZE
    assert sum(size for size, holds in told if holds) < PAGE + 4 * 4096
    disk.write(0, b"x" * SECTOR)
    assert disk.extents(0, SECTOR, MOST) == [(SECTOR, True)]
    disk.close()


def test_the_answers_cover_what_differs_from_zero(tmp_path: Path) -> None:
    """Random writes over random layers: what is told to be empty reads as zeros."""
    import random

    seed = 7
    dice = random.Random(seed)
    create_dynamic(tmp_path / "0.vhd", SIZE, block_bytes=512 << 10)
    for layer in range(3):
        path = tmp_path / f"{layer}.vhd"
        if layer:
            snapshot(tmp_path / f"{layer - 1}.vhd", path, skip_empty=False)
        write(
            path,
            *(
                (
                    dice.randrange(SIZE // SECTOR - 64) * SECTOR,
                    os.urandom(dice.randrange(1, 64) * SECTOR),
                )
                for _ in range(10)
            ),
        )
    with open_chain(tmp_path / "2.vhd") as reader:
        server = ChainExport(reader, lambda _: None)
        image = opened(tmp_path / "2.vhd")
        for told in (image.extents(0, SIZE, MOST), server.extents(0, SIZE, MOST)):
            position = 0
            for size, holds in told:
                assert size % SECTOR == 0
                assert holds or not any(reader.read(position, size)), (seed, position, size)
                position += size
            assert position == SIZE
            assert any(holds for _, holds in told)
            assert not all(holds for _, holds in told)
