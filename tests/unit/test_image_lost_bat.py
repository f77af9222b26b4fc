"""A lost BAT: blocks are found by their pattern, and placed only where evidence puts them."""

import json
import struct
from pathlib import Path

import pytest

from tests.support.vhd_images import Picture
from tests.unit.test_image_lost_header import packed
from vhdtool.cli.main import run
from vhdtool.errors import CorruptImage
from vhdtool.image.salvage.files import FileHit, files_within
from vhdtool.image.salvage.mapfile import mapfile
from vhdtool.image.salvage.ntfs import ntfs_volumes
from vhdtool.image.salvage.open import open_salvage
from vhdtool.image.salvage.partitions import Partition, partitions
from vhdtool.storage import MemoryStorage
from vhdtool.vhd.units import SECTOR

MIB = 1 << 20
BLOCK = 512 << 10
PER_BLOCK = BLOCK // SECTOR


def mbr(start: int) -> bytes:
    entry = struct.pack("<B3xB3xII", 0, 7, start, 4 * PER_BLOCK)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def ntfs_boot(hidden: int, total: int, tables: int = 4) -> bytes:
    raw = bytearray(SECTOR)
    raw[3:11] = b"NTFS    "
    struct.pack_into("<HB", raw, 11, SECTOR, 8)
    struct.pack_into("<I", raw, 28, hidden)
    struct.pack_into("<QQQ", raw, 40, total, tables, tables)
    raw[510:] = b"\x55\xaa"
    return bytes(raw)


def ext_superblock(group: int) -> bytes:
    """With blocks of 1 KiB, and 512 of them in a group."""
    raw = bytearray(1024)
    struct.pack_into("<II", raw, 0, 100, 4000)
    struct.pack_into("<IIII", raw, 20, 1, 0, 0, 512)
    raw[56:58] = b"\x53\xef"
    struct.pack_into("<H", raw, 90, group)
    return bytes(raw)


def disk(contents: dict[int, dict[int, bytes]], size: int = 8 * MIB) -> Picture:
    """Blocks in the order of `contents`, with data at sectors within each."""
    picture = Picture(size, BLOCK, batmap=False)
    for block, parts in contents.items():
        picture.add(block, fill=0x41 + block)
        data = bytearray(picture.data[block])
        for sector, raw in parts.items():
            data[sector * SECTOR : sector * SECTOR + len(raw)] = raw
        picture.data[block] = bytes(data)
    return picture


def without_bat(picture: Picture, path: Path, fill: bytes = b"\0", start: int = 3) -> Path:
    raw = bytearray(picture.draw().getvalue())
    raw[start * SECTOR : 4 * SECTOR] = fill * ((4 - start) * SECTOR)
    path.write_bytes(raw)
    return path


def placed(path: Path) -> dict[int, str]:
    with open_salvage(path, place_orphans=True) as salvage:
        return {one.orphan.guest: one.orphan.reason for one in salvage.placed}


STATED = {
    0: {0: mbr(2 * PER_BLOCK)},
    2: {0: ntfs_boot(2 * PER_BLOCK, 8 * PER_BLOCK - 1)},
    3: {},
    4: {},
    9: {PER_BLOCK - 1: ntfs_boot(2 * PER_BLOCK, 8 * PER_BLOCK - 1)},
    12: {},
}


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x3c"])
@pytest.mark.parametrize("start", [1, 3])
def test_stated_positions_are_used_and_others_left(tmp_path: Path, fill: bytes, start: int) -> None:
    picture = disk(STATED)
    path = without_bat(picture, tmp_path / "a.vhd", fill, start)
    before = path.read_bytes()
    with open_salvage(path, place_orphans=True) as salvage:
        found = {one.orphan.guest: one.orphan.entry for one in salvage.placed}
        # Between 2 and 9 six blocks are free and two were found; behind 9 one of six.
        assert found == {block: picture.blocks[block] for block in (0, 2, 9)}
        assert [one.orphan.entry for one in salvage.orphans] == [
            picture.blocks[block] for block in (3, 4, 12)
        ]
        for block in (0, 2, 9):
            assert salvage.read(block * BLOCK, BLOCK) == picture.data[block]
        assert salvage.guessed() == [(block * BLOCK, (block + 1) * BLOCK) for block in (0, 2, 9)]
        if fill != b"\xff" or start == 1:
            # Entries that were erased look free.
            assert sum(one.length for one in salvage.lost()) == 13 * BLOCK
        assert salvage.exit_code == 2
    with open_salvage(path) as salvage:
        assert salvage.placed == []
        assert salvage.read(0, 8 * MIB).count(0) == 8 * MIB
    assert path.read_bytes() == before


