"""`vhdtool serve` as part of something larger: a script, a service manager, another command."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.nbd_raw import Client
from tests.support.shim_process import MIB, ROOT, run, serving
from tests.support.waiting import wait_for
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic

ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
SERVE = [sys.executable, "-m", "vhdtool", "serve"]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    create_dynamic("d.vhd", 16 * MIB)
    done = serve("d.vhd", "--run", 'qemu-io -f raw "$uri" -c "write -P 5 1M 3M"')
    assert done.returncode == 0, done.stderr
    return Path("d.vhd")


def serve(*words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*SERVE, *words], capture_output=True, text=True, timeout=60, env=ENV | more, check=False
    )


def refused(*words: str, **more: str) -> str:
    done = serve(*words, **more)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_command_is_served_and_gives_its_exit_code(image: Path) -> None:
    command = 'echo "$uri $nbd $unixsocket [$port]"; exit 7'
    done = serve("d.vhd", "--run", command)
    uri, nbd, place, port = done.stdout.split()
    assert (done.returncode, done.stderr) == (7, "")
    assert (uri, nbd, port) == (f"nbd+unix:///?socket={place}", uri, "[]")
    assert not Path(place).parent.exists()
    assert os.listdir() == ["d.vhd"]
    assert serve("d.vhd", "--run", "kill -9 $$").returncode == 128 + 9
    tcp = serve("d.vhd", "--tcp", "127.0.0.1:0", "--run", 'echo "$unixsocket$port $uri"').stdout
    assert tcp.split()[1] == f"nbd://127.0.0.1:{tcp.split()[0]}"


def test_nbdcopy_has_standard_output_to_itself(image: Path) -> None:
    done = subprocess.run(
        [*SERVE, "d.vhd", "--run", 'nbdcopy "$uri" -'], capture_output=True, env=ENV, check=True
    )
    assert done.stdout == bytes(MIB) + bytes([5]) * 3 * MIB + bytes(12 * MIB)


def test_term_ends_the_command_too(image: Path) -> None:
    words = [*SERVE, "d.vhd", "--run", "echo here; exec sleep 60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=ENV) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert os.listdir() == ["d.vhd"]


@pytest.mark.parametrize("kind", ["vhd", "child", "raw", "qcow2"])
def test_a_snapshot_loses_its_writes(image: Path, kind: str) -> None:
    options: tuple[str, ...] = ()
    path = Path("d.vhd")
    if kind == "child":
        path = Path("c.vhd")
        snapshot(image, path)
    elif kind != "vhd":
        path = Path(f"d.{kind}")
        run("qemu-img", "convert", "-f", "vpc", "-O", kind, "d.vhd", str(path))
        options = ("--format", kind)
    before = path.read_bytes()
    command = (
        'qemu-io -f raw "$uri" -c "read -P 5 1M 3M" -c "write -P 9 1536k 4M" -c flush'
        ' -c "write -P 7 512 512" -c "read -P 9 1536k 4M" -c "read -P 5 1M 512k"'
        ' -c "read -P 7 512 512" -c "write -z 2M 64k" -c "read -P 0 2M 64k"'
        ' -c "discard 8M 1M" -c "read -P 0 8M 1M"'
    )
    done = serve(str(path), *options, "--snapshot", "--run", command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "failed" not in done.stdout
    assert path.read_bytes() == before
    assert not path.with_name(f"{path.name}.lease").exists()


def test_a_snapshot_takes_no_lease_and_excludes_writers(image: Path) -> None:
    with serving(image, "--socket", "a", "--snapshot", errors=Path("err")) as one:
        with serving(image, "--socket", "b", "--snapshot", errors=Path("err2")) as two:
            run("qemu-io", "-f", "raw", one.uri, "-c", "write -P 1 0 1M")
            out = run("qemu-io", "-f", "raw", two.uri, "-c", "read -P 0 0 1M")
            assert "failed" not in out
            assert "can_write: false" not in run("nbdinfo", one.uri)
        with serving(image, "--socket", "b", "--read-only", errors=Path("err2")):
            pass
        assert "in use" in refused("d.vhd", "--socket", "c")
        assert not Path("d.vhd.lease").exists()
    with serving(image, "--socket", "a", errors=Path("err")):
        assert "in use" in refused("d.vhd", "--socket", "c", "--snapshot")


def test_a_full_temporary_directory_is_one_line(image: Path) -> None:
    error = refused("d.vhd", "--snapshot", "--run", "true", TMPDIR="/no/such/dir")
    assert "No such file" in error


def test_it_ends_when_the_last_client_has_left(image: Path) -> None:
    with subprocess.Popen(
        [*SERVE, "d.vhd", "--socket", "s", "--exit-last"], stdout=subprocess.PIPE, env=ENV
    ) as process:
        assert process.stdout is not None
        uri = process.stdout.readline().decode().strip()
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect("s")
        run("nbdcopy", uri, "copy.raw")
        assert process.wait(30) == 0
    assert sorted(os.listdir()) == ["copy.raw", "d.vhd"]


def test_more_clients_than_allowed_are_refused(image: Path) -> None:
    with serving(image, "--socket", "s", "--max-clients", "1", errors=Path("err")) as one:
        first = Client(Path("s"))
        assert "policy" in run("nbdinfo", "--size", one.uri, check=False)
        assert first.read(0, 512) == bytes(512)
        first.close()
        assert run("nbdinfo", "--size", one.uri).strip() == str(16 * MIB)
    assert "ulimit" in refused("d.vhd", "--socket", "s", "--max-clients", "100000")


def test_ready_fd_and_pid_file_say_when_clients_can_connect(image: Path) -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(
        [*SERVE, "d.vhd", "--socket", "s", "--ready-fd", str(writer), "--pid-file", "pid"],
        stdout=subprocess.DEVNULL, pass_fds=[writer], env=ENV,
    ) as process:  # fmt: skip
        os.close(writer)
        with open(reader, "rb") as ready:
            assert ready.read() == b"nbd+unix:///?socket=s\n"
        assert Path("pid").read_text() == f"{process.pid}\n"
        process.terminate()
        assert process.wait(30) == 0
    assert os.listdir() == ["d.vhd"]
    assert "is not open" in refused("d.vhd", "--socket", "s", "--ready-fd", "9")
    assert "No such file" in refused("d.vhd", "--socket", "s", "--pid-file", "no/pid")
    assert os.listdir() == ["d.vhd"]


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_of_start_and_end(image: Path, abstract: bool) -> None:
    name = f"@vhdtool-{os.getpid()}" if abstract else str(Path("notify").resolve())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0") if abstract else name)
        manager.settimeout(30)
        env = {"NOTIFY_SOCKET": name}
        with serving(image, "--socket", "s", errors=Path("err"), env=env):
            assert manager.recv(4096).split(b"\n")[0] == b"READY=1"
        assert manager.recv(4096) == b"STOPPING=1"
        # A manager that has gone is no reason to fail.
    with serving(image, "--socket", "s", errors=Path("err"), env=env):
        pass


@pytest.mark.parametrize("place", ["s.sock", "127.0.0.1:"])
def test_systemd_passes_a_socket(image: Path, place: str) -> None:
    if place.endswith(":"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place += str(free.getsockname()[1])
        uri = f"nbd://{place}"
    else:
        place = str(Path(place).resolve())
        uri = f"nbd+unix:///?socket={place}"
    words = ["systemd-socket-activate", "-l", place, "-E", f"PYTHONPATH={ROOT}", *SERVE, "d.vhd"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: run("nbdinfo", "--size", uri, check=False).strip() == str(16 * MIB))
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
    # The socket is the manager's.
    assert "/" not in place or Path(place).exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--read-only"], "no lock that keeps writers out"),
        (["--snapshot"], "no lock that keeps writers out"),
        ([], "no file beside it"),
    ],
)
def test_a_lun_is_served_to_writers_with_a_record(
    words: list[str], reason: str, image: Path
) -> None:
    lun = "iscsi://me%secret@127.0.0.1/iqn.2026-01.org.example:disks/1"
    said = refused(lun, *words, "--socket", "s")
    assert said.startswith("vhdtool: iscsi://127.0.0.1/iqn.2026-01.org.example:disks/1: ")
    assert reason in said
    assert "secret" not in said
    assert os.listdir() == ["d.vhd"]


def test_a_passed_socket_excludes_another(image: Path) -> None:
    launcher = (
        "import os, socket, sys; one = socket.socket(); one.bind(('127.0.0.1', 0)); "
        "one.listen() if sys.argv[1] == 'listen' else None; os.dup2(one.fileno(), 3); "
        "os.set_inheritable(3, True); "
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2]); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[3:]])"
    )

    def launched(how: str, count: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", launcher, how, count, *SERVE[1:], "d.vhd", *words],
            capture_output=True, text=True, env=ENV, timeout=30, check=False,
        )  # fmt: skip
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        return done.stderr

    assert "leave out --socket" in launched("listen", "1", "--socket", "s")
    assert "pass one socket" in launched("listen", "2")
    assert "no listening" in launched("bind", "1")
    assert os.listdir() == ["d.vhd"]


def test_it_ends_with_its_parent(image: Path) -> None:
    words = [*SERVE, "d.vhd", "--socket", "s", "--exit-with-parent"]
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({words!r})"],
        stdout=subprocess.PIPE, env=ENV,
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline().startswith(b"nbd")
    parent.kill()
    # Its output ends with the server, which has closed the image by then.
    assert parent.stdout.read() == b""
    parent.communicate()
    assert os.listdir() == ["d.vhd"]


def test_verbose_logs_clients_and_events(image: Path) -> None:
    with serving(image, "--socket", "s", "-v", errors=Path("err")) as one:
        run("nbdinfo", "--size", one.uri)
        wait_for(lambda: "disconnected" in Path("err").read_text())
    log = Path("err").read_text()
    assert "activated epoch=1" in log
    assert "has the export" in log
    assert "closed" in log


def test_tcp_alone_is_the_port_of_nbd_on_loopback(image: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 10809)) == 0:
            pytest.skip("port 10809 is in use")
    with serving(image, "--tcp", errors=Path("err")) as one:
        assert one.uri == "nbd://127.0.0.1:10809"
        assert run("nbdinfo", "--size", one.uri).strip() == str(16 * MIB)
    # The image may follow it.
    assert serve("--tcp", "d.vhd", "--run", "echo $port").stdout == "10809\n"


def test_the_units_are_valid(tmp_path: Path) -> None:
    for kind in ("service", "socket"):
        text = (ROOT / "contrib" / "systemd" / f"vhdtool@.{kind}").read_text()
        text = text.replace("/usr/local/bin/vhdtool", "/usr/bin/true")
        (tmp_path / f"vhdtool@.{kind}").write_text(text)
    units = ["vhdtool@srv-disk.vhd.service", "vhdtool@srv-disk.vhd.socket"]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    assert (done.returncode, "vhdtool" in done.stderr) == (0, False), done.stderr
