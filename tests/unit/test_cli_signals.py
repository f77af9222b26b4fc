"""TERM, Ctrl-C and a hang-up leave nothing of an unfinished command behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_for
from vhdtool.cli.main import run
from vhdtool.cli.signals import clean_up_on_signals, uninterrupted
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.image.journal.new_file import new_path
from vhdtool.lab.guest.build import replace
from vhdtool.storage import FileStorage


@pytest.fixture(autouse=True)
def hang_up() -> Iterator[None]:
    """Take SIGHUP, which nohup ignores, and all that it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


MIB = 1 << 20
PATIENCE = 60
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in ENDING]
    clean_up_on_signals()
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "words",
    [
        ["create", "new.vhd", "4m"],
        ["create", "--fixed", "new.vhd", "4m"],
        ["snapshot", "--keep-empty", "a.vhd", "new.vhd"],
        ["convert", "a.raw", "new.vhd"],
        ["convert", "--fixed", "a.raw", "new.vhd"],
        ["convert", "-q", "a.raw", "new.raw"],
        ["read", "f.vhd", "-o", "new.raw"],
        ["read", "--salvage", "f.vhd", "-o", "new.raw"],
    ],
)
def test_term_while_a_new_file_is_written_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    create_dynamic("a.vhd", 4 * MIB)
    Path("a.raw").write_bytes(os.urandom(MIB))
    assert run(["convert", "-q", "--fixed", "a.raw", "f.vhd"]) == 0
    before = set(os.listdir())
    caught: list[str] = []
    truncate, pwrite = FileStorage.truncate, FileStorage.pwrite

    def interrupt(storage: FileStorage) -> None:
        if storage.path.endswith(".part") and not caught:
            caught.append(storage.path)
            assert os.path.exists(storage.path)
            os.kill(os.getpid(), signal.SIGTERM)

    def truncates(self: FileStorage, size: int) -> None:
        truncate(self, size)
        interrupt(self)

    def writes(self: FileStorage, offset: int, data: bytes) -> None:
        pwrite(self, offset, data)
        interrupt(self)

    monkeypatch.setattr(FileStorage, "truncate", truncates)
    monkeypatch.setattr(FileStorage, "pwrite", writes)
    with pytest.raises(SystemExit) as ended:
        run(words)
    assert ended.value.code == 128 + signal.SIGTERM
    assert caught
    assert set(os.listdir()) == before


def test_a_second_signal_does_not_interrupt_the_clean_up(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_path(tmp_path / "new") as part:
            Path(part).touch()
            try:
                os.kill(os.getpid(), signal.SIGINT)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_a_signal_waits_for_what_must_not_be_interrupted() -> None:
    done = []

    def interrupted() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("all of it")
        done.append("more")

    with pytest.raises(SystemExit):
        interrupted()
    assert done == ["all of it"]


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    clean_up_on_signals()
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_failed_replacement_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "initrd.img"
    place.write_bytes(b"old")

    def fail(self: Path, data: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(KeyboardInterrupt):
        replace(place, b"new")
    assert os.listdir(tmp_path) == ["initrd.img"]
    assert place.read_bytes() == b"old"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_a_regular_file_is_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A rename over a device node, /dev/null for example, would destroy it."""
    place = tmp_path / "there"
    make(place)
    before = os.stat(place).st_mode
    for name in ("b.vhd", "b.qcow2"):
        create_dynamic(tmp_path / "a.vhd", MIB, overwrite=True)
        os.symlink("there", tmp_path / name)
        assert run(["convert", "--force", str(tmp_path / "a.vhd"), str(tmp_path / name)]) == 1
    assert os.stat(place).st_mode == before
    assert set(os.listdir(tmp_path)) == {"there", "a.vhd", "b.vhd", "b.qcow2"}


@pytest.mark.parametrize(
    "words",
    [
        ["modify", "a.vhd", "--hidden"],
        ["modify", "c.vhd", "--parent", "a.vhd"],
        ["resize", "a.vhd", "16m"],
        ["resize", "f.vhd", "16m"],
    ],
)
def test_a_signal_between_the_writes_of_a_change_takes_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Whichever write it meets, the image is as before or as asked for, and no journal is left."""
    monkeypatch.chdir(tmp_path)
    create_dynamic("a.vhd", 4 * MIB)
    create_fixed("f.vhd", 4 * MIB)
    assert run(["snapshot", "-q", "a.vhd", "c.vhd"]) == 0
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    pwrite = FileStorage.pwrite
    left = 0

    def writes(self: FileStorage, offset: int, data: bytes) -> None:
        nonlocal left
        pwrite(self, offset, data)
        if self.path == words[1]:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FileStorage, "pwrite", writes)
    interrupted = 0
    while left <= 0:
        clean_up_on_signals()
        left = interrupted + 1
        try:
            assert run([*words, "-q"]) == 0
        except SystemExit:
            interrupted += 1
            assert {name: Path(name).read_bytes() for name in os.listdir()} == before
    assert interrupted > 0
    assert set(os.listdir()) == set(before)
    assert run(["check", "-q", words[1]]) == 0


SLOW_QEMU_IMG = """#!/bin/sh
for last; do :; done
case $1 in info) echo '{"virtual-size": 1048576}'; exit;; esac
case $last in nbd*) ;; *) : > "$last";; esac
echo $$ > "$PID_FILE.new"; mv "$PID_FILE.new" "$PID_FILE"
exec sleep 600
"""


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("names", [("a.vhd", "b.qcow2"), ("a.vhd", "b.vhdx"), ("q.qcow2", "b.vhd")])
def test_a_signal_during_qemus_conversion_ends_the_child_too(
    tmp_path: Path, number: int, names: tuple[str, str]
) -> None:
    """The real command, with a qemu-img that never ends; no partial file and directory stays."""
    here, tools, scratch = (tmp_path / name for name in ("here", "tools", "scratch"))
    for folder in (here, tools, scratch):
        folder.mkdir()
    (tools / "qemu-img").write_text(SLOW_QEMU_IMG)
    (tools / "qemu-img").chmod(0o755)
    create_dynamic(here / "a.vhd", MIB)
    (here / "q.qcow2").write_bytes(b"QFI\xfb" + bytes(600))
    before = set(os.listdir(here))
    pid_file = tmp_path / "pid"
    child = subprocess.Popen(
        [sys.executable, "-m", "vhdtool", "convert", *names],
        cwd=here,
        env={
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "TMPDIR": str(scratch),
            "PID_FILE": str(pid_file),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        stderr=subprocess.PIPE,
    )
    wait_for(pid_file.exists, PATIENCE, process=child)
    grandchild = int(pid_file.read_text())
    child.send_signal(number)
    _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode == (130 if number == signal.SIGINT else 128 + number), said
    assert b"Traceback" not in said
    assert set(os.listdir(here)) == before
    assert os.listdir(scratch) == []
    assert has_ended(grandchild)


def has_ended(pid: int) -> bool:
    """Gone, or a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
