"""Each finding of the check: the fault is planted and named, and the clean picture is clean."""

from dataclasses import replace

import pytest

from tests.support.faulty_storage import FaultyStorage
from tests.support.recording_storage import RecordingStorage
from tests.support.vhd_images import Picture
from vhdtool.errors import NotAVhd, UsageError
from vhdtool.image.check.image import check
from vhdtool.image.metadata.findings import Finding
from vhdtool.storage import MemoryStorage, StorageError
from vhdtool.vhd.bits import set_bits
from vhdtool.vhd.footer import DIFFERENCING, FIXED, Footer
from vhdtool.vhd.geometry import Geometry
from vhdtool.vhd.header import Header, Locator
from vhdtool.vhd.units import KILLED, SECTOR, size_text

MIB = 1 << 20


def small(batmap: bool = True) -> Picture:
    picture = Picture(64 * MIB, 512 << 10, batmap)
    picture.add(3)
    picture.add(0, (0, 8), (1016, 8))
    picture.add(127, (5, 1))
    return picture


def findings(picture: Picture, footer: bool = True, mode: str = "strict") -> list[Finding]:
    return check(picture.draw(footer), mode).findings  # type: ignore[arg-type]


def only(found: list[Finding], code: str) -> Finding:
    assert [one.code for one in found] == [code], found
    return found[0]


@pytest.mark.parametrize("batmap", [True, False])
@pytest.mark.parametrize("block", [512 << 10, 2 << 20, 4 << 20])
def test_clean_image_has_no_findings(batmap: bool, block: int) -> None:
    picture = Picture(64 * MIB, block, batmap)
    picture.add(7)
    picture.add(2, (0, 1))
    report = check(picture.draw())
    assert report.findings == []
    assert (report.exit_code, report.verdict, report.allocated) == (0, "consistent", 2)


def test_nothing_is_written() -> None:
    recorded = RecordingStorage(small().draw())
    check(recorded)
    assert recorded.log == []


@pytest.mark.parametrize("content", [b"", b"x" * 510, b"x" * 5000])
def test_a_file_without_cookies_cannot_be_checked(content: bytes) -> None:
    with pytest.raises(NotAVhd):
        check(MemoryStorage(content))


def test_an_unreadable_file_cannot_be_checked() -> None:
    broken = FaultyStorage(small().draw(), lambda kind, offset, length: 5)
    with pytest.raises(StorageError, match="Input/output"):
        check(broken)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="strict"):
        check(small().draw(), "lax")  # type: ignore[arg-type]


# -- footers


@pytest.mark.parametrize(
    ("mode", "severity", "code"), [("strict", "unclean", 3), ("unclean", "info", 0)]
)
def test_missing_footer(mode: str, severity: str, code: int) -> None:
    report = check(small().draw(footer=False), mode)  # type: ignore[arg-type]
    one = only(report.findings, "footer-missing")
    assert (one.severity, report.exit_code) == (severity, code)


@pytest.mark.parametrize(("mode", "code"), [("strict", 3), ("unclean", 0), ("live", 0)])
def test_killed_footer(mode: str, code: int) -> None:
    picture = small()
    disk = picture.draw(footer=False)
    disk.pwrite(picture.end * SECTOR, KILLED)
    report = check(disk, mode)  # type: ignore[arg-type]
    only(report.findings, "footer-killed")
    assert report.exit_code == code


def test_damaged_footer_at_the_end_is_unclean() -> None:
    picture = small()
    disk = picture.draw()
    disk.pwrite(picture.end * SECTOR + 100, b"!")
    one = only(check(disk).findings, "footer-checksum")
    assert (one.severity, one.offset) == ("unclean", picture.end * SECTOR)


def test_damaged_copy_is_unclean() -> None:
    disk = small().draw()
    disk.pwrite(100, b"!")
    assert only(check(disk).findings, "footer-copy-checksum").severity == "unclean"
    disk.pwrite(0, bytes(512))
    assert only(check(disk).findings, "footer-copy-missing").severity == "unclean"


