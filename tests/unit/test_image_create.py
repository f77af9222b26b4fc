"""New images: laid out as blktap does, clean, and never over something that is there."""

from pathlib import Path

import pytest

from vhdtool.errors import ImageExists, UsageError
from vhdtool.image.check.image import check
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage, MemoryStorage
from vhdtool.vhd.units import GIB, MIB, SECTOR


def test_layout_is_blktaps() -> None:
    disk = MemoryStorage()
    create_dynamic(disk, 1 * GIB, timestamp=5)
    meta = read_metadata(disk, need_end_footer=True)
    assert meta.header is not None
    assert meta.batmap is not None
    assert (meta.footer.data_offset, meta.header.bat_offset) == (512, 1536)
    assert (meta.batmap.offset, meta.batmap.sectors) == (1536 + 2048 + 512, 1)
    assert disk.size() == meta.batmap.offset + 2 * SECTOR
    assert meta.footer.creator == b"tap\0"
    assert meta.footer.timestamp == 5
    assert disk.pread(0, SECTOR) == disk.pread(disk.size() - SECTOR, SECTOR)


@pytest.mark.parametrize("size", [1, 512, 2 * MIB, 2 * MIB + 1, 33 * MIB, 2040 * GIB])
@pytest.mark.parametrize("batmap", [True, False])
def test_new_images_are_consistent(size: int, batmap: bool) -> None:
    disk = MemoryStorage()
    footer = create_dynamic(disk, size, batmap=batmap)
    assert footer.current_size == -(-size // 512) * 512
    report = check(disk)
    assert report.findings == []
    assert report.blocks == -(-size // (2 * MIB))


@pytest.mark.parametrize("blocks", range(4094, 4106))
def test_batmap_is_whole_where_vhd_util_lays_its_footer_over_it(blocks: int) -> None:
    disk = MemoryStorage()
    create_dynamic(disk, blocks * 2 * MIB)
    assert check(disk).findings == []


@pytest.mark.parametrize("block", [512 << 10, 1 * MIB, 16 * MIB])
def test_block_sizes(block: int) -> None:
    disk = MemoryStorage()
    create_dynamic(disk, 40 * MIB, block)
    report = check(disk)
    assert report.findings == []
    assert report.blocks == -(-40 * MIB // block)


@pytest.mark.parametrize("size", [0, -1, 2040 * GIB + 1])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match="size"):
        create_dynamic(MemoryStorage(), size)


@pytest.mark.parametrize("block", [0, 256 << 10, 3 * MIB, 1 << 32])
def test_impossible_blocks_are_refused(block: int) -> None:
    with pytest.raises(UsageError, match="block"):
        create_dynamic(MemoryStorage(), MIB, block)


def test_what_is_there_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    path.write_bytes(b"precious")
    with pytest.raises(ImageExists):
        create_dynamic(path, MIB)
    assert path.read_bytes() == b"precious"
    create_dynamic(path, MIB, overwrite=True)
    with FileStorage(path) as disk:
        assert check(disk).exit_code == 0
    full = MemoryStorage(b"precious")
    with pytest.raises(UsageError, match="not empty"):
        create_dynamic(full, MIB)
    assert full.getvalue() == b"precious"
