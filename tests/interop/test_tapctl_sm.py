"""Our tap-ctl under the TapCtl class of xapi-project/sm: as recorded, and live where it is given.

SM_SOURCES names a checkout of sm; then the class itself drives our command.
"""

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.tapctl_facts import ROOT, load, make_images
from tests.support.shim_process import wait_tapdisk_gone
from tests.support.sm_tapctl import FAILURE, calls
from vhdtool.cli import tap_ctl
from vhdtool.tapdisk.tapctl.client import TapCtl

FACTS = list(load("sm_calls.json"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    make_images(folder)
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "run"
    yield folder
    for entry in TapCtl(folder).entries():
        if entry.pid is not None:
            os.kill(entry.pid, signal.SIGKILL)


def rows(out: str) -> list[dict[str, Any]]:
    """What SM makes of a list: at most four words a line, `state` in hexadecimal."""
    found = []
    for line in out.splitlines():
        pairs = dict(word.split("=") for word in line.split(" ", 3) if word.count("=") == 1)
        found.append({key: _value(key, value) for key, value in pairs.items()})
    return found


def _value(key: str, value: str) -> int | str:
    if key == "args":
        return value
    return int(value, 16 if key == "state" else 10)


def made(call: str, words: list[str], code: int, out: str) -> object:
    """The value of a call whose last command ended so."""
    first = out.partition("\n")[0].rstrip()
    if code:
        return {FAILURE: code}
    if words[0] == "list" and call.startswith("TapCtl"):
        return rows(out)
    if call.endswith("pause_state()"):
        return "P" if rows(out)[0]["state"] & 0x20 else "R"
    if call.endswith("is_running()"):
        return not rows(out)[0]["state"] & 0x30
    if words[0] == "stats":
        return json.loads(first) if call.startswith("Tapdisk") else first
    if words[0] in ("allocate", "spawn"):
        return int(first.rpartition("-")[2])
    assert first == ""
    return None


def test_the_commands_that_sm_runs_print_what_it_reads(
    run_dir: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    pid = ""
    for fact in FACTS:
        code, out = 0, ""
        for words in fact["words"]:
            real = [word.replace("P0", pid).replace("{D}", str(images)) for word in words]
            code = tap_ctl.call(["--run-dir", str(run_dir), *real])
            out = capsys.readouterr().out
        value = made(fact["call"], words, code, out)
        if words == ["spawn"]:
            pid = str(value)
        if words[0] == "detach" and code == 0:
            wait_tapdisk_gone(run_dir, pid)
        plain = json.dumps(value).replace(str(images), "{D}")
        told = json.dumps(fact["value"]).replace('"P0"', pid)
        assert plain == told, fact["call"]


def test_a_value_that_sm_would_not_get_is_seen() -> None:
    listed = "pid=1 minor=0 state=0x2a args=vhd:/a b\n"
    assert made("TapCtl.list()", ["list"], 0, listed) == [
        {"pid": 1, "minor": 0, "state": 42, "args": "vhd:/a b"}
    ]
    assert made("Tapdisk.x.pause_state()", ["list"], 0, listed) == "P"
    assert made("Tapdisk.x.is_running()", ["list"], 0, listed) is False
    assert made("TapCtl.close()", ["close"], 22, "") == {FAILURE: 22}


if SOURCES := os.environ.get("SM_SOURCES"):

    @pytest.mark.filterwarnings("ignore")  # SM leaves the pipes of its commands open
    def test_the_class_itself(run_dir: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        ours = [sys.executable, "-m", "vhdtool.cli.tap_ctl", "--run-dir", str(run_dir)]
        assert calls(Path(str(SOURCES)), ours, images) == FACTS