def test_blocks_between_stated_ones_are_placed_if_all_are_there(tmp_path: Path) -> None:
    contents = {block: STATED.get(block, {}) for block in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)}
    path = without_bat(disk(contents), tmp_path / "a.vhd")
    found = placed(path)
    assert sorted(found) == list(range(10))
    assert "the blocks of the file are in order" in found[5]
    assert "the boot sector of NTFS" in found[2]


def test_blocks_out_of_order_are_placed_by_statements_only(tmp_path: Path) -> None:
    contents = {block: STATED.get(block, {}) for block in (9, 3, 4, 5, 6, 7, 8, 2, 1, 0)}
    assert sorted(placed(without_bat(disk(contents), tmp_path / "a.vhd"))) == [0, 2, 9]


def test_two_blocks_that_state_one_position_are_not_placed(tmp_path: Path) -> None:
    boot = {0: ntfs_boot(2 * PER_BLOCK, 100)}
    path = without_bat(disk({2: boot, 5: boot}), tmp_path / "a.vhd")
    assert placed(path) == {}


def test_superblocks_of_ext_state_the_position_of_their_group(tmp_path: Path) -> None:
    contents = {
        0: {0: mbr(PER_BLOCK)},
        1: {2: ext_superblock(0)},
        2: {2: ext_superblock(1)},
        4: {2: ext_superblock(3)},
    }
    found = placed(without_bat(disk(contents), tmp_path / "a.vhd"))
    assert sorted(found) == [0, 1, 2, 4]


def test_without_statements_nothing_is_placed(tmp_path: Path) -> None:
    path = without_bat(disk({block: {} for block in (0, 1, 2)}), tmp_path / "a.vhd")
    assert placed(path) == {}
    full = without_bat(disk({block: {} for block in range(16)}), tmp_path / "b.vhd")
    assert sorted(placed(full)) == list(range(16))


def test_a_damaged_bat_without_header_keeps_its_entries(tmp_path: Path) -> None:
    picture = disk(STATED)
    raw = bytearray(picture.draw().getvalue())
    raw[SECTOR : 3 * SECTOR] = bytes(2 * SECTOR)
    raw[3 * SECTOR + 8 : 3 * SECTOR + 12] = bytes(4)
    path = tmp_path / "a.vhd"
    path.write_bytes(raw)
    with open_salvage(path) as salvage:
        assert "5 of 6 blocks" in salvage.notes[0]
        assert [one.start for one in salvage.lost()] == [2 * BLOCK]
        for block in (0, 3, 4, 9, 12):
            assert salvage.read(block * BLOCK, BLOCK) == picture.data[block]


@pytest.mark.parametrize("bat", ["damaged", "lost"])
def test_blocks_of_unknown_size_are_guesses(bat: str, tmp_path: Path) -> None:
    """A block with little data can be one of several sizes: its entry could lead anywhere."""
    raw = packed(4 * BLOCK, (3,), 64 * MIB, full=False)
    raw[SECTOR : 3 * SECTOR] = bytes(2 * SECTOR)
    table = 3 * SECTOR
    if bat == "lost":
        raw[table : table + SECTOR] = bytes(SECTOR)
    else:
        raw[table + 32 : table + 36] = bytes([0, 0, 0, 9])
    path = tmp_path / "a.vhd"
    path.write_bytes(raw)
    with open_salvage(path) as salvage:
        (note,) = [one for one in salvage.notes if "nothing shows which" in one]
        assert all(size in note for size in ("512 KiB", "1 MiB", "2 MiB"))
        (lost,) = salvage.lost()
        assert (lost.start, lost.length) == (0, 64 * MIB)
        assert "nothing shows the size of its blocks" in lost.reason


def test_without_blocks_nothing_is_copied(tmp_path: Path) -> None:
    path = without_bat(disk({}), tmp_path / "a.vhd", start=1)
    raw = bytearray(path.read_bytes())
    path.write_bytes(raw[: 4 * SECTOR] + bytes(4 * MIB) + raw[-SECTOR:])
    with pytest.raises(CorruptImage, match="no block can be recognized"):
        open_salvage(path)
    assert run(["read", "--salvage", str(path), "-o", str(tmp_path / "raw")]) == 1
    assert not (tmp_path / "raw").exists()


