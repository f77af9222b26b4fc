"""The tap-ctl command line against real tapdisk processes of ours."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.shim_process import MIB, ROOT, run, wait_tapdisk_gone
from tests.support.waiting import wait_for
from vhdtool.image.check.image import check
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.edit.batmap_fields import set_key
from vhdtool.storage import FileStorage
from vhdtool.tapdisk.tapctl.client import TapCtl

ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


class Taps:
    """`tap-ctl` in a control directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"

    def __call__(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "vhdtool.cli.tap_ctl", "--run-dir", str(self.run_dir), *words],
            capture_output=True, text=True, errors="surrogateescape",
            env=ENV, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout.strip()

    def lines(self) -> list[str]:
        return self("list").splitlines()

    def log(self) -> str:
        return (self.run_dir / "tapdisk.log").read_text()


@pytest.fixture
def taps(tmp_path: Path) -> Iterator[Taps]:
    one = Taps(tmp_path)
    yield one
    for entry in TapCtl(one.run_dir).entries():
        if entry.pid is not None:
            os.kill(entry.pid, signal.SIGKILL)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "d.vhd"
    create_dynamic(path, 32 * MIB)
    return path


def verdict(path: Path) -> int:
    with FileStorage(path) as storage:
        return check(storage).exit_code


def qemu_io(taps: Taps, pid: str, minor: str, *commands: str) -> None:
    uri = f"nbd+unix:///?socket={taps.run_dir}/nbd{pid}.{minor}"
    words = [part for command in commands for part in ("-c", command)]
    assert "failed" not in run("qemu-io", "-f", "raw", uri, *words)


def test_each_step_by_itself(taps: Taps, image: Path) -> None:
    minor = taps("allocate").rpartition("-")[2]
    assert taps.lines() == [f"minor={minor}"]
    pid = taps("spawn")
    assert f"pid={pid}" in taps.lines()
    who = ("-p", pid, "-m", minor)
    taps("attach", *who)
    taps("attach", *who, code=22)
    taps("open", *who, "-a", f"vhd:{image}.missing", code=2)
    taps("open", *who, "-a", f"vhd:{image}")
    taps("open", *who, "-a", f"vhd:{image}", code=114)
    assert taps.lines() == [f"pid={pid} minor={minor} state=0 args=vhd:{image}"]
    qemu_io(taps, pid, minor, "write -P 5 0 3M")
    stats = json.loads(taps("stats", *who))
    assert stats["secs"][1] >= 3 * MIB // 512
    assert stats["images"][0]["name"] == str(image)
    taps("pause", *who)
    assert taps.lines() == [f"pid={pid} minor={minor} state=0x2a args=vhd:{image}"]
    taps("unpause", *who)
    qemu_io(taps, pid, minor, "read -P 5 0 3M")
    taps("detach", *who, code=22)
    taps("close", *who)
    assert taps.lines() == [f"pid={pid} minor={minor} state=0x2"]
    taps("detach", *who)
    wait_tapdisk_gone(taps.run_dir, pid)
    taps("free", "-m", minor)
    assert taps.lines() == []
    taps("pause", *who, code=2)
    assert verdict(image) == 0
    assert "Traceback" not in taps.log()


