"""Files behind damaged blocks, in file systems that their own tools made."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import vhdtool
from tests.support.vhd_peers import qemu_create, qemu_write
from tests.support.vhd_peers import run as tool
from vhdtool.cli.main import run
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage
from vhdtool.vhd.geometry import NO_GEOMETRY

MIB = 1 << 20
START = 2048 * 512


def ext4(path: Path, files: Path) -> None:
    tool("mkfs.ext4", "-q", "-F", "-d", files, path)


def vfat(path: Path, files: Path) -> None:
    tool("mkfs.vfat", path)
    tool("mcopy", "-s", "-i", path, *sorted(files.iterdir()), "::/")


def ntfs(path: Path, files: Path) -> None:
    tool("mkntfs", "-q", "-F", "-f", path)
    for file in sorted(one for one in files.rglob("*") if one.is_file()):
        tool("ntfscp", path, file, file.name)


@pytest.mark.parametrize("make", [ext4, vfat, ntfs])
def test_damage_names_the_file(
    tmp_path: Path, make: object, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    (files / "deep").mkdir(parents=True)
    contents = {"deep/lost.bin": os.urandom(3 * MIB), "kept.bin": os.urandom(100_000)}
    for name, data in contents.items():
        (files / name).write_bytes(data)
    volume, raw, vhd = tmp_path / "volume", tmp_path / "raw", tmp_path / "disk.vhd"
    volume.write_bytes(bytes(40 * MIB))
    make(volume, files)  # type: ignore[operator]
    table = bytearray(512)
    table[446:462] = (
        bytes([0, 0, 0, 0, 0x83, 0, 0, 0])
        + (2048).to_bytes(4, "little")
        + (40 * MIB // 512).to_bytes(4, "little")
    )
    table[510:] = b"\x55\xaa"
    raw.write_bytes(bytes(table).ljust(START, b"\0") + volume.read_bytes())
    assert run(["convert", str(raw), str(vhd), "--block-size", "512k"]) == 0
    block = raw.read_bytes().find(contents["deep/lost.bin"][2 * MIB :][:512]) // (512 << 10)
    with vhd.open("r+b") as file:
        file.seek(3 * 512 + 4 * block)
        file.write(bytes(4))
    capsys.readouterr()
    assert run(["damage", "--json", str(vhd)]) == 2
    told = json.loads(capsys.readouterr().out)
    (part,) = told["partitions"]
    assert (part["number"], part["file_system"]) == (1, make.__name__.removeprefix("v").rstrip("4"))  # type: ignore[attr-defined]
    (hit,) = part["files"]
    assert hit["path"].endswith("/lost.bin")
    assert (hit["size"], hit["damaged"]) == (3 * MIB, 512 << 10)
    assert run(["damage", str(vhd)]) == 2
    assert "/lost.bin: " in capsys.readouterr().out


def test_ddrescue_fills_the_lost_ranges_by_the_mapfile(tmp_path: Path) -> None:
    content = os.urandom(8 * MIB)
    raw, vhd, out, table = (tmp_path / name for name in ("raw", "a.vhd", "out", "map"))
    raw.write_bytes(content)
    assert run(["convert", str(raw), str(vhd), "--block-size", "1m"]) == 0
    with vhd.open("r+b") as file:
        for block in (2, 3, 6):
            file.seek(3 * 512 + 4 * block)
            file.write(bytes(4))
    words = ["read", "--salvage", str(vhd), "-o", str(out), "--mapfile", str(table)]
    assert run(words) == 2
    lost = [2048 * 2 + n for n in range(2 * 2048)] + [2048 * 6 + n for n in range(2048)]
    assert tool("ddrescuelog", "-l-", table).split() == [str(sector) for sector in lost]
    tool("ddrescue", "-q", "-r1", raw, out, table)
    assert out.read_bytes() == content
    assert tool("ddrescuelog", "-l-", table) == ""


def test_ntfs_without_its_boot_sector_names_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The copy in the last sector stands in for it; there is no partition table either."""
    pytest.importorskip("pyfsntfs")
    files, volume = tmp_path / "files", tmp_path / "volume"
    files.mkdir()
    data = os.urandom(3 * MIB + 5)
    (files / "lost.bin").write_bytes(data)
    volume.write_bytes(bytes(40 * MIB))
    tool("mkntfs", "-q", "-F", "-f", "-p", "2047", "-H", "255", "-S", "63", volume)
    tool("ntfscp", volume, files / "lost.bin", "lost.bin")
    # The boot sector ends a block of 512 KiB, which is lost: the rest of the volume stays.
    raw, vhd = tmp_path / "raw", tmp_path / "disk.vhd"
    start = 2047 * 512
    raw.write_bytes(bytes(start) + volume.read_bytes())
    assert run(["convert", str(raw), str(vhd), "--block-size", "512k"]) == 0
    lost = raw.read_bytes().find(data[2 * MIB :][:512]) // (512 << 10)
    with vhd.open("r+b") as file:
        for block in (1, lost):
            file.seek(3 * 512 + 4 * block)
            file.write(bytes(4))
    capsys.readouterr()
    assert run(["damage", "--json", str(vhd)]) == 2
    (part,) = json.loads(capsys.readouterr().out)["partitions"]
    assert (part["start"], part["file_system"], part["note"]) == (start, "ntfs", None)
    assert part["boot_copy"] == start + 40 * MIB - 512
    assert [one["path"] for one in part["files"] if "lost" in one["path"]] == ["/lost.bin"]
    assert all(one["damaged"] <= one["size"] for one in part["files"])


@pytest.mark.parametrize("lost", range(4))
def test_a_block_of_qemus_is_found_when_its_entry_is_lost(tmp_path: Path, lost: int) -> None:
    """QEMU leaves no gap before a block, and writes full bitmaps over data with holes."""
    path = tmp_path / "q.vhd"
    qemu_create(path, "16M")
    qemu_write(path, *((0x41 + block, 2 * block * MIB + 8192, 65536) for block in range(4)))
    with FileStorage(path, writable=True) as storage:
        meta = read_metadata(storage)
        assert meta.header is not None
        storage.pwrite(meta.header.bat_offset + 4 * lost, b"\xff" * 4)
    (one,) = vhdtool.check(path).reports[0].orphans
    assert (one.entry, one.guest) == (meta.bat[lost], lost)


@pytest.mark.parametrize("creator", [b"qemu", b"vpc "])
def test_a_repair_of_the_geometry_gives_qemu_its_disk_back(tmp_path: Path, creator: bytes) -> None:
    path = tmp_path / "q.vhd"
    qemu_create(path, "40M")
    with FileStorage(path, writable=True) as storage:
        footer = replace(read_metadata(storage).footer, geometry=NO_GEOMETRY, creator=creator)
        storage.pwrite(0, footer.pack())
        storage.pwrite(storage.size() - 512, footer.pack())

    def shown() -> int:
        words = ("qemu-img", "info", "-f", "vpc", "--output=json", path)
        return int(json.loads(tool(*words))["virtual-size"])

    assert shown() == 0
    assert run(["repair", str(path), "--yes"]) == 0
    # What Virtual PC's readers see is the geometry, which ends less than a cylinder before.
    assert 0 <= footer.current_size - shown() < 16 * 63 * 512
