"""What a host says that it holds of a case: each kind of thing is seen, and nothing else."""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.shims import owner
from vhdtool.lab.hosts.agent_holdings import Holdings
from vhdtool.oracle.evidence.holdings import KINDS
from vhdtool.vdi.keys import key_file

TARGET = ("iqn.lab", 3261)


class Machine:
    """Directories of a host, with /proc and /sys as a test makes them."""

    def __init__(self, tmp_path: Path) -> None:
        self.shared, self.run = tmp_path / "shared", tmp_path / "private/run"
        self.sys = tmp_path / "sys"
        for folder in (self.shared, self.run, self.sys / "block"):
            folder.mkdir(parents=True)
        self.image = self.shared / "case-s1.vhd"
        self.image.write_bytes(bytes(4096))

    def held(self, proc: Path = Path("/proc")) -> dict[str, list[str]]:
        look = Holdings(str(self.image), str(self.run), [49160], TARGET, None, proc, self.sys)
        found = look.describe()["held"]
        assert tuple(found) == KINDS
        return {kind: lines for kind, lines in found.items() if lines}

    def block(self, name: str, **files: str) -> None:
        for file, text in files.items():
            path = self.sys / "block" / name / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def other(machine: Machine) -> Iterator[subprocess.Popen[str]]:
    """A process that locks what it is told to: `PATH ACCESS FIRST LENGTH` a line."""
    code = (
        "import fcntl, os, struct, sys\n"
        "for line in sys.stdin:\n"
        "    path, kind, first, length = line.split()\n"
        "    fd = os.open(path, os.O_RDWR | os.O_CREAT)\n"
        "    lock = struct.pack('hhqqi4x', int(kind), 0, int(first), int(length), 0)\n"
        "    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)\n"
        "    print('locked', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def lock(process: subprocess.Popen[str], path: Path, kind: int, first: int, length: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    print(path, kind, first, length, file=process.stdin, flush=True)
    assert process.stdout.readline() == "locked\n"


def test_a_host_without_a_case_holds_the_image_and_nothing_else(machine: Machine) -> None:
    assert machine.held() == {"files": ["case-s1.vhd"]}


def test_locks_on_image_and_lease_name_their_process(
    machine: Machine, other: subprocess.Popen[str]
) -> None:
    lock(other, machine.image, fcntl.F_WRLCK, 300, 2)
    lock(other, machine.image, fcntl.F_RDLCK, 100, 1)
    lease = machine.shared / "case-s1.vhd.lease"
    lock(other, lease, fcntl.F_WRLCK, 1 << 40, 1)
    held = machine.held()
    assert held["locks"] == [
        f"pid {other.pid}: read lock (OFDLCK) on bytes 100 to 100 of case-s1.vhd",
        f"pid {other.pid}: write lock (OFDLCK) on bytes 1099511627776 to 1099511627776 "
        "of case-s1.vhd.lease",
        f"pid {other.pid}: write lock (OFDLCK) on bytes 300 to 301 of case-s1.vhd",
    ]
    assert [line.split(":")[0] for line in held["processes"]] == [f"pid {other.pid}"]
    other.kill()
    other.wait()
    assert "locks" not in machine.held()


def test_a_lock_of_another_host_is_seen(machine: Machine) -> None:
    """Our own process stands for another client of the file server: a look leaves it out."""
    with open(machine.image, "rb+") as file:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 300, 2, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, asked)
        found = machine.held()["locks"]
    assert found == ["elsewhere: write lock on bytes 300 to 301 of case-s1.vhd"]


def test_the_holder_of_the_lease_and_the_newest_epoch_are_told(machine: Machine) -> None:
    sector = b'{"epoch": 7, "holder": {"host": "beta", "pid": 42}}'.ljust(511) + b"\n"
    (machine.shared / "case-s1.vhd.lease").write_bytes(sector)
    look = Holdings(
        str(machine.image), str(machine.run), [], TARGET, None, sys=machine.sys
    ).describe()
    assert look["epoch"] == 7
    assert look["held"]["lease"] == ["beta: pid 42, epoch 7"]
    assert look["held"]["files"] == ["case-s1.vhd", "case-s1.vhd.lease"]