def test_paths_are_bytes(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run \xff")
    folder.mkdir()
    taps, image = Taps(folder), folder / os.fsdecode(b"d \xfe\xc3\xa9.vhd")
    create_dynamic(image, 32 * MIB)
    assert taps("create", "-a", f"vhd:{image}") == str(taps.run_dir / "tapdisk" / "tapdisk-0")
    (line,) = taps.lines()
    pid = line.split()[0].partition("=")[2]
    assert line == f"pid={pid} minor=0 state=0 args=vhd:{image}"
    who = ("-p", pid, "-m", "0")
    assert json.loads(taps("stats", *who))["name"] == f"vhd:{image}"
    taps("pause", *who)
    taps("unpause", *who, "-a", f"vhd:{image}.missing", code=2)
    taps("unpause", *who)
    taps("destroy", *who)
    assert verdict(image) == 0
    assert "defect" not in taps.log()


def test_create_and_destroy(taps: Taps, image: Path) -> None:
    device = taps("create", "-a", f"vhd:{image}")
    assert device == str(taps.run_dir / "tapdisk" / "tapdisk-0")
    (line,) = taps.lines()
    pid = line.split()[0].partition("=")[2]
    qemu_io(taps, pid, "0", "write -P 6 1M 1M")
    assert taps("list", "-f", str(image), "-t", "vhd", "-m", "0", "-p", pid) == line
    assert taps("list", "-f", "/other") == ""
    taps("destroy", "-p", pid, "-m", "0")
    assert taps.lines() == []
    assert not Path(device).exists()
    assert verdict(image) == 0


def test_a_create_that_fails_leaves_nothing(taps: Taps, tmp_path: Path, image: Path) -> None:
    taps("create", "-a", f"vhd:{tmp_path}/missing.vhd", code=2)
    taps("create", "-a", f"qcow:{image}", code=38)
    taps("create", "-a", f"vhd:{image}", "-s", "-2", "nbd:x", code=38)
    (tmp_path / "none.vhd").write_bytes(bytes(4096))
    taps("create", "-a", f"vhd:{tmp_path}/none.vhd", code=22)
    wait_for(lambda: taps.lines() == [])


def test_an_encrypted_image_is_refused_not_shown_as_noise(taps: Taps, image: Path) -> None:
    taps("create", "-a", f"vhd:{image}")
    taps("destroy", "-p", taps.lines()[0].split()[0].partition("=")[2], "-m", "0")
    set_key(image, bytes(range(32)))
    taps("create", "-a", f"vhd:{image}", code=22)


def test_two_processes_never_have_one_image(taps: Taps, image: Path) -> None:
    taps("create", "-a", f"vhd:{image}")
    taps("create", "-a", f"vhd:{image}", code=16)
    assert len([line for line in taps.lines() if "args=" in line]) == 1


def test_a_snapshot_under_a_paused_disk(taps: Taps, image: Path, tmp_path: Path) -> None:
    taps("create", "-a", f"vhd:{image}")
    pid = taps.lines()[0].split()[0].partition("=")[2]
    who = ("-p", pid, "-m", "0")
    qemu_io(taps, pid, "0", "write -P 5 0 3M")
    taps("pause", *who)
    child = tmp_path / "child.vhd"
    snapshot(image, child)
    taps("unpause", *who, "-a", f"vhd:{child}.missing", code=2)
    assert "state=0x22a" in taps.lines()[0]
    taps("unpause", *who, "-a", f"vhd:{child}")
    before = image.read_bytes()
    qemu_io(taps, pid, "0", "read -P 5 0 3M", "write -P 7 1M 64k", "read -P 7 1M 64k")
    taps("destroy", *who)
    assert image.read_bytes() == before
    assert verdict(child) == 0


def test_noise_on_the_control_socket_harms_nobody(taps: Taps, image: Path) -> None:
    taps("create", "-a", f"vhd:{image}")
    pid = taps.lines()[0].split()[0].partition("=")[2]
    for noise in (b"", b"short", os.urandom(544), b"\xff" * 544, os.urandom(5000)):
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"{taps.run_dir}/ctl{pid}")
        client.sendall(noise)
        client.close()
    assert "args=vhd" in taps.lines()[0]
    taps("destroy", "-p", pid, "-m", "0")
    assert "Traceback" not in taps.log()


def test_term_closes_all_disks(taps: Taps, image: Path) -> None:
    taps("create", "-a", f"vhd:{image}")
    pid = taps.lines()[0].split()[0].partition("=")[2]
    qemu_io(taps, pid, "0", "write -P 5 0 3M")
    os.kill(int(pid), signal.SIGTERM)
    wait_tapdisk_gone(taps.run_dir, pid)
    assert verdict(image) == 0
