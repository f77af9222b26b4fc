"""The overlay of `serve --snapshot`: a model of its bytes, and a base that is never written."""

import os
import random
from pathlib import Path

import pytest

from vhdtool.errors import UsageError
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.disk.base import OpenDisk
from vhdtool.image.disk.open import build_disk
from vhdtool.image.disk.overlay import Overlay
from vhdtool.storage import FileStorage, StorageError

MIB = 1 << 20
SIZE = 9 * MIB + 512


def base(path: Path, raw: bool, content: bytes) -> Path:
    if raw:
        path.write_bytes(content)
        return path
    create_dynamic(path, SIZE)
    with_data = build_disk(FileStorage(path, writable=True))
    with_data.write(0, content[: 5 * MIB])
    with_data.close()
    return path


@pytest.mark.parametrize("raw", [False, True])
def test_an_overlay_reads_as_a_model_of_its_writes(tmp_path: Path, raw: bool) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    chance = random.Random(seed)
    model = bytearray(chance.randbytes(5 * MIB).ljust(SIZE, b"\0"))
    path = base(tmp_path / "base", raw, bytes(model))
    before = path.read_bytes()
    disk = Overlay(build_disk(FileStorage(path), raw=raw), str(tmp_path))
    for _ in range(300):
        offset = chance.randrange(SIZE // 512) * 512
        length = min(chance.choice((512, 4096, 65536, 3 * MIB)), SIZE - offset)
        match chance.randrange(5):
            case 0 | 1:
                data = chance.randbytes(length)
                disk.write(offset, data)
                model[offset : offset + length] = data
            case 2:
                disk.write_zeroes(offset, length)
                model[offset : offset + length] = bytes(length)
            case 3:
                assert disk.read(offset, length) == model[offset : offset + length]
            case _:
                at = offset
                for count, holds in disk.extents(offset, length):
                    assert holds or not any(model[at : at + count])
                    at += count
                assert at == offset + length
    assert disk.read(0, SIZE) == model
    assert disk.close() is False
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["base"]


def test_a_disk_that_is_too_large_has_no_overlay(tmp_path: Path) -> None:
    class Huge(OpenDisk):
        size = 1 << 42

    with pytest.raises(UsageError, match="2040 GiB"):
        Overlay(Huge(), str(tmp_path))


def test_without_a_directory_there_is_no_overlay(tmp_path: Path) -> None:
    create_dynamic(tmp_path / "d.vhd", SIZE)
    disk = build_disk(FileStorage(tmp_path / "d.vhd"))
    with pytest.raises(StorageError, match="make a file there: No such file"):
        Overlay(disk, str(tmp_path / "none"))
    disk.abandon()
