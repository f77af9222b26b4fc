"""The end of a server process: no signal is lost, and none blocks."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.shim_process import ROOT
from tests.support.waiting import wait_for
from vhdtool.image.create.empty import create_dynamic
from vhdtool.tapdisk.ending import Ending


@pytest.fixture
def ending() -> Iterator[Ending]:
    one = Ending()
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [(number, signal.getsignal(number)) for number in numbers]
    signal.signal(signal.SIGTERM, lambda *_: one.set())
    # What hangs is ended by this, after which it fails.
    alarm = threading.Timer(10, one.set)
    alarm.start()
    yield one
    assert alarm.is_alive()
    alarm.cancel()
    for number, handler in before:
        signal.signal(number, handler)


def test_a_signal_that_arrived_before_ends_the_wait(ending: Ending) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    ending.wait()
    assert ending.is_set()


def test_a_signal_just_before_the_wait_blocks_ends_it(
    ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.read

    def late(fd: int, length: int) -> bytes:
        os.kill(os.getpid(), signal.SIGTERM)
        return read(fd, length)

    monkeypatch.setattr(os, "read", late)
    ending.wait()


def test_another_thread_ends_the_wait(ending: Ending) -> None:
    thread = threading.Timer(0.05, ending.set)
    thread.start()
    ending.wait()
    thread.join()


def test_other_signals_are_handled_and_do_not_end_it(ending: Ending) -> None:
    seen: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))

    def both() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(lambda: seen)
        assert not ending.is_set()
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=both)
    thread.start()
    ending.wait()
    thread.join()
    assert seen == [signal.SIGUSR1]


def test_setting_it_often_never_blocks(ending: Ending) -> None:
    for _ in range(100_000):
        ending.set()
    ending.wait()


def test_a_signal_during_a_report_gives_another_after_it() -> None:
    one, depth, depths = Ending(), 0, list[int]()

    def report() -> None:
        nonlocal depth
        depth += 1
        depths.append(depth)
        if len(depths) < 3:
            signal.raise_signal(signal.SIGUSR1)
        else:
            one.set()
        depth -= 1

    before = signal.signal(signal.SIGUSR1, lambda *_: one.ask_report())
    try:
        signal.raise_signal(signal.SIGUSR1)
        one.wait(report)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert depths == [1, 1, 1]


def test_a_report_to_a_full_pipe_does_not_keep_term_waiting() -> None:
    code = """
import signal
from vhdtool.tapdisk.ending import Ending
from vhdtool.tapdisk.events import log_status
one = Ending()
signal.signal(signal.SIGTERM, lambda *_: one.set())
one.ask_report()
def report():
    print("reports", flush=True)
    log_status({"state": "active"})
one.wait(report)
"""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=writer) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"reports\n"
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()
            os.close(reader)
            os.close(writer)


EARLY = """
import os, runpy, signal, sys
late, module = sys.argv[1:3]
del sys.argv[1:3]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == late:
            os.kill(os.getpid(), signal.SIGUSR1)
sys.meta_path.insert(0, Finder())
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("late", "module", "options"),
    [
        ("vhdtool.tapdisk.serve", "vhdtool", ["serve", "d.vhd", "--socket", "s"]),
        ("vhdtool.tapdisk.disk", "vhdtool.tapdisk", ["--dir", "."]),
        ("vhdtool.tapdisk.disk", "vhdtool.tapdisk.tapctl.process", ["-D", "--run-dir", "."]),
    ],
)
def test_usr1_while_modules_load_does_not_end_it(
    tmp_path: Path, late: str, module: str, options: list[str]
) -> None:
    create_dynamic(tmp_path / "d.vhd", 1 << 20)
    with subprocess.Popen(
        [sys.executable, "-c", EARLY, late, module, *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        try:
            # A disk reports its state; a tapdisk without disks has none to report.
            first = process.stdout if module.endswith("process") else process.stderr
            assert first is not None
            assert first.readline()
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
