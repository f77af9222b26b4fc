"""Repair: what it mends, what it leaves, that it can be taken back, and that it may be cut off."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import vhdtool
from tests.support.crash import survives
from tests.support.recording_storage import RecordingStorage
from tests.support.vhd_images import Picture
from vhdtool.cli.main import run
from vhdtool.errors import ImageExists, UnsupportedImage, UsageError
from vhdtool.image.chain.layers import Layer, Reader
from vhdtool.image.check.image import check
from vhdtool.image.edit.repair import plan, require_repairable
from vhdtool.image.journal.undo import apply, undo, write_journal
from vhdtool.image.metadata.ends import read_ends
from vhdtool.image.metadata.read import metadata_with
from vhdtool.storage import FileStorage, MemoryStorage
from vhdtool.vhd.bits import set_bits
from vhdtool.vhd.footer import FIXED, Footer
from vhdtool.vhd.geometry import NO_GEOMETRY, Geometry
from vhdtool.vhd.units import KILLED, SECTOR

MIB = 1 << 20


def small() -> Picture:
    picture = Picture(64 * MIB, 512 << 10)
    picture.add(3)
    picture.add(0, (0, 8), (1016, 8))
    return picture


def content(disk: MemoryStorage) -> list[bytes]:
    ends = read_ends(disk)
    footer = ends.best or ends.agreed
    assert footer is not None
    reader = Reader([Layer(disk, metadata_with(disk, ends, footer))])
    return [reader.read(0, 512 << 10), reader.read(3 * (512 << 10), 512 << 10)]


def no_footer() -> MemoryStorage:
    return small().draw(footer=False)


def killed() -> MemoryStorage:
    picture = small()
    disk = picture.draw(footer=False)
    disk.pwrite(picture.end * SECTOR, KILLED)
    return disk


def damaged_end() -> MemoryStorage:
    picture = small()
    disk = picture.draw()
    disk.pwrite(picture.end * SECTOR + 70, b"!!")
    return disk


def damaged_copy() -> MemoryStorage:
    disk = small().draw()
    disk.pwrite(0, b"!" * 512)
    return disk


def different() -> MemoryStorage:
    picture = small()
    picture.copy = replace(picture.footer, timestamp=99)
    return picture.draw()


def leaked_tail() -> MemoryStorage:
    picture = small()
    picture.end += 5000
    return picture.draw()


def tail_of_a_crash() -> MemoryStorage:
    picture = small()
    disk = picture.draw(footer=False)
    disk.pwrite(picture.end * SECTOR, b"data of a block that the BAT never got" * 100)
    return disk


def batmap_gone() -> MemoryStorage:
    picture = small()
    disk = picture.draw()
    disk.pwrite(picture.header.bat_end, bytes(2 * SECTOR))
    return disk


def batmap_wrong() -> MemoryStorage:
    picture = small()
    set_bits(picture.batmap_bits, 0, 1)
    set_bits(picture.batmap_bits, 77, 1)
    return picture.draw()


def batmap_checksum() -> MemoryStorage:
    picture = small()
    disk = picture.draw()
    disk.pwrite(picture.header.bat_end + 24, b"????")
    return disk


def batmap_overwritten() -> MemoryStorage:
    picture = Picture(64 * MIB, 512 << 10, batmap=False)
    picture.end = picture.header.bat_end // SECTOR
    picture.add(3)
    picture.blocks[3] = picture.end = picture.header.bat_end // SECTOR
    picture.end = picture.layout.end_sector(picture.end)
    picture.add(0)
    picture.footer = replace(picture.footer, creator_version=0x00010003)
    picture.copy = picture.footer
    return picture.draw()


def short_block() -> MemoryStorage:
    picture = Picture(64 * MIB, 512 << 10)
    picture.add(3)
    picture.add(0, (0, 8))
    disk = picture.draw(footer=False)
    disk.truncate((picture.layout.data_sector(picture.blocks[0]) + 20) * SECTOR)
    return disk


def no_geometry() -> MemoryStorage:
    picture = small()
    picture.footer = picture.copy = replace(picture.footer, geometry=NO_GEOMETRY)
    return picture.draw()


def stale_checksums() -> MemoryStorage:
    """Some tool changed a field of both footers and forgot what guards it."""
    picture = small()
    disk = picture.draw()
    for place in (0, picture.end * SECTOR):
        disk.pwrite(place + 24, b"\x12\x34\x56\x78")
    return disk


def resized_without_qemu() -> MemoryStorage:
    picture = small()
    picture.footer = picture.copy = replace(picture.footer, creator=b"qemu")
    return picture.draw()


DAMAGE = [
    no_geometry,
    stale_checksums,
    resized_without_qemu,
    no_footer,
    killed,
    damaged_end,
    damaged_copy,
    different,
    leaked_tail,
    tail_of_a_crash,
    batmap_gone,
    batmap_wrong,
    batmap_checksum,
    batmap_overwritten,
    short_block,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_repaired_image_is_consistent_and_keeps_its_data(
    damage: Callable[[], MemoryStorage],
) -> None:
    disk = damage()
    before = content(disk)
    assert check(disk).exit_code in (2, 3)
    result = plan(disk)
    assert result.changes
    apply(disk, result.changes)
    assert check(disk).findings == []
    assert content(disk) == before
    assert plan(disk).changes == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_planning_writes_nothing(damage: Callable[[], MemoryStorage]) -> None:
    recorded = RecordingStorage(damage())
    plan(recorded)
    assert recorded.log == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_repair_can_be_taken_back(damage: Callable[[], MemoryStorage], tmp_path: Path) -> None:
    disk = damage()
    before = disk.getvalue()
    result = plan(disk)
    journal = str(tmp_path / "undo")
    write_journal(journal, disk, result.changes)
    apply(disk, result.changes)
    assert disk.getvalue() != before
    undo(disk, journal)
    assert disk.getvalue() == before
    with pytest.raises(ImageExists):
        write_journal(journal, disk, result.changes)


@pytest.mark.parametrize("damage", DAMAGE)
def test_repair_that_is_cut_off_loses_nothing(damage: Callable[[], MemoryStorage]) -> None:
    start = damage()
    before = content(start)
    worst = check(start, "unclean").exit_code
    recorded = RecordingStorage(start.copy())
    apply(recorded, plan(recorded).changes)

    def judge(disk: MemoryStorage, durable: int) -> None:
        assert check(disk, "unclean").exit_code in (0, 3, worst)
        assert content(disk) == before
        again = plan(disk)
        apply(disk, again.changes)
        assert check(disk).findings == []

    assert survives(start, recorded.log, judge, 60) > 3


def test_damage_in_guest_data_stays_and_nothing_is_written() -> None:
    picture = small()
    picture.blocks[9] = picture.blocks[3]
    disk = picture.draw(footer=False)
    result = plan(disk)
    assert result.changes == []
    assert {one.code for one in result.unrepairable} == {"block-overlap"}
    with pytest.raises(UnsupportedImage, match="vhdtool check"):
        require_repairable(result)


def test_fixed_disk_gets_its_footer_back_to_its_place() -> None:
    footer = Footer(MIB, FIXED, Geometry.for_size(MIB), original_size=MIB)
    disk = MemoryStorage(bytes(MIB + 1024) + footer.pack())
    apply(disk, plan(disk).changes)
    assert check(disk).findings == []


def test_a_healthy_image_has_nothing_to_repair() -> None:
    assert plan(small().draw()).changes == []


def test_stale_checksums_prove_nothing_if_the_footers_differ() -> None:
    disk = stale_checksums()
    disk.pwrite(30, b"?")
    assert "footer-lost" in {one.code for one in plan(disk).unrepairable}
    picture = small()
    picture.footer = picture.copy = replace(picture.footer, cookie=b"v_poison")
    disk = picture.draw()
    for place in (0, picture.end * SECTOR):
        disk.pwrite(place + 24, b"\x12\x34\x56\x78")
    assert plan(disk).changes == []


def test_one_size_for_all_readers_never_hides_data() -> None:
    picture = Picture(64 * MIB, 512 << 10)
    picture.add(100)
    fields = {"creator": b"qemu", "current_size": 32 * MIB}
    picture.footer = picture.copy = replace(picture.footer, **fields)  # type: ignore[arg-type]
    disk = picture.draw()
    apply(disk, plan(disk).changes)
    assert {one.code for one in check(disk).findings} == {"block-beyond-size", "size-disagrees"}


def test_repair_exits_as_the_check_does_where_it_mends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = Picture(64 * MIB, 512 << 10)
    picture.add(0)
    picture.add(1, gap=2000)
    path = tmp_path / "disk.vhd"
    path.write_bytes(picture.draw().getvalue())
    assert run(["repair", str(path), "--yes"]) == run(["check", "-q", str(path)]) == 3
    out = capsys.readouterr().out
    assert "left: leaked-block" in out
    assert "vhdtool convert" in out
    child = tmp_path / "child.vhd"
    vhdtool.snapshot(path, child)
    path.unlink()
    assert run(["repair", str(child), "--yes", "--json"]) == run(["check", "-q", str(child)]) == 2
    told = json.loads(capsys.readouterr().out)
    assert [one["code"] for one in told["left"]] == ["parent-missing"]
    assert "modify" in told["advice"][0]


def test_a_second_repair_does_not_lose_the_journal_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "disk.vhd"
    path.write_bytes(no_footer().getvalue())
    assert run(["repair", str(path), "--yes"]) == 0
    kept = (tmp_path / "disk.vhd.undo").read_bytes()
    path.write_bytes(killed().getvalue())
    assert run(["repair", str(path), "--yes"]) == 1
    assert "--journal" in capsys.readouterr().err
    assert (tmp_path / "disk.vhd.undo").read_bytes() == kept
    assert run(["repair", str(path), "--yes", "--journal", str(tmp_path / "j")]) == 0


def test_journals_of_other_kinds_are_refused(tmp_path: Path) -> None:
    disk = small().draw()
    for text in (
        "",
        "[]",
        '{"schema": 2, "size": 1, "old": []}',
        '{"schema": 1, "size": 1, "old": [[0, 9]]}',
    ):
        (tmp_path / "j").write_text(text)
        with pytest.raises(UsageError, match="journal"):
            undo(disk, str(tmp_path / "j"))


def test_repair_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "disk.vhd"
    path.write_bytes(no_footer().getvalue())
    before = path.read_bytes()
    assert run(["repair", str(path)]) == 3
    assert path.read_bytes() == before
    assert "would: write the footer" in capsys.readouterr().out
    assert run(["repair", str(path), "--yes", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["written"] is True
    assert sorted(os.listdir(tmp_path)) == ["disk.vhd", "disk.vhd.undo"]
    with FileStorage(path) as disk:
        assert check(disk).exit_code == 0
    assert run(["repair", str(path)]) == 0
    assert run(["repair", str(path), "--undo", result["journal"]]) == 0
    assert path.read_bytes() == before


def test_repair_command_leaves_what_it_cannot_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = small()
    picture.blocks[9] = picture.blocks[3]
    path = tmp_path / "disk.vhd"
    path.write_bytes(picture.draw(footer=False).getvalue())
    before = path.read_bytes()
    assert run(["repair", str(path), "--yes"]) == 2
    assert path.read_bytes() == before
    assert "block-overlap" in capsys.readouterr().out
    assert run(["repair", str(tmp_path / "none.vhd")]) == 1
