"""Arithmetic of blocks, tables, bitmaps and locator paths."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdtool.vhd import bits
from vhdtool.vhd.bat import empty_bat, pack_bat, pack_bat_sector, unpack_bat
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.creators import CREATORS, creator_name, readers_agree, size_for_qemu, with_size
from vhdtool.vhd.footer import Footer
from vhdtool.vhd.geometry import Geometry
from vhdtool.vhd.locators import MACX, W2KU, W2RU, decode_locator, encode_locator
from vhdtool.vhd.units import MAX_SIZE


def test_blktap_places_data_on_4_kib() -> None:
    layout = BlockLayout(2 << 20)
    first = layout.next_entry(6)
    assert first == 7
    assert layout.next_entry(layout.end_sector(first)) - first == layout.stride == 4104


@pytest.mark.parametrize(
    ("size", "bitmap", "total"), [(512 << 10, 1, 1025), (2 << 20, 1, 4097), (4 << 20, 2, 8194)]
)
def test_bitmap_is_padded_to_sectors(size: int, bitmap: int, total: int) -> None:
    layout = BlockLayout(size)
    assert (layout.bitmap_sectors, layout.total_sectors) == (bitmap, total)


def test_bat_is_big_endian_and_padded_with_what_was_asked() -> None:
    table = empty_bat(2)
    table[1] = 0x01020304
    assert pack_bat(table)[:8] == bytes.fromhex("ffffffff01020304")
    assert pack_bat(table)[8:] == bytes(504)
    assert pack_bat(table, 0xFF)[8:] == b"\xff" * 504
    assert unpack_bat(pack_bat(table), 2) == table


def test_bat_sector_holds_128_entries() -> None:
    table = empty_bat(130)
    table[129] = 7
    sector, raw = pack_bat_sector(table, 129)
    assert sector == 1
    assert raw == (b"\xff" * 4 + (7).to_bytes(4, "big")).ljust(512, b"\0")


def test_first_bit_is_the_most_significant() -> None:
    assert bits.test_bit(b"\x80", 0)
    assert not bits.test_bit(b"\x80", 1)
    assert not bits.test_bit(b"\x80", 99)


@given(st.integers(1, 200), st.data())
def test_bit_runs_agree_with_a_list_of_bits(count: int, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=25, max_size=25))
    plain = [bits.test_bit(raw, i) for i in range(count)]
    again: list[bool] = []
    for present, first, length in bits.runs(raw, count):
        assert first == len(again)
        again += [present] * length
    assert again == plain
    assert bits.all_set(raw, count) == all(plain)


@given(st.integers(0, 190), st.integers(0, 200))
def test_set_and_clear_touch_only_their_range(first: int, count: int) -> None:
    count = min(count, 192 - first)
    raw = bytearray(24)
    bits.set_bits(raw, first, count)
    assert [bits.test_bit(raw, i) for i in range(192)] == [
        first <= i < first + count for i in range(192)
    ]
    assert bits.count_set(raw) == count
    assert bits.last_set(raw) == (first + count - 1 if count else -1)
    bits.clear_bits(raw, first, count)
    assert not any(raw)


@pytest.mark.parametrize(
    ("code", "path", "raw"),
    [
        (MACX, "../base.vhd", b"file://../base.vhd"),
        (W2RU, "base.vhd", ".\\base.vhd".encode("utf-16-le")),
        (W2RU, "./dir/base.vhd", ".\\dir\\base.vhd".encode("utf-16-le")),
        (W2RU, "../base.vhd", "..\\base.vhd".encode("utf-16-le")),
        (W2KU, "/srv/base.vhd", "\\srv\\base.vhd".encode("utf-16-le")),
    ],
)
def test_locators_are_written_as_each_reader_wants_them(code: bytes, path: str, raw: bytes) -> None:
    assert encode_locator(code, path) == raw
    back = decode_locator(code, raw)
    assert back is not None
    assert back.removeprefix("./") == path.removeprefix("./")


def test_locators_of_windows_keep_the_drive() -> None:
    assert decode_locator(W2KU, "C:\\vm\\a.vhd".encode("utf-16-le")) == "C:/vm/a.vhd"
    assert decode_locator(MACX, b"not a url") is None
    assert decode_locator(W2RU, b"\x00\xd8") is None
    assert decode_locator(b"Mac ", b"alias") is None


def test_creators_say_what_their_size_means() -> None:
    small = Geometry(100, 4, 17)
    qemu = Footer(64 << 20, geometry=small, creator=b"qemu")
    assert size_for_qemu(qemu) == small.size
    assert size_for_qemu(Footer(64 << 20, geometry=small, creator=b"tap\0")) == 64 << 20
    assert not readers_agree(qemu)
    assert readers_agree(replace(qemu, current_size=small.size))
    assert readers_agree(replace(qemu, creator=b"qem2"))
    assert size_for_qemu(replace(qemu, creator=b"qem2", current_size=1025)) == 1024
    assert creator_name(qemu).startswith("QEMU")
    assert "unknown" in creator_name(Footer(1, creator=b"abcd"))


@pytest.mark.parametrize("creator", [*CREATORS, b"wa\0\0", bytes(4)])
def test_a_footer_with_another_size_has_one_size(creator: bytes) -> None:
    """Whoever reads it; the creator changes only where it has to."""
    dice = random.Random(3)
    sizes = [dice.randrange(1, 1 << dice.randrange(12, 32)) * 512 for _ in range(200)]
    whole = [Geometry.for_size(size).size for size in sizes]
    for size in [size for size in sizes + whole if 0 < size <= MAX_SIZE]:
        footer = with_size(Footer(64 << 20, creator=creator), size)
        assert footer.current_size == size
        assert size_for_qemu(footer) == size
        assert readers_agree(footer)
        if footer.creator != creator:
            assert footer.geometry.size != size
