"""`vhdtool serve` as a person uses it, on every kind of image."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.shim_process import MIB, ROOT, run
from vhdtool.image.chain.open import open_chain
from vhdtool.image.check.image import check
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.storage import FileStorage, StorageError

ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def served(image: Path, *options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """(URI, process) of `vhdtool serve`; ends it with Ctrl-C's signal and wants exit 0."""
    words = [sys.executable, "-m", "vhdtool", "serve", str(image), *options]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    )
    assert process.stdout is not None
    uri = process.stdout.readline().strip()
    if not uri:
        process.wait(20)
        pytest.fail(process.stderr.read() if process.stderr else "")
    try:
        yield uri, process
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert (out, err) == ("", "")
    finally:
        process.kill()
        process.communicate()


def qemu_io(uri: str, *commands: str) -> None:
    words = [part for command in commands for part in ("-c", command)]
    out = run("qemu-io", "-f", "raw", "-t", "none", uri, *words)
    assert "failed" not in out


def refused(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vhdtool", "serve", *words],
        capture_output=True, text=True, env=ENV, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def verdict(image: Path) -> int:
    with FileStorage(image) as storage:
        return check(storage).exit_code


NAMES = ["s p", "a&b #1/s%41", "q?=+;:@'\"\\", "é 漢", os.fsdecode(b"\xff\xc3"), "new\nline", "-x"]


@pytest.mark.parametrize("name", NAMES)
def test_what_it_prints_is_a_uri_whatever_the_socket_is_called(tmp_path: Path, name: str) -> None:
    image, where = tmp_path / "d.vhd", tmp_path / name
    where.parent.mkdir(exist_ok=True)
    create_dynamic(image, 8 * MIB)
    with served(image, "--socket", str(where)) as (uri, _):
        assert re.fullmatch(r"nbd\+unix:///\?socket=[A-Za-z0-9/._~%-]+", uri)
        assert run("nbdinfo", "--size", uri).strip() == str(8 * MIB)
        if os.fsencode(name).isascii():
            qemu_io(uri, "read 0 1M")


def test_a_socket_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create_dynamic("d.vhd", 8 * MIB)
    with served(Path("d.vhd"), "--socket", "s p.sock") as (uri, _):
        assert uri == "nbd+unix:///?socket=s%20p.sock"
        assert run("nbdinfo", "--size", uri).strip() == str(8 * MIB)


def test_a_literal_ipv6_address(tmp_path: Path) -> None:
    create_dynamic(tmp_path / "d.vhd", 8 * MIB)
    with served(tmp_path / "d.vhd", "--tcp", "[::1]:0") as (uri, _):
        assert uri.startswith("nbd://[::1]:")
        assert run("nbdinfo", "--size", uri).strip() == str(8 * MIB)
        qemu_io(uri, "read 0 1M")


def test_a_dynamic_image_is_served_and_closed(tmp_path: Path) -> None:
    image, where, log = tmp_path / "d.vhd", tmp_path / "s", tmp_path / "events"
    create_dynamic(image, 64 * MIB)
    with served(image, "--socket", str(where), "--events", str(log)) as (uri, _):
        assert uri == f"nbd+unix:///?socket={where}"
        qemu_io(uri, "write -P 5 1M 5M", "read -P 5 1M 5M", "read -P 0 20M 1M")
        assert "held by" in refused(str(image), "--socket", str(tmp_path / "t"))
        assert not (tmp_path / "t").exists()
    assert not where.exists()
    assert verdict(image) == 0
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()][-2:] == [
        "closed",
        "detached",
    ]
    with served(image, "--socket", str(where), "--cached") as (uri, _):
        qemu_io(uri, "read -P 5 1M 5M")


def test_a_fixed_and_a_raw_image(tmp_path: Path) -> None:
    fixed, raw, where = tmp_path / "f.vhd", tmp_path / "r.img", tmp_path / "s"
    create_fixed(fixed, 8 * MIB)
    raw.write_bytes(bytes(8 * MIB))
    for image, options in ((fixed, ()), (raw, ("--raw",))):
        with served(image, "--socket", str(where), *options) as (uri, _):
            qemu_io(uri, "write -P 5 1M 1M", "write -z 1M 64k", "read -P 5 1152k 64k")
        assert image.read_bytes()[MIB + 65536 : 2 * MIB] == bytes([5]) * (MIB - 65536)
    assert verdict(fixed) == 0


