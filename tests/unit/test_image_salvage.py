"""Damaged images: what can be trusted comes out, and the rest is listed."""

import errno
import json
import os
import struct
from pathlib import Path

import pytest

import vhdtool
from tests.support.image_tools import content, write
from tests.support.vhd_images import Picture
from vhdtool.cli.main import run
from vhdtool.errors import NotAVhd
from vhdtool.image.chain.layers import Layer
from vhdtool.image.metadata.read import read_metadata
from vhdtool.image.salvage.open import open_salvage
from vhdtool.image.salvage.partitions import file_system, partitions
from vhdtool.image.salvage.reader import DoubtfulLayer, Lost, Salvage
from vhdtool.storage import MemoryStorage, StorageError
from vhdtool.vhd.units import SECTOR

MIB = 1 << 20
BLOCK = 512 << 10


def picture() -> Picture:
    result = Picture(4 * MIB, BLOCK)
    for block in (0, 2, 3, 5):
        result.add(block, fill=0x41 + block)
    return result


def saved(path: Path, image: Picture, footer: bool = True) -> Path:
    path.write_bytes(image.draw(footer).getvalue())
    return path


def shown(*blocks: int) -> bytes:
    """The picture's content, where only some blocks are left."""
    return b"".join(
        (bytes([0x41 + block]) if block in blocks else b"\0") * BLOCK for block in range(8)
    )


