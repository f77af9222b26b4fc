"""Images of blktap 0.1 and 1.1: `hidden` in the copy only, and bitmaps in another order."""

from dataclasses import replace
from pathlib import Path

import pytest

import vhdtool
from tests.support.vhd_images import Picture
from vhdtool.errors import UnsupportedImage
from vhdtool.image.chain.info import info
from vhdtool.image.chain.tree import scan
from vhdtool.image.check.image import check
from vhdtool.image.edit.repair import plan
from vhdtool.storage import FileStorage
from vhdtool.vhd.bits import reversed_bits
from vhdtool.vhd.units import SECTOR

BLOCK = 512 << 10
FIRST, SECOND = 0x00000001, 0x00010001


def early(version: int) -> Picture:
    picture = Picture(4 << 20, BLOCK, batmap=False)
    picture.footer = picture.copy = replace(picture.footer, creator_version=version)
    picture.add(0, (0, 8), (1016, 8))
    picture.add(1)
    return picture


def hide(raw: bytearray, *places: int) -> bytearray:
    """As td-util did: the byte alone, and no new checksum."""
    for place in places:
        raw[place + 85] = 1
    return raw


@pytest.mark.parametrize("version", [FIRST, SECOND])
def test_hidden_is_what_the_copy_says(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.vhd"
    raw = bytearray(early(version).draw().getvalue())
    path.write_bytes(raw)
    assert not info(path)["footer"]["hidden"]
    path.write_bytes(hide(raw, 0))
    assert info(path)["footer"]["hidden"] == 1
    assert scan([str(path)])[0].hidden
    with FileStorage(path) as storage:
        assert check(storage).findings == []
        assert plan(storage).changes == []
    raw[-SECTOR:] = bytes(SECTOR)
    path.write_bytes(raw)
    assert info(path)["footer"]["hidden"] == 1


def test_later_images_are_hidden_where_their_footer_says_so() -> None:
    picture = early(0x00010003)
    raw = picture.draw()
    raw.pwrite(0, replace(picture.footer, hidden=1).pack())
    codes = [one.code for one in check(raw).findings if one.severity == "unclean"]
    assert "footers-differ" in codes


def test_bitmaps_of_version_1_are_read_in_their_bit_order(tmp_path: Path) -> None:
    picture = early(FIRST)
    picture.bits[0] = bytearray(reversed_bits(bytes(picture.bits[0])))
    picture.add(2, (0, 3))
    picture.bits[2] = bytearray(reversed_bits(bytes(picture.bits[2])))
    path = tmp_path / "a.vhd"
    path.write_bytes(picture.draw().getvalue())
    with vhdtool.open(path) as image:
        assert image.read(0, BLOCK) == b"A" * 4096 + bytes(BLOCK - 8192) + b"A" * 4096
        assert image.read(2 * BLOCK, 2048) == b"A" * 1536 + bytes(512)
    assert vhdtool.check(path).exit_code == 0
    with (
        pytest.raises(UnsupportedImage, match="vhdtool convert"),
        vhdtool.open(path, writable=True) as image,
    ):
        image.write(0, b"x")
    # Cut off behind the last sector that is present: unclean, and nothing is missing.
    entry = picture.blocks[2]
    with path.open("r+b") as file:
        file.truncate((picture.layout.data_sector(entry) + 3) * SECTOR)
    assert vhdtool.check(path, "unclean").exit_code == 3
    with path.open("r+b") as file:
        file.truncate((picture.layout.data_sector(entry) + 2) * SECTOR)
    assert vhdtool.check(path, "unclean").exit_code == 2
