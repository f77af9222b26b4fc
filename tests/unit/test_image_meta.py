"""Snapshots of metadata, and what must never be lost between two of them."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from tests.support.recording_storage import RecordingStorage
from tests.support.vhd_images import UUID_ONE, Picture
from vhdtool.errors import NotAVhd, UsageError
from vhdtool.image.metadata.diff import diff_growth, diff_monotonic
from vhdtool.image.metadata.dump import dump_metadata
from vhdtool.storage import MemoryStorage
from vhdtool.vhd.bits import clear_bits
from vhdtool.vhd.footer import FIXED, Footer
from vhdtool.vhd.units import KILLED, SECTOR

MIB = 1 << 20


def small() -> Picture:
    picture = Picture(64 * MIB, 512 << 10)
    picture.add(3)
    picture.add(0, (0, 8), (1016, 8))
    return picture


def test_snapshot_has_the_schema_of_the_record() -> None:
    picture = small()
    disk = picture.draw()
    taken = dump_metadata(disk)
    assert list(taken) == ["schema", "file_size", "footer", "header", "bat", "bitmaps", "batmap"]
    assert taken["schema"] == 1
    assert taken["file_size"] == disk.size()
    assert taken["footer"]["uuid"] == str(UUID_ONE)
    assert (taken["footer"]["place"], taken["footer"]["type"]) == ("end", "dynamic")
    assert taken["header"]["block_bytes"] == 512 << 10
    assert taken["bat"] == {"0": picture.blocks[0], "3": picture.blocks[3]}
    assert taken["bitmaps"]["3"] == "ff" * 128
    assert taken["bitmaps"]["0"] == "ff" + "00" * 126 + "ff"
    assert taken["batmap"] == "10" + "00" * 15
    assert json.loads(json.dumps(taken)) == taken


def test_snapshot_of_a_live_image_takes_the_footers_copy() -> None:
    picture = small()
    disk = picture.draw(footer=False)
    assert dump_metadata(disk)["footer"]["place"] == "copy"
    disk.pwrite(picture.end * SECTOR, KILLED)
    assert dump_metadata(disk)["footer"]["place"] == "copy"


def test_snapshot_of_damage_has_nulls_and_does_not_judge() -> None:
    picture = small()
    picture.copy = None
    disk = picture.draw(footer=False)
    taken = dump_metadata(disk)
    assert taken["footer"] is None
    assert taken["bat"] == {"0": picture.blocks[0], "3": picture.blocks[3]}
    disk = small().draw()
    disk.pwrite(SECTOR, b"x" * 1024)
    assert dump_metadata(disk)["header"] is None


def test_snapshot_tolerates_blocks_outside_the_file() -> None:
    picture = small()
    picture.blocks[9] = 1 << 30
    assert dump_metadata(picture.draw())["bitmaps"]["9"] == ""


def test_snapshot_of_a_fixed_disk_has_a_footer_only() -> None:
    disk = MemoryStorage(bytes(MIB) + Footer(MIB, FIXED).pack())
    taken = dump_metadata(disk)
    assert taken["footer"]["type"] == "fixed"
    assert taken["header"] is None
    assert taken["bat"] == {}


def test_snapshot_of_something_else_is_refused() -> None:
    with pytest.raises(NotAVhd):
        dump_metadata(MemoryStorage(b"x" * 4096))


def test_snapshot_reads_each_bitmap_once() -> None:
    picture = Picture(256 * MIB, 512 << 10)
    for block in range(500):
        picture.add(block)
        picture.data[block] = b""
    recorded = RecordingStorage(picture.draw())
    dump_metadata(recorded)
    assert recorded.reads < 500 + 10
    assert recorded.log == []


def taken_twice() -> tuple[dict[str, Any], dict[str, Any]]:
    return dump_metadata(small().draw()), dump_metadata(small().draw())


def test_nothing_lost_is_no_finding() -> None:
    assert diff_monotonic(*taken_twice()) == []


def test_growth_is_no_loss_and_is_listed_by_the_plain_diff() -> None:
    picture = small()
    before = dump_metadata(picture.draw())
    picture.add(7, (0, 1))
    picture.bits[0][1] = 0xFF
    after = dump_metadata(picture.draw())
    assert diff_monotonic(before, after) == []
    grown = diff_growth(before, after)
    assert {one.block for one in grown if one.block is not None} == {0, 7}
    assert {one.severity for one in grown} == {"info"}


def test_vanished_entry_is_named() -> None:
    before, after = taken_twice()
    del after["bat"]["3"], after["bitmaps"]["3"]
    (one,) = diff_monotonic(before, after)
    assert (one.code, one.block, one.offset) == ("bat-vanished", 3, 1536 + 12)
    assert one.sectors == (3072, 1024)


def test_moved_entry_is_named() -> None:
    before, after = taken_twice()
    after["bat"]["3"] += 8
    (one,) = diff_monotonic(before, after)
    assert (one.code, one.block) == ("bat-moved", 3)


def test_lost_bits_are_named_by_guest_sector() -> None:
    picture = small()
    before = dump_metadata(picture.draw())
    clear_bits(picture.bits[3], 10, 2)
    clear_bits(picture.bits[3], 1023, 1)
    found = diff_monotonic(before, dump_metadata(picture.draw()))
    assert [one.sectors for one in found] == [(3082, 2), (4095, 1)]
    assert {one.code for one in found} == {"bitmap-bit-lost"}


@pytest.mark.parametrize(
    "change", [{"uuid": UUID(int=7)}, {"current_size": 32 * MIB}, {"disk_type": 4}]
)
def test_another_disk_is_named(change: dict[str, Any]) -> None:
    picture = small()
    before = dump_metadata(picture.draw())
    picture.footer = replace(picture.footer, **change)
    (one,) = diff_monotonic(before, dump_metadata(picture.draw()))
    assert (one.code, one.severity) == ("footer-identity-changed", "corrupt")


def test_lost_footer_and_header_are_named() -> None:
    picture = small()
    before = dump_metadata(picture.draw())
    picture.copy = None
    after = dump_metadata(picture.draw(footer=False))
    assert [one.code for one in diff_monotonic(before, after)] == ["footer-vanished"]
    disk = small().draw()
    disk.pwrite(SECTOR, bytes(8))
    assert [one.code for one in diff_monotonic(before, dump_metadata(disk))] == ["header-vanished"]


@pytest.mark.parametrize(
    "wrong", [{}, {"schema": 2}, {"schema": 1}, [], {"schema": 1, "footer": 3}]
)
def test_what_is_no_snapshot_is_refused(wrong: Any) -> None:
    good, _ = taken_twice()
    with pytest.raises(UsageError):
        diff_monotonic(wrong, good)
    with pytest.raises(UsageError):
        diff_monotonic(good, wrong)
