"""Reading through bitmaps and layers."""

import pytest

from tests.support.vhd_images import Picture
from vhdtool.errors import CorruptImage, NotAVhd
from vhdtool.image.chain.layers import Extent, Layer, Reader
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import MemoryStorage
from vhdtool.vhd.footer import FIXED, Footer
from vhdtool.vhd.units import SECTOR

MIB = 1 << 20
BLOCK = 512 << 10


def reader(*pictures: Picture) -> Reader:
    disks = [picture.draw() for picture in pictures]
    return Reader([Layer(disk, read_metadata(disk)) for disk in disks])


def test_a_sector_under_a_clear_bit_reads_as_zeros() -> None:
    picture = Picture(2 * MIB, BLOCK)
    picture.add(1, (2, 1), fill=0x42)
    disk = reader(picture)
    assert disk.read(BLOCK, 4 * SECTOR) == bytes(1024) + b"B" * 512 + bytes(512)
    assert disk.read(0, BLOCK) == bytes(BLOCK)
    assert disk.read(BLOCK + 1024 + 500, 20) == b"B" * 12 + bytes(8)


def test_reading_stops_at_the_disks_end() -> None:
    disk = reader(Picture(2 * MIB, BLOCK))
    assert len(disk.read(2 * MIB - 100, 1000)) == 100
    assert disk.read(3 * MIB, 10) == b""


def test_layers_shine_through_sector_by_sector() -> None:
    child, parent = Picture(2 * MIB, BLOCK), Picture(1 * MIB, BLOCK)
    child.add(0, (1, 1), fill=0x43)
    parent.add(0, (0, 3), fill=0x50)
    parent.add(1, fill=0x51)
    disk = reader(child, parent)
    assert disk.read(0, 4 * SECTOR) == b"P" * 512 + b"C" * 512 + b"P" * 512 + bytes(512)
    assert disk.read(BLOCK, 10) == b"Q" * 10
    assert disk.read(1 * MIB, 512) == bytes(512)
    depths = [(one.depth, one.offset is not None) for one in disk.merged(0, 4 * SECTOR)]
    assert depths == [(1, True), (0, True), (1, True), (1, False)]


def test_raw_parent_may_end_within_a_sector() -> None:
    child = Picture(2 * MIB, BLOCK)
    child.add(1)
    disk = child.draw()
    both = Reader([Layer(disk, read_metadata(disk)), Layer(MemoryStorage(b"r" * 700))])
    assert both.read(0, 1024) == b"r" * 700 + bytes(324)


def test_neighbours_in_the_file_are_one_range() -> None:
    picture = Picture(64 * MIB, BLOCK)
    picture.add(0, (0, 4), (4, 4))
    assert list(reader(picture).merged(0, 8 * SECTOR)) == [
        Extent(0, 8 * SECTOR, 0, picture.layout.data_offset(picture.blocks[0]))
    ]
    assert len(list(reader(picture).merged(BLOCK))) == 1


def test_fixed_disk_is_its_file() -> None:
    disk = MemoryStorage(b"f" * MIB + Footer(MIB, FIXED).pack())
    fixed = Reader([Layer(disk, read_metadata(disk))])
    assert fixed.read(MIB - 3, 10) == b"fff"


@pytest.mark.parametrize("entry", [0, 1 << 30])
def test_entries_that_point_nowhere_raise(entry: int) -> None:
    picture = Picture(2 * MIB, BLOCK)
    picture.blocks[2] = entry
    with pytest.raises(CorruptImage, match="block 2"):
        reader(picture).read(1 * MIB, 512)


def test_a_cut_file_raises_instead_of_inventing_zeros() -> None:
    picture = Picture(2 * MIB, BLOCK)
    picture.add(0)
    disk = picture.draw(footer=False)
    disk.truncate(disk.size() - 512)
    cut = Reader([Layer(disk, read_metadata(disk))])
    with pytest.raises(CorruptImage, match="file ends"):
        cut.read(0, BLOCK)


@pytest.mark.parametrize(
    ("place", "raw", "message"),
    [
        (512, b"X", "no dynamic disk header"),
        (512 + 28, b"\xff\xff\xff\xff", "checksum"),
    ],
)
def test_metadata_that_cannot_be_believed_raises(place: int, raw: bytes, message: str) -> None:
    disk = Picture(2 * MIB, BLOCK).draw()
    disk.pwrite(place, raw)
    with pytest.raises(CorruptImage, match=message):
        read_metadata(disk)


def test_closed_images_need_their_footer() -> None:
    disk = Picture(2 * MIB, BLOCK).draw(footer=False)
    read_metadata(disk)
    with pytest.raises(CorruptImage, match="no footer at its end"):
        read_metadata(disk, need_end_footer=True)
    with pytest.raises(NotAVhd):
        read_metadata(MemoryStorage(bytes(4096)))