def test_footers_that_differ_are_unclean_and_say_where() -> None:
    picture = small()
    picture.copy = replace(picture.footer, hidden=1)
    one = only(findings(picture), "footers-differ")
    assert one.severity == "unclean"
    assert "hidden" in one.message


def test_both_footers_damaged_is_corrupt() -> None:
    picture = small()
    disk = picture.draw()
    disk.pwrite(100, b"!")
    disk.pwrite(picture.end * SECTOR + 100, b"?")
    report = check(disk)
    assert report.exit_code == 2
    assert "footer-lost" in [one.code for one in report.findings]


def test_a_header_alone_makes_it_a_vhd() -> None:
    disk = MemoryStorage(bytes(512) + Header(4).pack() + bytes(4096))
    assert check(disk).exit_code == 2


def test_pending_resize_is_corrupt() -> None:
    picture = small()
    picture.footer = replace(picture.footer, cookie=b"v_poison")
    picture.copy = picture.footer
    assert "resize-pending" in [one.code for one in findings(picture)]
    assert check(picture.draw()).exit_code == 2


@pytest.mark.parametrize(
    ("change", "code", "exit_code"),
    [
        ({"disk_type": 9}, "disk-type", 2),
        ({"version": 0x00020000}, "footer-version", 2),
        ({"features": 0}, "features", 0),
        ({"saved": 7}, "flags", 0),
        ({"geometry": Geometry(1, 2, 3)}, "geometry", 3),
        ({"current_size": 0}, "size-zero", 2),
        ({"current_size": 64 * MIB - 1}, "size-odd", 3),
        ({"current_size": 65 * MIB, "geometry": Geometry.for_size(65 * MIB)}, "bat-too-small", 2),
        ({"current_size": 1 << 63}, "bat-too-small", 2),
        ({"data_offset": 1 << 62}, "header-place", 2),
    ],
)
def test_footer_fields(change: dict[str, object], code: str, exit_code: int) -> None:
    picture = small(batmap=False)
    picture.footer = replace(picture.footer, **change)  # type: ignore[arg-type]
    picture.copy = picture.footer
    report = check(picture.draw())
    assert code in [one.code for one in report.findings]
    assert report.exit_code == exit_code


@pytest.mark.parametrize(
    ("creator", "severity"), [(b"qemu", "unclean"), (b"vpc ", "info"), (b"vbox", "info")]
)
def test_sizes_that_disagree_are_named(creator: bytes, severity: str) -> None:
    picture = small()
    geometry = picture.footer.geometry
    picture.footer = picture.copy = replace(picture.footer, creator=creator)
    one = only(findings(picture), "size-disagrees")
    assert one.severity == severity
    assert f"sees {size_text(geometry.size)}" in one.message
    picture.footer = picture.copy = replace(picture.footer, current_size=geometry.size)
    assert findings(picture) == []


# -- header


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"cookie": b"cxsparsE"}, "header-cookie"),
        ({"version": 0x00020000}, "header-version"),
        ({"block_bytes": 0}, "block-size"),
        ({"block_bytes": 3 << 20}, "block-size"),
        ({"bat_offset": 1 << 60}, "bat-place"),
        ({"bat_offset": 1537}, "bat-place"),
        ({"max_entries": 0xFFFFFFFF}, "bat-too-large"),
        ({"max_entries": 5_000_000}, "bat-place"),
        ({"max_entries": 1}, "bat-too-small"),
    ],
)
def test_header_fields(change: dict[str, object], code: str) -> None:
    picture = small()
    disk = picture.draw()
    disk.pwrite(SECTOR, replace(picture.header, **change).pack())  # type: ignore[arg-type]
    report = check(disk)
    assert code in [one.code for one in report.findings]
    assert report.exit_code == 2


def test_header_checksum() -> None:
    disk = small().draw()
    disk.pwrite(SECTOR + 1000, b"!")
    assert only(check(disk).findings, "header-checksum").severity == "corrupt"


# -- placement of blocks