def test_the_command_marks_guesses_in_list_and_mapfile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = without_bat(disk(STATED), tmp_path / "a.vhd")
    out, table = tmp_path / "raw", tmp_path / "map"
    words = ["read", "--salvage", str(path), "--place-orphans", "--mapfile", str(table)]
    assert run([*words, "-o", str(out)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("placed (a guess): the block at sector ")
    assert "3 blocks were placed by evidence, which is a guess" in lines[-1]
    rows = [line.split() for line in table.read_text().splitlines() if line[0] != "#"]
    assert rows[0] == ["0x00800000", "+", "1"]
    assert rows[1] == ["0x00000000", "0x00080000", "/"]
    assert sum(int(row[1], 16) for row in rows[1:]) == out.stat().st_size == 8 * MIB
    assert {row[2] for row in rows[1:]} == {"/", "-"}
    out.unlink()
    assert run([*words, "-o", str(out)]) == 1  # the mapfile is there already
    table.unlink()
    capsys.readouterr()
    assert run([*words, "-o", str(tmp_path / "raw2"), "--json"]) == 2
    assert [one["block"] for one in json.loads(capsys.readouterr().out)["placed"]] == [0, 2, 9]
    words = ["convert", "--salvage", "--place-orphans", str(path), str(tmp_path / "new.vhd")]
    assert run(words) == 2
    assert run(["check", "-q", str(tmp_path / "new.vhd")]) == 0
    assert run(["read", str(path), "--mapfile", str(table)]) == 1


def test_a_mapfile_has_no_gaps_and_loss_outranks_a_guess() -> None:
    text = mapfile(100, [(10, 30), (30, 40)], [(20, 50), (90, 200)], "a\nb")
    rows = [line.split() for line in text.splitlines() if line[0] != "#"]
    assert [(int(a, 16), int(b, 16), c) for a, b, c in rows[1:]] == [
        (0, 10, "+"),
        (10, 30, "-"),
        (40, 10, "/"),
        (50, 40, "+"),
        (90, 10, "/"),
    ]


def test_thousands_of_lost_blocks_are_a_few_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = Picture(3000 * BLOCK, BLOCK)
    raw = bytearray(picture.draw().getvalue())
    start = picture.header.bat_offset
    raw[start : start + 4 * 3000] = struct.pack(">3000I", *range(1 << 30, (1 << 30) + 3000))
    path = tmp_path / "a.vhd"
    path.write_bytes(raw)
    for words in (["damage", str(path)], ["read", "--salvage", str(path), "--length", "1g"]):
        assert run([*words, *(["-o", str(tmp_path / "raw")] if words[0] == "read" else [])]) == 2
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) < 6
        assert "more of this kind)" in lines[0]


# NTFS by the copy of its boot sector


def volume(start: int, total: int, hidden: int | None = None, boot: bool = True) -> MemoryStorage:
    """A volume whose file table is at its cluster 4."""
    storage = MemoryStorage(bytes((start + total + 1 + 2048) * SECTOR))
    raw = ntfs_boot(start if hidden is None else hidden, total)
    if boot:
        storage.pwrite(start * SECTOR, raw)
    storage.pwrite((start + total) * SECTOR, raw)
    storage.pwrite((start + 32) * SECTOR, b"FILE")
    return storage


@pytest.mark.parametrize("hidden", [None, 0])
@pytest.mark.parametrize(("start", "total"), [(2048, 4095), (63, 255 * 63 - 64)])
def test_ntfs_is_found_by_the_copy_of_its_boot_sector(
    hidden: int | None, start: int, total: int
) -> None:
    storage = volume(start, total, hidden, boot=False)
    (one,) = partitions(storage.pread, storage.size())
    assert (one.start, one.length) == (start * SECTOR, (total + 1) * SECTOR)
    assert (one.system, one.boot_copy) == ("ntfs", (start + total) * SECTOR)
    storage = volume(start, total, hidden)
    (found,) = ntfs_volumes(storage.pread, storage.size())
    assert (found.start, found.boot_copy) == (start * SECTOR, None)


def test_a_copy_in_a_partition_of_the_table_names_it() -> None:
    storage = volume(2 * PER_BLOCK, 4 * PER_BLOCK - 1, boot=False)
    storage.pwrite(0, mbr(2 * PER_BLOCK))
    (one,) = partitions(storage.pread, storage.size())
    assert (one.number, one.system) == (1, "ntfs")
    assert one.boot_copy == (6 * PER_BLOCK - 1) * SECTOR


def test_a_boot_sector_that_nothing_confirms_is_no_volume() -> None:
    storage = volume(2048, 4095, hidden=77)
    storage.pwrite((2048 + 32) * SECTOR, bytes(4))
    assert ntfs_volumes(storage.pread, storage.size()) == []


def test_files_count_their_bytes_and_not_their_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def get_size(self) -> int:
            return 200_001

        def get_number_of_extents(self) -> int:
            return 2

        def get_extent(self, index: int) -> tuple[int, int, int]:
            return (index * 131072, 131072, 0)

        def get_number_of_sub_file_entries(self) -> int:
            return 0

    class Volume:
        def open_file_object(self, file: object) -> None:
            pass

        def get_root_directory(self) -> Entry:
            return Entry()

        def close(self) -> None:
            pass

    monkeypatch.setitem(
        __import__("sys").modules, "pyfsext", type("library", (), {"volume": Volume})
    )
    part = Partition(1, 0, MIB, "", "ext")
    assert files_within(lambda offset, length: b"", part, [(0, MIB)]) == [
        FileHit("/", 200_001, 200_001)
    ]
