"""Our tap-ctl and tapdisk against what was recorded of blktap's, and against it where it is given.

TAP_CTL names a real tap-ctl, TAP_CTL_SOURCES a checkout of blktap to build one from (a second with
gcc); then the same session also runs with it and our tapdisk. Both know only
/run/blktap-control: they run where that is a directory of their own.
"""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.tapctl_facts import (
    EXCHANGES,
    PLACE,
    Fact,
    Run,
    Scene,
    alone,
    exchange,
    load,
    make_images,
    session,
    whole,
)
from tests.support.shim_process import ROOT
from tests.support.waiting import wait_for
from vhdtool.cli import tap_ctl
from vhdtool.image.create.empty import create_dynamic
from vhdtool.tapdisk.tapctl.change_log import HEADER
from vhdtool.tapdisk.tapctl.client import TapCtl

OURS: dict[str, Any] = {
    # tap-ctl takes the answer that says "no such minor" for stats of no length.
    "stats -p {P0} -m 0": [(19, []), (0, None)],
    # tap-ctl reads the timeout of `pause`, and then says that it was called wrongly.
    "pause -p {P1} -m 0 -t 5": [(0, [])],
}
"""Where ours is meant to differ: [(exit code, output; None: as recorded), one for each time]."""


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


@pytest.fixture
def ours(run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Our command, in this process."""

    def run(words: list[str], stdin: bytes) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = tap_ctl.call(["--run-dir", str(run_dir), *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def expected(fact: dict[str, Any], seen: dict[str, int], exceptions: bool) -> tuple[int, object]:
    """(exit code, output) of one command; a command that comes twice may differ once."""
    words = str(fact["words"])
    meant = OURS.get(words, []) if exceptions else []
    at = seen[words] = seen.get(words, -1) + 1
    code, out = meant[at] if at < len(meant) else (fact["code"], None)
    return code, fact["out"] if out is None else out


def compare(facts: list[Fact], exceptions: bool) -> list[str]:
    """What differs from the record, a line each."""
    seen: dict[str, int] = {}
    wrong = []
    recorded = list(load("tapctl_session.json"))
    assert [fact["words"] for fact in recorded] == session() == [fact.words for fact in facts]
    for got, fact in zip(facts, recorded, strict=True):
        code, out = expected(fact, seen, exceptions)
        if (got.code, got.out) != (code, out):
            wrong.append(f"{got.words}: exit {got.code} {got.out}, recorded {code} {out}")
        if code and got.err != fact["err"] and code == fact["code"]:
            wrong.append(f"{got.words}: says {got.err!r}, recorded {fact['err']!r}")
    return wrong


def test_a_session_ends_each_command_as_blktaps_did(ours: Run, run_dir: Path, images: Path) -> None:
    scene = Scene(ours, run_dir, images)
    facts = [scene(line) for line in session()]
    assert compare(facts, exceptions=True) == []
    assert "Traceback" not in (run_dir / "tapdisk.log").read_text()


def test_a_wrong_word_in_a_session_is_seen() -> None:
    facts = [Fact(**fact) for fact in load("tapctl_session.json")]
    assert compare(facts, exceptions=False) == []
    facts[4].code += 1
    facts[9].out = ["pid=1"]
    facts[5].err = "Something else"
    assert [line.partition(":")[0] for line in compare(facts, exceptions=False)] == [
        "free -m 1", "free -m 1", "spawn",
    ]  # fmt: skip


@pytest.mark.parametrize("at", range(len(EXCHANGES)), ids=[line[:40] for line, *_ in EXCHANGES])
def test_the_same_bytes_are_sent_and_the_same_is_made_of_answers(
    ours: Run, run_dir: Path, at: int
) -> None:
    run_dir.mkdir()
    fact = list(load("tapctl_bytes.json"))[at]
    answers = [[whole(one) for one in part] for part in fact["answers"]]
    got = exchange(ours, run_dir, EXCHANGES[at][0], EXCHANGES[at][1], answers)
    assert got.words == fact["words"]
    assert [whole(one).hex() for one in got.sent] == [whole(one).hex() for one in fact["sent"]]
    assert (got.code, got.out) == (fact["code"], fact["out"])


def test_a_log_of_changes_has_a_bit_for_each_64_kib(ours: Run, run_dir: Path, images: Path) -> None:
    scene = Scene(ours, run_dir, images)
    uri = opened(scene, "-C", "{D}/log")
    for command in ("write -P 1 0 4k", "write -P 2 130k 64k", "write -z 640k 64k", "flush"):
        subprocess.run(
            ["qemu-io", "-f", "raw", "-c", command, uri], check=True, capture_output=True
        )
    assert scene("close -p {P0} -m 0").code == 0
    bits = (images / "log").read_bytes()[HEADER:]
    assert bits[:3] == bytes([0b1101, 0b100, 0])
    assert not any(bits[3:])
    assert (images / "log").read_bytes()[:HEADER] == bytes(HEADER)


def opened(scene: Scene, *more: str) -> str:
    """A disk on minor 0 of a new tapdisk; its NBD socket's URI."""
    at = len(scene.pids)
    for line in ("allocate", "spawn", f"attach -p {{P{at}}} -m 0"):
        assert scene(line).code == 0
    fact = scene(" ".join(("open", "-p", f"{{P{at}}}", "-m", "0", "-a", "vhd:{D}/a.vhd", *more)))
    assert fact.code == 0, fact
    return f"nbd+unix:///?socket={scene.run_dir}/nbd{scene.pids[at]}.0"


def qemu_io(kind: str, where: str, *commands: str) -> None:
    words = [part for command in commands for part in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-f", kind, *words, where], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout


@pytest.mark.parametrize("kind", ["vhd", "aio"])
def test_a_mirror_has_every_write(ours: Run, run_dir: Path, images: Path, kind: str) -> None:
    second = images / "second"
    subprocess.run(["truncate", "-s", "64M", second], check=True)
    if kind == "vhd":
        second.unlink()
        create_dynamic(second, 64 << 20)
    scene = Scene(ours, run_dir, images)
    uri = opened(scene, "-2", f"{kind}:{{D}}/second")
    qemu_io("raw", uri, "write -P 5 3M 1M", "write -z 3500k 64k", "discard 3M 64k", "flush")
    assert scene("pause -p {P0} -m 0").code == 0
    assert scene("unpause -p {P0} -m 0").code == 0
    qemu_io("raw", uri, "write -P 6 9M 64k")
    assert scene("close -p {P0} -m 0").code == 0
    expected = ("read -P 5 3200k 256k", "read -P 0 3500k 64k", "read -P 0 3M 64k")
    for path, driver in ((images / "a.vhd", "vpc"), (second, "vpc" if kind == "vhd" else "raw")):
        qemu_io(driver, str(path), *expected, "read -P 6 9M 64k")


def test_a_disk_goes_on_without_its_lost_nbd_mirror(ours: Run, run_dir: Path, images: Path) -> None:
    copy, place = images / "copy.raw", images / "copy.sock"
    subprocess.run(["truncate", "-s", "64M", copy], check=True)
    server = subprocess.Popen(
        ["qemu-nbd", "-f", "raw", "--persistent", "--shared=0", f"--socket={place}", copy]
    )
    try:
        wait_for(place.exists, process=server)
        scene = Scene(ours, run_dir, images)
        uri = opened(scene, "-2", f"nbd:{place}")
        qemu_io("raw", uri, "write -P 5 3M 64k", "flush")
        assert '"nbd_mirror_failed": 0' in scene("stats -p {P0} -m 0").out[0]
        qemu_io("raw", str(copy), "read -P 5 3M 64k")
    finally:
        server.kill()
        server.wait()
    qemu_io("raw", uri, "write -P 6 9M 64k", "flush", "read -P 6 9M 64k")
    assert '"nbd_mirror_failed": 1' in scene("stats -p {P0} -m 0").out[0]
    assert scene("close -p {P0} -m 0").code == 0


def test_a_mirror_to_a_disk_that_another_process_has_is_refused(
    ours: Run, run_dir: Path, images: Path
) -> None:
    scene = Scene(ours, run_dir, images)
    opened(scene)
    for line in ("allocate", "spawn", "attach -p {P1} -m 1"):
        assert scene(line).code == 0
    busy = "open -p {P1} -m 1 -a vhd:{D}/b.vhd -2 vhd:{D}/a.vhd"
    assert scene(busy).code == errno.EBUSY
    assert scene("open -p {P1} -m 1 -a vhd:{D}/b.vhd").code == 0
    for line in ("close -p {P1} -m 1", "close -p {P0} -m 0"):
        assert scene(line).code == 0


# the real one


def real_tap_ctl(folder: Path) -> Path:
    """The binary that was given, or one built from the sources that were given."""
    if given := os.environ.get("TAP_CTL"):
        return Path(given)
    sources, built = os.environ["TAP_CTL_SOURCES"], folder / "tap-ctl"
    parts = sorted(str(path) for path in Path(sources, "control").glob("tap-ctl*.c"))
    macros = ["-D_GNU_SOURCE", "-DTAPCTL", '-DTAPDISK_EXEC="tapdisk"']
    macros += ['-DTAPDISK_EXECDIR="/run/blktap-control/libexec"']
    subprocess.run(["gcc", *macros, "-I", f"{sources}/include", "-o", built, *parts], check=True)
    return built


INSIDE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from tests.interop.tapctl_facts import PLACE, Scene, binary, session
scene = Scene(binary(Path(sys.argv[1])), PLACE, Path(sys.argv[2]))
print(json.dumps([asdict(scene(line)) for line in session()]))
"""


def with_the_real_one(folder: Path, images: Path, tool: Path) -> list[Fact]:
    """The session, in a place of its own where the tapdisk that it starts is ours."""
    tapdisk = folder / "tapdisk"
    tapdisk.write_text(f'#!/bin/sh\nexec {sys.executable} -m vhdtool.tapdisk.tapctl.process "$@"\n')
    tapdisk.chmod(0o755)
    (folder / "session.py").write_text(INSIDE)
    place = libexec(tool)
    over = "" if PLACE in place.parents else f"mount -t tmpfs none {place.parent} && "
    put = f"mkdir -p {place.parent} && {over}cp {tapdisk} {place} && "
    done = subprocess.run(
        alone([sys.executable, str(folder / "session.py"), str(tool), str(images)], put),
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests/interop"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Fact(**fact) for fact in json.loads(done.stdout)]


def libexec(tool: Path) -> Path:
    """The tapdisk that this tap-ctl starts: the one path of that name in it."""
    words = [word for word in tool.read_bytes().split(b"\0") if word.endswith(b"/tapdisk")]
    for word in words:
        if word.startswith(b"/") and word != bytes(PLACE / "tapdisk"):
            return Path(word.decode())
    raise AssertionError(f"{tool}: names no tapdisk")


if {"TAP_CTL", "TAP_CTL_SOURCES"} & set(os.environ):

    def test_the_real_tap_ctl_drives_our_tapdisk(tmp_path: Path, images: Path) -> None:
        told = compare(
            with_the_real_one(tmp_path, images, real_tap_ctl(tmp_path)), exceptions=False
        )
        assert told == []