def test_overlap_of_a_single_sector_names_both_blocks() -> None:
    picture = small()
    picture.blocks[127] -= picture.layout.next_entry(picture.end) - picture.end + 1
    previous = picture.layout.end_sector(picture.blocks[0])
    picture.blocks[127] = previous - 1
    disk = picture.draw()
    found = [one for one in check(disk).findings if one.code == "block-overlap"]
    assert {one.block for one in found} == {0, 127}
    tail = next(one for one in found if one.block == 0)
    assert tail.sectors == (1023, 1)
    assert tail.offset == (previous - 1) * SECTOR
    assert check(disk).exit_code == 2


def test_the_same_place_twice_is_an_overlap() -> None:
    picture = small()
    picture.blocks[9] = picture.blocks[3]
    found = [one for one in findings(picture) if one.code == "block-overlap"]
    assert {one.block for one in found} == {3, 9}
    assert all(one.sectors is not None and one.sectors[1] == 1024 for one in found)


def test_overlap_in_a_short_last_block_is_seen() -> None:
    picture = small()
    picture.blocks[50] = picture.blocks[127] + 100
    disk = picture.draw()
    disk.truncate((picture.blocks[127] + 200) * SECTOR)
    codes = [one.code for one in check(disk, "unclean").findings]
    assert "block-overlap" in codes


@pytest.mark.parametrize(
    ("sector", "name"),
    [(1, "the header"), (2, "the header"), (3, "the BAT"), (4, "the batmap")],
)
def test_block_on_metadata(sector: int, name: str) -> None:
    picture = small()
    picture.blocks[60] = sector
    one = next(f for f in findings(picture) if f.code == "block-on-metadata" and name in f.message)
    assert (one.severity, one.block) == ("corrupt", 60)


def test_block_whose_last_sector_is_the_footer() -> None:
    picture = small()
    disk = picture.draw()
    disk.pwrite((picture.end - 1) * SECTOR, picture.footer.pack())
    disk.truncate(picture.end * SECTOR)
    one = next(f for f in check(disk).findings if f.code == "block-on-metadata")
    assert one.block == 127
    assert one.sectors == (127 * 1024 + 1023, 1)


def test_zeroed_bat_sector_is_one_finding() -> None:
    picture = small()
    disk = picture.draw()
    disk.pwrite(picture.header.bat_offset, bytes(512))
    found = check(disk).findings
    one = next(f for f in found if f.code == "bat-zeroed")
    assert (one.block, one.sectors) == (0, (0, 128 * 1024))
    assert len([f for f in found if f.code == "bat-zeroed"]) == 1


@pytest.mark.parametrize(
    ("entry", "code"),
    [(100_000, "bat-past-end"), (0xFFFFFFFE, "bat-wraps"), (0xFFFFFFFF - 1024, "bat-wraps")],
)
def test_entry_behind_the_end(entry: int, code: str) -> None:
    picture = small()
    picture.blocks[60] = entry
    one = only(findings(picture), code)
    assert (one.block, one.offset) == (60, 1536 + 240)
    assert one.sectors == (60 * 1024, 1024)


def test_block_behind_the_disks_end_is_unclean() -> None:
    picture = small()
    picture.header = replace(picture.header, max_entries=130, bat_offset=8 * MIB)
    picture.blocks[129] = picture.blocks.pop(127)
    picture.bits[129], picture.data[129] = picture.bits.pop(127), picture.data.pop(127)
    disk = picture.draw()
    assert "block-beyond-size" in [f.code for f in check(disk).findings if f.severity == "unclean"]


def test_leaked_block_and_tail() -> None:
    picture = Picture(64 * MIB, 512 << 10)
    picture.add(0)
    hole = picture.end
    picture.add(1, gap=1032)
    one = only(findings(picture), "leaked-block")
    assert (one.severity, one.offset) == ("unclean", hole * SECTOR)
    tail = picture.end
    picture.end += 1
    assert [f.code for f in findings(picture)] == ["leaked-block", "leaked-tail"]
    assert findings(picture)[1].offset == tail * SECTOR