def spans(lost: list[Lost]) -> list[tuple[int, int]]:
    return [(one.start // BLOCK, one.length // SECTOR) for one in lost]


def test_a_sound_image_loses_nothing(tmp_path: Path) -> None:
    with open_salvage(saved(tmp_path / "a.vhd", picture())) as salvage:
        assert salvage.lost() == []
        assert salvage.notes == []
        assert salvage.read(0, 5 * MIB) == shown(0, 2, 3, 5)


def test_overlapping_blocks_are_given_up_and_the_others_kept(tmp_path: Path) -> None:
    image = picture()
    image.blocks[3] = image.blocks[2]
    del image.data[3], image.bits[3]
    with open_salvage(saved(tmp_path / "a.vhd", image)) as salvage:
        assert salvage.read(0, 4 * MIB) == shown(0, 5)
        assert spans(salvage.lost()) == [(2, 1024), (3, 1024)]
        assert all("block-overlap" in one.reason for one in salvage.lost())


@pytest.mark.parametrize("entry", [0, 0xFFFFFF00, 1_000_000])
def test_blocks_that_point_nowhere(tmp_path: Path, entry: int) -> None:
    image = picture()
    image.blocks[2] = entry
    del image.data[2], image.bits[2]
    with open_salvage(saved(tmp_path / "a.vhd", image)) as salvage:
        assert salvage.read(0, 4 * MIB) == shown(0, 3, 5)
        assert spans(salvage.lost()) == [(2, 1024)]


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.vhd", picture())
    place = picture().layout
    os.truncate(path, (place.data_offset(read_metadata(picture().draw()).bat[5])) + 100 * SECTOR)
    with open_salvage(path) as salvage:
        data = salvage.read(0, 4 * MIB)
        assert data[: 5 * BLOCK] == shown(0, 2, 3)[: 5 * BLOCK]
        assert data[5 * BLOCK :] == b"F" * 100 * SECTOR + bytes(3 * BLOCK - 100 * SECTOR)
        assert spans(salvage.lost()) == [(5, 924)]


def test_no_footer_is_left(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.vhd", picture(), footer=False)
    with path.open("r+b") as file:
        file.write(bytes(SECTOR))
    with open_salvage(path) as salvage:
        assert "no footer is valid" in salvage.notes[0]
        assert salvage.read(0, 8 * MIB) == shown(0, 2, 3, 5)
    with path.open("r+b") as file:
        file.write(bytes(4 * SECTOR))
    with pytest.raises(NotAVhd):
        open_salvage(path)


def test_a_lost_header_is_replaced_in_memory_only(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.vhd", picture())
    with path.open("r+b") as file:
        file.seek(SECTOR)
        file.write(bytes(2 * SECTOR))
    before = path.read_bytes()
    with open_salvage(path) as salvage:
        assert "--rebuild-header` can write it" in salvage.notes[0]
        assert salvage.read(0, 4 * MIB) == shown(0, 2, 3, 5)
        assert salvage.lost() == []
        assert salvage.exit_code == 2
    assert path.read_bytes() == before


def test_a_batmap_that_lies_costs_nothing(tmp_path: Path) -> None:
    image = picture()
    image.bits[2][0] = 0
    with open_salvage(saved(tmp_path / "a.vhd", image)) as salvage:
        assert salvage.lost() == []
        assert salvage.read(2 * BLOCK, 9 * SECTOR) == bytes(8 * SECTOR) + b"C" * SECTOR


def test_a_child_without_its_parent_gives_what_it_has(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    vhdtool.create(base, 4 * MIB)
    write(base, (0, b"b" * 8192))
    vhdtool.snapshot(base, child)
    write(child, (512, b"c" * 512))
    with open_salvage(child) as salvage:
        assert salvage.lost() == []
        assert salvage.read(0, 8192) == content(child)[:8192]
    base.unlink()
    with open_salvage(child) as salvage:
        assert [(one.start, one.length) for one in salvage.lost()] == [
            (0, 512),
            (1024, 4 * MIB - 1024),
        ]
        assert salvage.read(0, 1536) == bytes(512) + b"c" * 512 + bytes(512)


def test_a_damaged_parent_costs_only_what_shines_through(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    vhdtool.create(base, 4 * MIB, block_bytes=BLOCK)
    write(base, (0, b"b" * 4 * MIB))
    vhdtool.snapshot(base, child)
    write(child, (0, b"c" * 512))
    with base.open("r+b") as file:
        file.seek(3 * SECTOR)
        file.write(bytes(4))
    with open_salvage(child) as salvage:
        assert [(one.start, one.length) for one in salvage.lost()] == [(512, BLOCK - 512)]
        assert salvage.read(BLOCK, 4) == b"bbbb"
    base.write_bytes(b"n" * 5000)
    with open_salvage(child) as salvage:
        assert salvage.read(0, 512) == b"c" * 512
        assert salvage.lost()[0].start == 512


def test_bad_sectors_of_the_storage_are_given_up_alone() -> None:
    disk = picture().draw()
    meta = read_metadata(disk)
    bad = meta.layout.data_offset(meta.bat[2]) + 40 * SECTOR  # type: ignore[union-attr]
    sound = disk.pread

    def pread(offset: int, length: int) -> bytes:
        if offset <= bad < offset + length:
            raise StorageError(disk.name, "read", errno.EIO)
        return sound(offset, length)

    disk.pread = pread  # type: ignore[method-assign]
    salvage = Salvage([DoubtfulLayer(Layer(disk, meta))], None, [])
    lost = [one for one in salvage.data() if isinstance(one, Lost)]
    assert [(one.start, one.length) for one in lost] == [(2 * BLOCK + 40 * SECTOR, 4096)]
    assert "Input/output error" in lost[0].reason


def test_the_command_copies_and_lists(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    image = picture()
    image.blocks[2] = 0
    del image.data[2], image.bits[2]
    path, raw = str(saved(tmp_path / "a.vhd", image)), tmp_path / "a.raw"
    assert run(["read", "--salvage", path, "-o", str(raw)]) == 2
    out = capfdbinary.readouterr().out.decode()
    assert "lost: guest sectors 2048 to 3071: bat-zeroed" in out
    assert raw.read_bytes() == shown(0, 3, 5)
    assert run(["read", "--salvage", "--json", path]) == 2
    data, err = capfdbinary.readouterr()
    assert data == raw.read_bytes()
    assert json.loads(err)["lost"][0]["sectors"] == [2048, 1024]
    assert run(["read", "--salvage", str(saved(tmp_path / "b.vhd", picture()))]) == 0
    assert capfdbinary.readouterr().out == shown(0, 2, 3, 5)


# partitions


def mbr(*entries: tuple[int, int, int]) -> bytearray:
    sector = bytearray(SECTOR)
    for index, (kind, start, count) in enumerate(entries):
        struct.pack_into("<B3sB3sII", sector, 446 + 16 * index, 0, b"", kind, b"", start, count)
    sector[510:] = b"\x55\xaa"
    return sector


def test_mbr_with_logical_partitions() -> None:
    disk = MemoryStorage()
    disk.pwrite(0, mbr((0x83, 100, 50), (0, 0, 0), (0x05, 1000, 1000)))
    disk.pwrite(1000 * SECTOR, mbr((0x07, 10, 20), (0x05, 500, 500)))
    disk.pwrite(1500 * SECTOR, mbr((0x0C, 10, 30), (0x05, 0, 0)))
    disk.pwrite(100 * SECTOR + 1080, b"\x53\xef")
    disk.pwrite(1010 * SECTOR + 3, b"NTFS    ")
    found = partitions(disk.pread, 4 * MIB)
    assert [
        (one.number, one.start // SECTOR, one.length // SECTOR, one.system) for one in found
    ] == [
        (1, 100, 50, "ext"),
        (5, 1010, 20, "ntfs"),
        (6, 1510, 30, None),
    ]


def test_gpt() -> None:
    disk = MemoryStorage()
    disk.pwrite(0, mbr((0xEE, 1, 8191)))
    head = bytearray(SECTOR)
    head[:8] = b"EFI PART"
    struct.pack_into("<QII", head, 72, 2, 128, 128)
    disk.pwrite(SECTOR, bytes(head))
    entry = bytearray(128)
    entry[:16] = b"t" * 16
    struct.pack_into("<QQ", entry, 32, 2048, 4095)
    entry[56:64] = "root".encode("utf-16-le")
    disk.pwrite(2 * SECTOR + 128, bytes(entry))
    disk.pwrite(2048 * SECTOR + 82, b"FAT32")
    (one,) = partitions(disk.pread, 4 * MIB)
    assert (one.number, one.start, one.length) == (2, 2048 * SECTOR, 2048 * SECTOR)
    assert (one.name, one.system) == ("root", "fat")


def test_hostile_tables_are_bounded() -> None:
    disk = MemoryStorage()
    disk.pwrite(0, mbr((0x05, 5, 1 << 31)))
    disk.pwrite(5 * SECTOR, mbr((0x83, 1, 1), (0x05, 1 << 32 - 1, 1)))
    disk.pwrite(SECTOR * 10, mbr((0x83, 1, 1), (0x05, 5, 1)))
    assert len(partitions(disk.pread, 4 * MIB)) <= 128
    assert partitions(MemoryStorage().pread, 0)[0].number == 0
    assert file_system(MemoryStorage(bytes(100)).pread, 5000) is None
    disk.pwrite(0, mbr((0xEE, 1, 1)))
    head = bytearray(SECTOR)
    head[:8] = b"EFI PART"
    struct.pack_into("<QII", head, 72, (1 << 64) - 1, 0xFFFFFFFF, 0xFFFFFFFF)
    disk.pwrite(SECTOR, bytes(head))
    assert [one.number for one in partitions(disk.pread, 4 * MIB)] == [0]


def test_damage_from_a_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = picture()
    path, before = str(saved(tmp_path / "a.vhd", image)), tmp_path / "before"
    assert run(["meta", path, "-o", str(before)]) == 0
    assert run(["damage", path]) == 0
    del image.blocks[5]
    saved(tmp_path / "a.vhd", image)
    capsys.readouterr()
    assert run(["diff", "--json", str(before), path]) == 2
    (tmp_path / "found").write_text(capsys.readouterr().out)
    assert run(["damage", path, "--findings", str(tmp_path / "found"), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["lost"][0]["sectors"] == [5 * 1024, 1024]
    assert told["partitions"][0]["note"] == "its file system is not known"
    (tmp_path / "found").write_text("{}")
    assert run(["damage", path, "--findings", str(tmp_path / "found")]) == 1


def test_a_header_of_doubtful_checksum_is_used_and_named(tmp_path: Path) -> None:
    image = picture()
    raw = bytearray(image.draw().getvalue())
    raw[SECTOR + 60] ^= 1
    (tmp_path / "a.vhd").write_bytes(raw)
    with open_salvage(tmp_path / "a.vhd") as salvage:
        assert any("checksum is wrong" in note for note in salvage.notes)
        assert salvage.read(0, 4 * MIB) == shown(0, 2, 3, 5)