def test_a_chain_shows_its_parents_and_writes_only_the_leaf(tmp_path: Path) -> None:
    base, middle, leaf, where = (tmp_path / name for name in ("a.vhd", "b.vhd", "c.vhd", "s"))
    create_dynamic(base, 32 * MIB)
    with served(base, "--socket", str(where)) as (uri, _):
        qemu_io(uri, "write -P 1 0 4M")
    snapshot(base, middle)
    with served(middle, "--socket", str(where)) as (uri, _):
        qemu_io(uri, "read -P 1 0 4M", "write -P 2 1M 1M")
    snapshot(middle, leaf)
    before = base.read_bytes(), middle.read_bytes()
    with served(leaf, "--socket", str(where)) as (uri, _):
        qemu_io(uri, "write -P 3 512 512", "write -z 2M 64k")
        qemu_io(uri, "read -P 1 0 512", "read -P 3 512 512", "read -P 2 1M 1M", "read -P 0 2M 64k")
    assert (base.read_bytes(), middle.read_bytes()) == before
    assert verdict(leaf) == 0
    with open_chain(leaf) as reader:
        assert reader.read(512, 512) == bytes([3]) * 512
        assert reader.read(3 * MIB, MIB) == bytes([1]) * MIB


def test_tcp_on_loopback_with_many_connections(tmp_path: Path) -> None:
    image = tmp_path / "d.vhd"
    create_dynamic(image, 16 * MIB)
    source = tmp_path / "in.raw"
    source.write_bytes(os.urandom(16 * MIB))
    with served(image, "--tcp", "127.0.0.1:0") as (uri, _):
        assert uri.startswith("nbd://127.0.0.1:")
        run("nbdcopy", "--connections=4", str(source), uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(source), uri)
    assert verdict(image) == 0