@pytest.mark.parametrize(("shift", "codes"), [(0, []), (1, ["leaked-block"])])
def test_a_gap_for_no_aligned_block_is_no_leak(shift: int, codes: list[str]) -> None:
    """Only where a block is not aligned, another of that length can have been in the gap."""
    picture = Picture(64 * MIB, 512 << 10)
    front, total = picture.end, picture.layout.total_sectors
    picture.add(0)
    entry = picture.layout.next_entry(front) + picture.layout.sectors + shift
    assert total <= entry - front < picture.layout.stride
    picture.blocks[0], picture.end = entry, entry + total
    assert [one.code for one in findings(picture)] == codes


def test_other_creators_may_leave_room_before_the_footer() -> None:
    picture = Picture(64 * MIB, 512 << 10, batmap=False)
    picture.footer = replace(picture.footer, creator=b"win ", creator_version=0x00060003)
    picture.copy = picture.footer
    picture.end += 8
    assert findings(picture) == []
    picture.end += 8
    assert only(findings(picture), "leaked-tail").severity == "unclean"


def test_live_image_may_have_a_tail() -> None:
    picture = small()
    disk = picture.draw(footer=False)
    disk.truncate((picture.end + 2000) * SECTOR)
    assert check(disk, "live").exit_code == 0
    assert check(disk, "unclean").exit_code == 3


# -- bitmaps and batmap


def test_batmap_that_says_more_is_corrupt() -> None:
    picture = small()
    set_bits(picture.batmap_bits, 127, 1)
    one = only(findings(picture), "batmap-overstates")
    assert (one.severity, one.block, one.sectors) == ("corrupt", 127, (127 * 1024, 1024))


def test_batmap_that_calls_a_free_block_full_is_corrupt() -> None:
    picture = small()
    set_bits(picture.batmap_bits, 77, 1)
    one = only(findings(picture), "batmap-unallocated")
    assert (one.severity, one.block) == ("corrupt", 77)


def test_batmap_that_says_less_is_legal() -> None:
    picture = small()
    picture.batmap_bits = bytearray(16)
    report = check(picture.draw())
    assert only(report.findings, "batmap-behind").severity == "info"
    assert report.exit_code == 0


def test_batmap_checksum_and_place_are_unclean() -> None:
    picture = small()
    disk = picture.draw()
    disk.pwrite(picture.header.bat_end + SECTOR, b"\x01")
    assert only(check(disk).findings, "batmap-checksum").severity == "unclean"
    disk = picture.draw()
    disk.pwrite(picture.header.bat_end + 8, b"\x7f")
    assert "batmap-place" in [f.code for f in check(disk).findings]


def test_missing_batmap_is_unclean() -> None:
    picture = small()
    disk = picture.draw()
    disk.pwrite(picture.header.bat_end, bytes(8))
    assert only(check(disk).findings, "batmap-missing").severity == "unclean"


def test_a_block_over_an_unknown_batmap_loses_nothing() -> None:
    picture = Picture(64 * MIB, 512 << 10, batmap=False)
    picture.add(0)
    picture.footer = replace(picture.footer, creator_version=0x00010003)
    picture.copy = picture.footer
    picture.blocks[0] = picture.header.bat_end // SECTOR
    picture.end = picture.layout.end_sector(picture.blocks[0])
    report = check(picture.draw())
    assert {f.code for f in report.findings} == {"batmap-overwritten", "batmap-missing"}
    assert report.exit_code == 3


def test_a_short_last_block_is_unclean_until_data_is_missing() -> None:
    picture = small()
    data = picture.layout.data_sector(picture.blocks[127])
    disk = picture.draw(footer=False)
    disk.truncate((data + 6) * SECTOR)
    report = check(disk, "unclean")
    assert [f.code for f in report.findings if f.severity != "info"] == ["block-short"]
    assert report.exit_code == 3
    disk.truncate((data + 5) * SECTOR)
    one = next(f for f in check(disk, "unclean").findings if f.severity == "corrupt")
    assert (one.code, one.block, one.sectors) == ("data-past-end", 127, (127 * 1024 + 5, 1))


