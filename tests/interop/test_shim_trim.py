"""What a guest discards is freed, and nothing else is: qemu-io, fio and nbdcopy on real files."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.nbd_raw import Client
from tests.support.shim_process import MIB, run, serving
from tests.support.waiting import wait_for
from vhdtool.image.check.image import check
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.nbd import protocol as wire
from vhdtool.storage import FileStorage

SIZE = 64 * MIB


def taken(image: Path) -> int:
    """MiB that the file takes on its file system, as `du` tells."""
    return image.stat().st_blocks * 512 // MIB


def qemu_io(uri: str, *commands: str) -> None:
    words = [part for command in commands for part in ("-c", command)]
    out = run("qemu-io", "-f", "raw", "-d", "unmap", "-t", "none", uri, *words)
    assert "failed" not in out


def verdict(image: Path) -> int:
    with FileStorage(image) as storage:
        return check(storage).exit_code


def make(kind: str, image: Path) -> tuple[str, ...]:
    """An image of this kind, and what to tell `serve` of it."""
    if kind == "dynamic":
        create_dynamic(image, SIZE)
    elif kind == "fixed":
        create_fixed(image, SIZE)
    else:
        image.touch()
        os.truncate(image, SIZE)
        return ("--raw",)
    return ()


@pytest.mark.parametrize("cache", [(), ("--cached",)])
@pytest.mark.parametrize("kind", ["dynamic", "fixed", "raw"])
def test_a_discard_frees_its_range_and_nothing_else(
    tmp_path: Path, kind: str, cache: tuple[str, ...]
) -> None:
    image = tmp_path / "d.img"
    options = (*make(kind, image), *cache, "--socket", str(tmp_path / "s"))
    with serving(image, *options) as served:
        qemu_io(served.uri, "write -P 5 0 40M", "flush")
        assert taken(image) >= 40
        qemu_io(served.uri, "discard 4M 24M", "flush")
        assert taken(image) in range(15, 24)
        # Not at the borders of the file system's blocks.
        qemu_io(served.uri, "discard 1536 1024", "read -P 5 0 1536", "read -P 0 1536 1024")
        qemu_io(served.uri, "read -P 5 2560 1M", "read -P 5 3M 1M", "read -P 0 4M 24M")
        qemu_io(served.uri, "read -P 5 28M 12M", "read -P 0 40M 24M", "discard 0 64M")
        assert taken(image) <= 2
        # What was freed can be written again.
        qemu_io(served.uri, "write -P 6 10M 1M", "read -P 6 10M 1M", "read -P 0 0 10M")
        assert served.log() == []
    assert kind == "raw" or verdict(image) == 0


def test_a_discard_in_a_child_does_not_show_the_parent(tmp_path: Path) -> None:
    base, leaf = tmp_path / "a.vhd", tmp_path / "b.vhd"
    create_dynamic(base, SIZE)
    where = ("--socket", str(tmp_path / "s"))
    with serving(base, *where) as served:
        qemu_io(served.uri, "write -P 1 0 32M")
    snapshot(base, leaf)
    before = base.read_bytes()
    with serving(leaf, *where) as served:
        qemu_io(served.uri, "write -P 2 0 16M", "flush")
        full = taken(leaf)
        qemu_io(served.uri, "discard 0 64M", "flush")
        assert full - taken(leaf) >= 15
        # Never 1: that is what the parent had there.
        qemu_io(served.uri, "read -P 0 0 16M", "read -P 1 16M 16M", "read -P 0 32M 32M")
    assert base.read_bytes() == before
    assert verdict(leaf) == 0


def test_fio_trims_what_it_wrote(tmp_path: Path) -> None:
    image = tmp_path / "d.vhd"
    create_dynamic(image, SIZE)
    with serving(image, "--socket", str(tmp_path / "s")) as served:
        for way, least, most in (("write", 64, 80), ("trim", 0, 2), ("randwrite", 60, 80)):
            run(
                "fio", "--name=t", "--ioengine=nbd", f"--uri={served.uri}", f"--rw={way}",
                f"--size={SIZE}", "--bs=64k", "--iodepth=8", "--end_fsync=1",
                f"--output={tmp_path / 'fio.log'}",
            )  # fmt: skip
            assert least <= taken(image) <= most, way
        # Each block is trimmed, then written, eight at a time, and read back.
        run(
            "fio", "--name=v", "--ioengine=nbd", f"--uri={served.uri}", "--rw=randtrimwrite",
            "--verify_state_save=0",
            f"--size={SIZE}", "--bs=16k", "--iodepth=8", "--verify=crc32c",
            f"--output={tmp_path / 'fio.log'}",
        )  # fmt: skip
        assert served.log() == []
    assert verdict(image) == 0


def test_nbdcopy_finds_zeros_where_something_was_discarded(tmp_path: Path) -> None:
    image, back = tmp_path / "d.vhd", tmp_path / "out"
    create_dynamic(image, SIZE)
    with serving(image, "--socket", str(tmp_path / "s")) as served:
        qemu_io(served.uri, "write -P 7 0 64M", "discard 8M 48M")
        run("nbdcopy", served.uri, str(back))
        info = json.loads(run("nbdinfo", "--json", served.uri))["exports"][0]
        assert (info["can_trim"], info["can_cache"]) == (True, True)
    data = back.read_bytes()
    assert data == b"\7" * 8 * MIB + bytes(48 * MIB) + b"\7" * 8 * MIB


def test_the_guard_off_frees_nothing_as_tapdisk2(tmp_path: Path) -> None:
    image = tmp_path / "d.vhd"
    create_dynamic(image, SIZE)
    with serving(image, "--socket", str(tmp_path / "s"), "--faithful") as served:
        info = json.loads(run("nbdinfo", "--json", served.uri))["exports"][0]
        assert info["can_trim"] is False
        qemu_io(served.uri, "write -P 7 0 16M", "discard 0 16M", "read -P 7 0 16M")


def resident(image: Path) -> int:
    """MiB of the file in the page cache."""
    out = run("fincore", "--bytes", "--noheadings", "--output", "RES", str(image))
    return int(out) // MIB


def test_a_cache_request_fills_the_page_cache(tmp_path: Path) -> None:
    image, where = tmp_path / "d.vhd", tmp_path / "s"
    create_dynamic(image, SIZE)
    with serving(image, "--socket", str(where), "--cached") as served:
        qemu_io(served.uri, "write -P 7 0 32M", "flush")
    with image.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with serving(image, "--socket", str(where), "--cached"), closing(Client(where)) as client:
        assert client.ask(wire.CMD_CACHE, 0, 24 * MIB) == (0, b"")
        wait_for(lambda: resident(image) >= 23)
    with serving(image, "--socket", str(where)), closing(Client(where)) as client:
        assert client.ask(wire.CMD_CACHE, 0, 24 * MIB) == (0, b"")
        assert client.read(0, 512) == bytes([7]) * 512
