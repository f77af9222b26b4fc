"""Blocks whose BAT entry is lost: named as a probable loss, exported, never dropped silently."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import vhdtool
from tests.support.vhd_images import Picture
from vhdtool.cli.main import run
from vhdtool.image.check.image import check
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.edit.repair import plan
from vhdtool.image.journal.undo import apply
from vhdtool.image.metadata.findings import Finding
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage, MemoryStorage
from vhdtool.storage.base import BorrowedStorage
from vhdtool.vhd.bits import set_bits
from vhdtool.vhd.units import SECTOR

MIB = 1 << 20
BLOCK = 512 << 10


def filled(*blocks: int, size: int = 4 * MIB, batmap: bool = False) -> Picture:
    """Blocks of other data each; without a batmap nothing but their order tells their number."""
    picture = Picture(size, BLOCK, batmap)
    for block in blocks:
        picture.add(block, fill=0x41 + block)
    return picture


def orphans(disk: MemoryStorage, mode: str = "strict") -> list[Finding]:
    found = check(disk, mode).findings  # type: ignore[arg-type]
    assert {one.code for one in found if one.severity == "corrupt"} == set()
    return [one for one in found if one.code == "orphan-block"]


@pytest.mark.parametrize("block", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_each_lost_entry_of_an_ordered_disk_names_its_block(block: int, packed: bool) -> None:
    picture = filled(0, 1, 2, 3, 4)
    if packed:
        # As QEMU and Microsoft place them, with bitmaps that are padded with ones.
        for number in picture.blocks:
            picture.blocks[number] = picture.header.bat_end // SECTOR + number * 1025
            picture.bits[number] = bytearray(b"\xff" * SECTOR)
        picture.end = picture.layout.end_sector(picture.blocks[4])
        picture.footer = picture.copy = replace(picture.footer, creator=b"win ")
    entry = picture.lose(block)
    (one,) = orphans(picture.draw())
    assert (one.severity, one.block, one.offset) == ("unclean", block, entry * SECTOR)
    assert one.sectors == (block * 1024, 1024)
    assert "probable loss" in one.message
    assert [one.code for one in check(picture.draw()).findings] == ["orphan-block"]


def test_without_an_order_no_number_is_said() -> None:
    picture = filled(4, 1, 3, 0)
    picture.lose(3)
    (one,) = orphans(picture.draw())
    assert (one.block, one.sectors) == (None, None)
    assert "may be" not in one.message


def test_gaps_of_numbers_between_neighbours_leave_it_open() -> None:
    picture = filled(0, 2, 5)
    picture.lose(2)
    assert [one.block for one in orphans(picture.draw())] == [None]


def test_lost_entries_in_a_row_are_numbered_where_all_fit() -> None:
    picture = filled(0, 1, 2, 3, 4, 5)
    for block in (1, 2, 4):
        picture.lose(block)
    assert [one.block for one in orphans(picture.draw())] == [1, 2, 4]


def test_a_batmap_that_calls_a_free_block_full_tells_the_number() -> None:
    picture = filled(4, 1, 3, 0, batmap=True)
    picture.lose(3)
    report = check(picture.draw())
    assert [one.code for one in report.findings] == ["batmap-unallocated", "orphan-block"]
    assert report.findings[1].block == 3
    assert report.exit_code == 2


def test_the_last_free_block_is_the_only_one_it_can_be() -> None:
    picture = filled(4, 1, 3, 0, 2, 7, 5, 6)
    picture.lose(7)
    assert [one.block for one in orphans(picture.draw())] == [7]


def test_a_partition_table_tells_the_number() -> None:
    picture = filled(4, 1, 3, 0, 7)
    head = bytearray(b"EFI PART".ljust(SECTOR, b"\0"))
    picture.data[0] = (bytes(510) + b"\x55\xaa" + bytes(head)).ljust(BLOCK, b"\0")
    head[24:32] = (7 * 1024 + 1023).to_bytes(8, "little")
    picture.data[7] = bytes(BLOCK - SECTOR) + bytes(head)
    picture.lose(0)
    picture.lose(7)
    assert [one.block for one in orphans(picture.draw())] == [0, 7]


def test_room_that_was_cleared_for_blocks_is_no_orphan() -> None:
    """As a shim leaves it that was killed: bitmaps of nothing, or full ones over zeros."""
    picture = filled(0, 1)
    end = picture.end
    for block in (2, 3, 4):
        picture.add(block, fill=0)
        picture.lose(block)
    for block in (5, 6):
        picture.add(block, fill=0x61)
        picture.bits[block] = bytearray(128)
        picture.lose(block)
    assert orphans(picture.draw(footer=False), "unclean") == []
    (tail,) = [one for one in check(picture.draw()).findings if one.code == "leaked-tail"]
    assert tail.offset == end * SECTOR
    picture.data[4] = bytes(BLOCK - 1) + b"!"
    (one,) = orphans(picture.draw(footer=False), "unclean")
    assert one.offset == picture.lost[4] * SECTOR
    assert one.severity == "unclean"


def test_other_data_in_a_gap_is_leaked_space() -> None:
    dice = random.Random(7)
    for data in (b"any text that is longer than a bitmap. " * 40_000, dice.randbytes(3 * BLOCK)):
        picture = filled(0)
        at = picture.end
        picture.end += 3 * 1032
        disk = picture.draw()
        disk.pwrite(at * SECTOR, data[: 3 * 1032 * SECTOR])
        assert [one.code for one in check(disk).findings] == ["leaked-tail"]


def test_a_footer_that_was_left_behind_is_no_bitmap() -> None:
    block = 4 * BLOCK
    picture = Picture(4 * MIB, block)
    picture.add(0, fill=0x41)
    at = picture.end
    picture.end += 3 * picture.layout.stride
    disk = picture.draw()
    disk.pwrite(at * SECTOR, picture.footer.pack() + b"d" * 2 * block)
    assert [one.code for one in check(disk).findings] == ["leaked-tail"]


def test_a_half_written_block_counts_by_its_bitmap() -> None:
    picture = filled(0, 1)
    picture.add(2, (16, 8), (512, 64))
    data = bytearray(BLOCK)
    data[16 * SECTOR : 24 * SECTOR] = b"d" * 8 * SECTOR
    data[512 * SECTOR : 576 * SECTOR] = b"d" * 64 * SECTOR
    # A write that was under way: its sectors are there, its bits are not yet.
    data[600 * SECTOR : 608 * SECTOR] = b"w" * 8 * SECTOR
    picture.data[2] = bytes(data)
    picture.lose(2)
    disk = picture.draw()
    (one,) = orphans(disk)
    assert "72 sectors" in one.message
    short = picture.draw(footer=False)
    short.truncate((picture.layout.data_sector(picture.lost[2]) + 700) * SECTOR)
    assert len(orphans(short, "unclean")) == 1


def test_in_a_live_image_it_may_be_an_allocation_under_way() -> None:
    picture = filled(0, 1, 2)
    picture.lose(1)
    assert [one.severity for one in orphans(picture.draw(footer=False), "live")] == ["info"]
    assert check(picture.draw(footer=False), "live").exit_code == 0


@pytest.mark.parametrize("block", [1, 3])
def test_a_repair_keeps_orphans_unless_told(block: int) -> None:
    picture = filled(0, 1, 2, 3)
    picture.lose(block)
    disk = picture.draw(footer=False)
    apply(disk, plan(disk).changes)
    assert [one.code for one in check(disk).findings] == ["orphan-block"]
    assert plan(disk).changes == []
    entry = picture.lost[block]
    assert disk.pread(picture.layout.data_offset(entry), BLOCK) == bytes([0x41 + block]) * BLOCK
    apply(disk, plan(disk, drop_orphans=True).changes)
    assert {one.code for one in check(disk).findings} <= {"leaked-block"}
    assert read_metadata(disk).bat[0] == picture.blocks[0]


def test_a_repair_leaves_the_batmap_that_proves_a_loss() -> None:
    picture = filled(0, 1, 2, 3, batmap=True)
    picture.lose(1)
    disk = picture.draw(footer=False)
    assert plan(disk).changes == []
    assert [one.code for one in plan(disk).unrepairable] == ["batmap-unallocated"]
    apply(disk, plan(disk, drop_orphans=True).changes)
    assert [one.code for one in check(disk).findings] == ["leaked-block"]


def test_commands_name_and_export_it(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    picture = filled(0, 1, 2, 3, 6)
    picture.add(5, (8, 16))
    picture.data[5] = bytes(8 * SECTOR) + b"Z" * 16 * SECTOR + bytes(1000 * SECTOR)
    picture.lose(2)
    picture.lose(5)
    path, raw, found = tmp_path / "a.vhd", tmp_path / "a.raw", tmp_path / "lost+found"
    before = picture.draw().getvalue()
    path.write_bytes(before)
    assert run(["check", str(path)]) == 3
    out = capfdbinary.readouterr().out.decode()
    assert "probable loss" in out
    assert "it may be block 2" in out
    assert f"--salvage {path} --orphans DIR" in out
    assert run(["damage", "--json", str(path)]) == 2
    told = json.loads(capfdbinary.readouterr().out)
    assert [one["block"] for one in told["orphans"]] == [2, None]
    assert told["lost"] == []
    assert told["partitions"][0]["damaged"] == BLOCK
    assert run(["read", "--salvage", str(path), "-o", str(raw), "--orphans", str(found)]) == 2
    assert "2 blocks of data that no BAT entry names" in capfdbinary.readouterr().out.decode()
    table = json.loads((found / "orphans.json").read_text())
    assert [one["block"] for one in table] == [2, None]
    assert table[1]["present"] == [[8, 16]]
    assert (found / table[0]["file"]).read_bytes() == b"C" * BLOCK
    assert (found / table[1]["file"]).read_bytes() == picture.data[5]
    assert sorted(one.name for one in found.iterdir()) == sorted(
        ["orphans.json", *(one["file"] for one in table)]
    )
    assert run(["repair", str(path), "--yes"]) == 3
    assert "--drop-orphans" in capfdbinary.readouterr().out.decode()
    assert path.read_bytes() == before
    assert run(["repair", str(path), "--yes", "--drop-orphans"]) == 3
    assert "leaked-block" in capfdbinary.readouterr().out.decode()
    assert run(["repair", str(path), "--undo", f"{path}.undo"]) == 0
    assert path.read_bytes() == before


def test_an_export_that_cannot_be_done_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = filled(0, 1, 2)
    picture.lose(0)
    picture.lose(1)
    path, found = tmp_path / "a.vhd", tmp_path / "found"
    path.write_bytes(picture.draw().getvalue())
    found.mkdir()
    (found / f"a.vhd-sector-{picture.lost[1]}-maybe-block-1.raw").write_bytes(b"mine")
    words = ["read", "--salvage", str(path), "-o", str(tmp_path / "raw"), "--orphans", str(found)]
    assert run(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert [one.read_bytes() for one in found.iterdir()] == [b"mine"]
    assert run(["read", str(path), "--orphans", str(found)]) == 1
    assert "--salvage" in capsys.readouterr().err


def test_nothing_is_exported_where_there_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    path.write_bytes(filled(0, 1).draw().getvalue())
    words = ["read", "--salvage", str(path), "-o", str(tmp_path / "r"), "--orphans"]
    assert run([*words, str(tmp_path / "found")]) == 0
    assert not (tmp_path / "found").exists()


def test_a_lost_table_leaves_every_block_to_be_exported() -> None:
    picture = filled(*range(8))
    for block in range(8):
        picture.lose(block)
    found = orphans(picture.draw())
    assert [one.offset for one in found] == [entry * SECTOR for entry in picture.lost.values()]
    assert {one.block for one in found} == {None}
    bits = bytearray(128)
    set_bits(bits, 0, 1024)
    picture.bits[3] = bits
    picture.data[3] = bytes(BLOCK)
    assert len(orphans(picture.draw())) == 7


def test_each_command_says_what_it_would_drop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = filled(0, 1, 2, 3)
    picture.lose(2)
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"

    def said(*words: str, quiet: bool = False) -> bool:
        base.write_bytes(picture.draw().getvalue())
        child.unlink(missing_ok=True)
        assert run(["snapshot", "-q", str(base), str(child)]) == 0
        capsys.readouterr()
        assert run([*words, *(["-q"] if quiet else [])]) == 0
        err = capsys.readouterr().err
        assert "1 block of data that no BAT entry names" in err or not err
        return bool(err)

    copies = (tmp_path / "out").with_suffix
    assert said("convert", str(base), str(copies(".vhd")))
    assert said("convert", str(child), str(copies(".raw")))
    assert said("convert", str(base), str(copies(".qcow2")))
    assert said("resize", str(base), "8m")
    assert said("fill", str(base))
    assert said("coalesce", str(child))
    assert said("coalesce", str(child), "--all")
    assert not said("convert", "--force", str(base), str(copies(".vhd")), quiet=True)
    picture.blocks.update(picture.lost)
    assert not said("resize", str(base), "8m")
    assert not said("coalesce", str(child))


def writes(path: Path) -> None:
    """New blocks, as a server or `fill` writes them."""
    with vhdtool.open(path, writable=True) as image:
        image.write(6 * BLOCK, b"new" * 1000)
        image.write(7 * BLOCK, b"new" * 1000)


def grows(path: Path) -> None:
    assert run(["resize", "-q", str(path), "6g"]) == 0


def shrinks(path: Path) -> None:
    assert run(["resize", "-q", str(path), "2m"]) == 0


def moves_locators(path: Path) -> None:
    folder = path.parent / ("x" * 200) / ("y" * 200)
    folder.mkdir(parents=True)
    (path.parent / "base.vhd").rename(folder / "base.vhd")
    assert run(["modify", "-q", str(path), "--parent", str(folder / "base.vhd")]) == 0


@pytest.mark.parametrize("change", [writes, grows, shrinks, moves_locators])
def test_no_writer_of_a_closed_image_touches_its_orphans(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    base, path = tmp_path / "base.vhd", tmp_path / "image.vhd"
    if change is moves_locators:
        vhdtool.create(base, 4 * MIB)
        snapshot(base, path, block_bytes=BLOCK, batmap=False)
    else:
        vhdtool.create(path, 4 * MIB, block_bytes=BLOCK, batmap=False)
    with vhdtool.open(path, writable=True) as image:
        image.write(5 * BLOCK, bytes(BLOCK))
        for block in range(4):
            image.write(block * BLOCK, bytes([0x41 + block]) * BLOCK)
    with FileStorage(path, writable=True) as storage:
        meta = read_metadata(storage)
        assert meta.header is not None
        for block in (2, 3):
            storage.pwrite(meta.header.bat_offset + 4 * block, b"\xff" * 4)
        lost = [meta.bat[2], meta.bat[3]]
    change(path)
    with FileStorage(path) as storage:
        found = [one for one in check(storage).findings if one.severity != "info"]
        layout = read_metadata(storage).layout
        assert layout is not None
        for place, letter in zip(lost, b"CD", strict=True):
            assert storage.pread(layout.data_offset(place), BLOCK) == bytes([letter]) * BLOCK
    places = [one.offset for one in found if one.code == "orphan-block"]
    assert places == [place * SECTOR for place in lost]
    assert {one.code for one in found} <= {"orphan-block", "leaked-block"}


def test_larger_tables_do_not_go_over_an_orphan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = filled(0, 1, 2)
    picture.lose(0)
    path = tmp_path / "a.vhd"
    path.write_bytes(picture.draw().getvalue())
    before = path.read_bytes()
    assert run(["resize", str(path), "6g"]) == 1
    assert "no BAT entry names" in capsys.readouterr().err.splitlines()[-1]
    assert path.read_bytes() == before
    assert run(["resize", "-q", str(path), "3m"]) == 0


def test_the_space_of_a_cut_off_allocation_is_used_again() -> None:
    picture = filled(0, 1)
    picture.add(2, fill=0x43)
    entry = picture.lose(2)
    disk = picture.draw(footer=False)
    image = DynamicDisk(BorrowedStorage(disk), unclean=True)
    image.write(5 * BLOCK, b"x" * 512)
    image.close()
    assert read_metadata(disk).bat[5] == entry
    assert check(disk).findings == []
