"""Block status of served images, asked by libnbd and used by qemu-img."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.test_shim_serve import qemu_io, served
from tests.support.shim_process import MIB, run
from tests.support.waiting import wait_for
from vhdtool.cli import qemu_img
from vhdtool.cli.main import run as vhdtool
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic, create_fixed

GIB = 1 << 30


@contextmanager
def qemu_nbd(image: Path) -> Iterator[str]:
    """The URI of QEMU's own server over a raw file."""
    place = image.with_suffix(".qemu")
    words = [
        "qemu-nbd",
        "-f",
        "raw",
        "--read-only",
        "--persistent",
        f"--socket={place}",
        str(image),
    ]
    process = subprocess.Popen(words)
    try:
        wait_for(place.exists, 20, process=process)
        yield f"nbd+unix:///?socket={place}"
    finally:
        process.kill()
        process.wait()


def mapped(uri: str) -> list[tuple[int, int, int]]:
    """(offset, length, flags) with neighbours joined, so that servers can be compared."""
    found: list[tuple[int, int, int]] = []
    for one in json.loads(run("nbdinfo", "--map", "--json", uri)):
        if found and found[-1][2] == one["type"] and sum(found[-1][:2]) == one["offset"]:
            found[-1] = (found[-1][0], found[-1][1] + one["length"], one["type"])
        else:
            found.append((one["offset"], one["length"], one["type"]))
    return found


@pytest.mark.parametrize("size", [64 * MIB, 64 * MIB + 1])
def test_a_raw_image_has_the_holes_that_qemus_server_tells(tmp_path: Path, size: int) -> None:
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        for place in (0, 5 * MIB, 40 * MIB):
            file.seek(place)
            file.write(os.urandom(MIB))
        file.truncate(size)
    with qemu_nbd(image) as uri:
        theirs = mapped(uri)
    with served(image, "--raw", "--socket", str(tmp_path / "s")) as (uri, _):
        assert mapped(uri) == theirs
        assert len(theirs) > 4


def test_status_follows_what_a_client_writes_and_frees(tmp_path: Path) -> None:
    image = tmp_path / "disk.vhd"
    create_fixed(image, 64 * MIB)
    with served(image, "--socket", str(tmp_path / "s")) as (uri, _):
        assert mapped(uri) == [(0, 64 * MIB, 3)]
        qemu_io(uri, "write -P 7 8M 1M")
        assert mapped(uri) == [(0, 8 * MIB, 3), (8 * MIB, MIB, 0), (9 * MIB, 55 * MIB, 3)]
        qemu_io(uri, "discard 8M 1M")
        assert mapped(uri) == [(0, 64 * MIB, 3)]


def test_a_chain_is_copied_by_its_holes(tmp_path: Path) -> None:
    """nbdcopy, which reads only what is told as data, gets the same disk as a plain read."""
    create_dynamic(tmp_path / "base.vhd", 64 * MIB)
    with served(tmp_path / "base.vhd", "--socket", str(tmp_path / "s")) as (uri, _):
        qemu_io(uri, "write -P 1 3M 3M", "write -P 2 40M 64k")
    snapshot(tmp_path / "base.vhd", tmp_path / "leaf.vhd")
    with served(tmp_path / "leaf.vhd", "--socket", str(tmp_path / "s")) as (uri, _):
        qemu_io(uri, "write -P 3 4M 64k", "write -P 4 60M 512")
        holes = sum(length for _, length, flags in mapped(uri) if flags == 3)
        assert 58 * MIB < holes < 62 * MIB
        run("nbdcopy", uri, str(tmp_path / "copy.raw"))
    assert vhdtool(["read", str(tmp_path / "leaf.vhd"), "-o", str(tmp_path / "read.raw")]) == 0
    assert (tmp_path / "copy.raw").read_bytes() == (tmp_path / "read.raw").read_bytes()


@pytest.mark.parametrize("kind", ["dynamic", "fixed", "child", "raw"])
def test_nothing_is_read_of_what_is_empty_on_the_way_to_qcow2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """So that an empty disk of 64 GiB is converted at once."""
    image = tmp_path / ("a.raw" if kind == "raw" else "a.vhd")
    if kind == "raw":
        image.touch()
        os.truncate(image, 64 * GIB)
    elif kind == "fixed":
        create_fixed(image, 64 * GIB)
    else:
        create_dynamic(image, 64 * GIB)
    if kind == "child":
        snapshot(image, tmp_path / "child.vhd", skip_empty=False)
        image = tmp_path / "child.vhd"
    read = []

    def count(self: qemu_img.ChainExport, offset: int, length: int) -> bytes:
        read.append(length)
        return bytes(length)

    monkeypatch.setattr(qemu_img.ChainExport, "read", count)
    assert vhdtool(["convert", "-q", str(image), str(tmp_path / "out.qcow2")]) == 0
    # qemu-img looks at the first sectors of a source whatever they hold.
    assert sum(read) <= MIB
    info = json.loads(run("qemu-img", "info", "--output=json", str(tmp_path / "out.qcow2")))
    assert info["virtual-size"] == 64 * GIB