def test_vdi_keys_are_told_with_the_host_of_each(machine: Machine) -> None:
    with key_file(machine.image) as file, file.change() as keys:
        keys.add("host_beta", owner("beta", 42), "RW")
    assert machine.held() == {
        "files": ["case-s1.vhd", "case-s1.vhd.keys"],
        "keys": ["beta: host_beta (RW) of beta (pid 42), key 1"],
    }


def test_files_beside_the_image_are_those_with_its_name(machine: Machine) -> None:
    for name in (".case-s1.vhd.part", "case-s1.vhd.journal", "case-s11.vhd", "other"):
        (machine.shared / name).touch()
    assert machine.held() == {
        "files": [".case-s1.vhd.part", "case-s1.vhd", "case-s1.vhd.journal"],
    }


def test_sockets_of_the_run_are_found_by_path_and_port(machine: Machine) -> None:
    path = str(machine.run / "disk0.nbd")
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
        unix.bind(path)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("127.0.0.1", 49160))
        tcp.listen()
        found = machine.held()["sockets"]
    assert found == sorted([f"{path} (bound)", f"{path} (file)", "TCP port 49160 listens"])
    assert machine.held()["sockets"] == [f"{path} (file)"], "nobody has it, the file stays"


def test_a_process_that_only_names_the_image_is_one_of_the_case(machine: Machine) -> None:
    command = [sys.executable, "-c", "print(); input()", str(machine.image)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        # Only then is its command line sure to be in /proc.
        process.stdout.readline()
        (line,) = machine.held()["processes"]
        assert line.startswith(f"pid {process.pid}: ")
        assert str(machine.image) in line
        process.send_signal(signal.SIGKILL)


def test_devices_over_the_image_are_found_and_no_others(machine: Machine) -> None:
    machine.block("loop0", loop__backing_file=f"{machine.image}\n")
    machine.block("loop1", loop__backing_file="/home/other.img\n")
    machine.block("nbd0", pid=f"{os.getpid()}\n")
    machine.block("nbd1", size="0\n")
    for name, title, over in (
        ("dm-0", "outer", "dm-1"), ("dm-1", "inner", "loop0"), ("dm-2", "system", "sda"),
    ):  # fmt: skip
        machine.block(name, dm__name=f"{title}\n")
        (machine.sys / "block" / name / "slaves" / over).mkdir(parents=True)
    for name, target in (("session1", "iqn.lab"), ("session2", "iqn.others")):
        session = machine.sys / "class/iscsi_session" / name
        session.mkdir(parents=True)
        (session / "targetname").write_text(f"{target}\n")
    assert machine.held() == {
        "loop": [f"/dev/loop0 over {machine.image}"],
        "nbd": [f"/dev/nbd0 connected by pid {os.getpid()}"],
        "dm": ["/dev/mapper/inner", "/dev/mapper/outer"],
        "iscsi": ["session1 of iqn.lab"],
        "files": ["case-s1.vhd"],
    }


def test_mounts_of_the_image_and_its_devices_are_found(machine: Machine, tmp_path: Path) -> None:
    machine.block("loop0", loop__backing_file=f"{machine.image}\n")
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 7:0 / /mnt rw - ext4 /dev/loop0p1 rw\n"
        f"3 1 8:1 /x/case-s1.vhd /srv/bound rw - ext4 /dev/sda1 rw\n"
        f"4 1 0:9 / {machine.run}/tmp rw - tmpfs none rw\n"
        "5 1 7:1 / /snap rw - squashfs /dev/loop1 rw\n"
    )
    assert machine.held(proc)["mounts"] == sorted(
        ["/dev/loop0p1 on /mnt", "/dev/sda1 on /srv/bound", f"none on {machine.run}/tmp"]
    )


def test_a_login_at_the_target_is_an_iscsi_session_of_both_ends(
    machine: Machine, tmp_path: Path
) -> None:
    proc = tmp_path / "proc"
    (proc / "self/net").mkdir(parents=True)
    here, port, other = "0100007F:", f"{TARGET[1]:04X}", "0100007F:C350"
    (proc / "self/net/tcp").write_text(
        "  sl  local_address rem_address   st\n"
        f"   0: {here}{port} {other} 01 0\n"
        f"   1: {other} {here}{port} 01 0\n"
        f"   2: {other} {here}{port} 06 0\n"  # TIME_WAIT: nobody has it
    )
    assert machine.held(proc)["iscsi"] == [
        "elsewhere: login at port 3261 (1)", "session with port 3261 (2)",
    ]  # fmt: skip