def test_without_bitmaps_the_batmap_speaks_for_full_blocks() -> None:
    picture = small()
    assert check(picture.draw(), bitmaps=False).findings == []
    recorded = RecordingStorage(picture.draw())
    check(recorded, bitmaps=False)
    assert recorded.reads < 12


# -- locators and fixed disks


def child(*locators: Locator) -> Picture:
    picture = Picture(64 * MIB, 512 << 10, disk_type=DIFFERENCING)
    picture.end += 8
    padded = locators + (Locator(),) * (8 - len(locators))
    picture.header = replace(picture.header, locators=padded)
    picture.add(0)
    return picture


def test_sound_locators_are_no_finding() -> None:
    assert (
        findings(
            child(Locator(b"W2ru", 512, 20, 0, 6 * SECTOR), Locator(b"MacX", 1, 20, 0, 7 * SECTOR))
        )
        == []
    )


@pytest.mark.parametrize(
    "locator",
    [
        Locator(b"W2ru", 513, 20, 0, 6 * SECTOR),
        Locator(b"W2ru", 512, 600, 0, 6 * SECTOR),
        Locator(b"W2ru", 0xFFFFFE00, 20, 0, 6 * SECTOR),
        Locator(b"W2ru", 512, 20, 0, 1 << 50),
        Locator(b"W2ru", 512, 20, 0, 3073),
    ],
)
def test_impossible_locators_are_corrupt(locator: Locator) -> None:
    assert only(findings(child(locator)), "locator").severity == "corrupt"


def test_block_on_a_locator_is_corrupt() -> None:
    picture = child(Locator(b"W2ru", 512, 20, 0, 15 * SECTOR))
    one = only(findings(picture), "block-on-metadata")
    assert "parent locator 1" in one.message


def test_unknown_locator_code_is_information() -> None:
    assert (
        only(findings(child(Locator(b"abcd", 512, 20, 0, 3072))), "locator-code").severity == "info"
    )


def fixed(data: int, size: int) -> MemoryStorage:
    footer = Footer(size, FIXED, Geometry.for_size(size), original_size=size)
    return MemoryStorage(bytes(data) + footer.pack())


def test_fixed_disk() -> None:
    assert check(fixed(MIB, MIB)).findings == []
    short = only(check(fixed(MIB - 1024, MIB)).findings, "fixed-too-short")
    assert (short.severity, short.sectors) == ("corrupt", (2046, 2))
    assert only(check(fixed(MIB + 512, MIB)).findings, "leaked-tail").severity == "unclean"


def test_fixed_disk_whose_guest_keeps_a_vhd_is_no_dynamic_disk() -> None:
    inner = Picture(MIB, 512 << 10).draw().getvalue()
    footer = Footer(MIB, FIXED, Geometry.for_size(MIB), original_size=MIB)
    assert check(MemoryStorage(inner.ljust(MIB, b"\0") + footer.pack())).findings == []


def test_a_flood_of_findings_is_cut_and_counted() -> None:
    picture = small()
    for block in range(40, 90):
        picture.blocks[block] = 1 << 31
    report = check(picture.draw(), limit=10)
    assert len(report.findings) == 11
    assert "40 more" in report.findings[-1].message


@pytest.mark.parametrize("read", [True, False])
def test_cost_is_linear_in_reads(read: bool) -> None:
    counts = []
    for size in (16 * MIB, 64 * MIB):
        picture = Picture(size, 512 << 10)
        for block in range(picture.header.max_entries):
            picture.data[block] = b""
            picture.blocks[block] = picture.layout.next_entry(picture.end)
            picture.bits[block] = bytearray(b"\xff" * 128)
            picture.end = picture.layout.end_sector(picture.blocks[block])
        recorded = RecordingStorage(picture.draw())
        assert check(recorded, bitmaps=read).exit_code == 0
        counts.append(recorded.reads)
    assert counts[1] - counts[0] == (96 if read else 0)
