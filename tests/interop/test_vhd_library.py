"""The library beside its peers: their readers take our file objects, and read what we wrote."""

import importlib
import io
import os
import random
from pathlib import Path

import vhdtool
from tests.support.vhd_peers import dissect_raw, libvhdi_raw, run

MIB = 1 << 20


def test_libfsext_reads_a_file_system_through_file_objects(tmp_path: Path) -> None:
    """ext4 in a chain of two images, both in memory, to a library that wants a file."""
    files = tmp_path / "files"
    files.mkdir()
    content = os.urandom(3 * MIB)
    (files / "wanted.bin").write_bytes(content)
    raw = tmp_path / "disk.raw"
    raw.write_bytes(b"")
    os.truncate(raw, 32 * MIB)
    run("mkfs.ext4", "-q", "-F", "-d", files, raw)
    vhdtool.create(tmp_path / "base.vhd", 32 * MIB)
    data = raw.read_bytes()
    with vhdtool.open(tmp_path / "base.vhd", writable=True) as image:
        image.write(0, data[: 16 * MIB])
    vhdtool.snapshot(tmp_path / "base.vhd", tmp_path / "child.vhd")
    with vhdtool.open(tmp_path / "child.vhd", writable=True) as image:
        image.write(16 * MIB, data[16 * MIB :])
    below, above = (io.BytesIO((tmp_path / f"{one}.vhd").read_bytes()) for one in ("base", "child"))
    volume = importlib.import_module("pyfsext").volume()
    with vhdtool.open(below) as parent, vhdtool.open(above, parent=parent) as image:
        volume.open_file_object(image.as_file())
        entry = volume.get_file_entry_by_path("/wanted.bin")
        assert entry.read(entry.get_size()) == content
        volume.close()


def test_what_is_written_through_a_buffer_is_read_by_peers(tmp_path: Path) -> None:
    """Small writes through io.BufferedRandom, zeroes and trims: what libvhdi and dissect read."""
    path, chance = tmp_path / "a.vhd", random.Random(3)
    vhdtool.create(path, 16 * MIB)
    model = io.BytesIO(bytes(16 * MIB))
    with vhdtool.open(path, writable=True) as image:
        with io.BufferedRandom(image.as_file()) as disk:
            for _ in range(300):
                offset = chance.randrange(16 * MIB - 9000)
                data = chance.randbytes(chance.randrange(1, 9000))
                for one in (disk, model):
                    one.seek(offset)
                    one.write(data)
        image.write_zeroes(3 * MIB + 100, MIB)
        image.trim(8 * MIB, 2 * MIB)
    model.seek(3 * MIB + 100)
    model.write(bytes(MIB))
    model.seek(8 * MIB)
    model.write(bytes(2 * MIB))
    assert vhdtool.check(path).consistent
    assert libvhdi_raw(path, tmp_path / "mount") == model.getvalue()
    assert dissect_raw(path) == model.getvalue()