def test_prometheus_and_usr1_tell_what_the_disk_does(tmp_path: Path) -> None:
    image, where = tmp_path / "d.vhd", tmp_path / "s"
    create_dynamic(image, 16 * MIB)
    with closing(socket_on_loopback()) as free:
        port = free.getsockname()[1]
    words = ("--socket", str(where), "--metrics", f"127.0.0.1:{port}")
    process = subprocess.Popen(
        [sys.executable, "-m", "vhdtool", "serve", str(image), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        uri = process.stdout.readline().strip()
        qemu_io(uri, "write -P 5 1M 3M", "read -P 5 1M 1M")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        process.send_signal(signal.SIGUSR1)
        assert process.stderr is not None
        state = next(line for line in process.stderr if "state:" in line)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert '"state": "active"' in state
    figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert figures["vhdtool_written_bytes_total"] == str(3 * MIB)
    assert int(figures["vhdtool_read_bytes_total"]) >= MIB
    # Two were written in their order: the third got its place with the second.
    assert figures["vhdtool_allocations_total"] == "3"
    assert int(figures['vhdtool_requests_total{kind="write"}']) >= 1
    assert figures['vhdtool_state{state="active"}'] == "1"
    assert figures["vhdtool_lease_held"] == "1"
    assert int(figures["vhdtool_request_seconds_count"]) >= 2


def socket_on_loopback() -> socket.socket:
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    return free


def test_ctrl_c_while_a_client_writes_leaves_a_closed_image(tmp_path: Path) -> None:
    image, where = tmp_path / "d.vhd", tmp_path / "s"
    create_dynamic(image, 64 * MIB)
    with served(image, "--socket", str(where)) as (uri, process):
        writer = subprocess.Popen(
            ["qemu-io", "-f", "raw", uri, *(["-c", "aio_write -P 9 0 32M"] * 8), "-c", "aio_flush"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        threading.Timer(0.3, process.send_signal, (signal.SIGINT,)).start()
        process.wait(30)
        writer.kill()
        writer.wait()
    assert verdict(image) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "one of --socket PATH and --tcp"),
        (("--socket", "s", "--tcp", "127.0.0.1:1"), "one of --socket PATH and --tcp"),
        (("--tcp", "nonsense"), "write HOST:PORT"),
        (("--tcp", "127.0.0.1:99999"), "below 65536"),
        (("--socket", "no/such/dir/s"), "cannot listen"),
        (("--socket", "s", "--tls-verify-peer"), "needs --tls-certificates"),
        (("--socket", "s", "--tls-certificates", ".", "--tls-psk", "k"), "choose one of"),
        (("--socket", "s", "--tls-certificates", "."), "server-cert.pem: not there"),
        (("--socket", "s", "--tls-psk", "none"), "none: cannot read the keys"),
        (("--socket", "s", "--tls-psk", "d.vhd"), "d.vhd: cannot read the keys: is no text"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, options: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    create_dynamic("d.vhd", 8 * MIB)
    assert said in refused("d.vhd", *options)
    before = Path("d.vhd").read_bytes()
    assert said in refused("d.vhd", *options)
    assert Path("d.vhd").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        ("--socket", "no/such/dir/s"),
        ("--socket", "d.vhd"),
        ("--socket", "s", "--metrics", "127.0.0.1:99999"),
        ("--socket", "s", "--force", "7"),
        ("--socket", "s", "--record", "elsewhere/r", "--metrics", "127.0.0.1:99999"),
        ("--socket", "s", "--record", "elsewhere/no"),
        ("--socket", "s", "--faithful", "--metrics", "127.0.0.1:99999"),
    ],
)
def test_a_refused_start_leaves_no_file(
    tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    create_dynamic("d.vhd", 8 * MIB)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "no").write_text("no epoch record")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if "--force" in options:
        with served(Path("d.vhd"), "--socket", "other"):
            refused("d.vhd", *options)
    else:
        refused("d.vhd", *options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("options", [(), ("--faithful",), ("--record", "elsewhere/r")])
def test_a_clean_end_leaves_the_image_alone(
    tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    create_dynamic("d.vhd", 8 * MIB)
    (tmp_path / "elsewhere").mkdir()
    with served(Path("d.vhd"), "--socket", "s", *options) as (uri, _):
        qemu_io(uri, "write -P 1 0 1M")
        assert Path("d.vhd.lease").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["d.vhd", "elsewhere"]


def test_the_record_of_a_crashed_server_stays(tmp_path: Path) -> None:
    image, where = tmp_path / "d.vhd", tmp_path / "s"
    create_dynamic(image, 8 * MIB)
    with served(image, "--socket", str(where)) as (_, process):
        process.kill()
        process.wait()
        assert (tmp_path / "d.vhd.lease").exists()
        log = tmp_path / "events"
        with served(image, "--socket", str(where), "--events", str(log)):
            pass
        process.returncode = 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [one["epoch"] for one in events if one["event"] == "activated"] == [2]
    assert (tmp_path / "d.vhd.lease").exists()


def test_a_symbolic_link_is_refused_where_the_caller_asks(tmp_path: Path) -> None:
    create_dynamic(tmp_path / "real.vhd", 8 * MIB)
    (tmp_path / "d.vhd").symlink_to("real.vhd")
    where = ("--socket", str(tmp_path / "s"), "--no-follow")
    assert "is a symbolic link" in refused(str(tmp_path / "d.vhd"), *where)
    with served(tmp_path / "real.vhd", *where) as (uri, _):
        qemu_io(uri, "write -P 1 0 1M")
    # The look before it is opened may be too early; the kernel looks again.
    with pytest.raises(StorageError, match="symbolic link"):
        FileStorage(tmp_path / "d.vhd", writable=True, direct=True, follow=False)


def test_tap_is_tap_ctl(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "vhdtool", "tap", "--run-dir", str(tmp_path)]
    assert subprocess.run([*words, "list"], capture_output=True, check=True).stdout == b""
    closed = subprocess.run(
        [*words, "close", "-p", "1", "-m", "0"], capture_output=True, check=False
    )
    assert closed.returncode == errno.ENOENT
    assert closed.stderr.endswith(b"No such file or directory\n")


def test_what_cannot_be_served_is_told(tmp_path: Path) -> None:
    (tmp_path / "none.vhd").write_bytes(bytes(4096))
    (tmp_path / "empty.img").write_bytes(b"")
    where = ("--socket", str(tmp_path / "s"))
    assert "not a VHD" in refused(str(tmp_path / "none.vhd"), *where)
    assert "empty" in refused(str(tmp_path / "empty.img"), "--raw", *where)
    assert "No such file" in refused(str(tmp_path / "missing.vhd"), *where)
    assert "No such file" in refused(str(tmp_path / "no" / "missing.vhd"), *where)
