"""The TapCtl and Tapdisk classes of xapi-project/sm: what they call, and what they read from it.

    python -m tests.support.sm_tapctl TAP_CTL SM_SOURCES

records facts/sm_calls.json with the real tap-ctl and tapdisk: for each call of a method the words
that it runs tap-ctl with, and the value that it makes of what that prints. Needs root, as
tapctl_facts.py does.
"""

import ast
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.interop.tapctl_facts import FACTS, alone, make_images
from tests.support.waiting import wait_for
from vhdtool.lab.localhosts.processes import Process

WANTED = {"RetryLoop", "retried", "TapCtl", "Tapdisk", "TapdiskNotRunning", "TapdiskNotUnique"}
FAILURE = "TapCtl.CommandFailure"
CALLS = """
minor = int(TapCtl.allocate().rpartition("-")[2])
pid = TapCtl.spawn()
TapCtl.list(pid=pid)
TapCtl.attach(pid, minor)
TapCtl.open(pid, minor, "vhd", images + "/a.vhd", {"rdonly": False, "o_direct": True})
TapCtl.open(pid, minor, "vhd", images + "/a.vhd", {})
TapCtl.list(minor=minor)
TapCtl.list(_type="vhd", path=images + "/a.vhd")
TapCtl.list(path="/not/there")
TapCtl.list()
Tapdisk.from_path(images + "/a.vhd").pause_state()
Tapdisk.from_minor(minor).pause()
TapCtl.list(minor=minor)
Tapdisk.from_minor(minor).pause_state()
Tapdisk.from_minor(minor).unpause()
Tapdisk.from_minor(minor).is_running()
TapCtl.pause(pid, minor)
TapCtl.unpause(pid, minor, "vhd", images + "/b.vhd")
TapCtl.list(minor=minor)
TapCtl.unpause(pid, minor, "vhd", images + "/b.vhd")
TapCtl.pause(pid, minor)
TapCtl.unpause(pid, minor, "vhd", images + "/b.vhd", cbtlog=images + "/log")
Tapdisk.from_minor(minor).stats()
TapCtl.stats(pid, minor)
TapCtl.close(pid, minor)
TapCtl.list(minor=minor)
TapCtl.open(pid, minor, "aio", images + "/r.raw", {"rdonly": 1, "timeout": 30, "o_direct": False})
TapCtl.close(pid, minor, force=True)
TapCtl.open(pid, minor, "vhd", images + "/child.vhd", {"lcache": True, "standby": True})
TapCtl.list(minor=minor)
TapCtl.close(pid, minor, True)
TapCtl.open(pid, minor, "vhd", images + "/a.vhd", {"cbtlog": images + "/log"})
TapCtl.close(pid, minor)
TapCtl.open(pid, minor, "vhd", images + "/missing.vhd", {})
TapCtl.detach(pid, minor)
TapCtl.detach(pid, minor)
TapCtl.free(minor)
TapCtl.free(minor)
TapCtl.list()
"""


def load(sources: Path, tap_ctl: list[str], words: list[list[str]]) -> dict[str, Any]:
    """The classes, without the rest of SM; `words` gets what they run tap-ctl with."""
    tree = ast.parse((sources / "libs/sm/blktap2.py").read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", "") in WANTED]
    names: dict[str, Any] = {
        "util": SimpleNamespace(SMlog=lambda *_: None, logException=lambda *_: None),
        "subprocess": subprocess, "errno": errno, "os": os, "signal": signal, "time": time,
        "json": json, "re": re, "Blktap": SimpleNamespace,
    }  # fmt: skip
    exec(compile(tree, "blktap2.py", "exec"), names)

    def command(_cls: type, args: list[object]) -> list[str]:
        words.append([str(word) for word in args])
        return [*tap_ctl, *words[-1]]

    names["TapCtl"]._mkcmd = classmethod(command)
    return names


def calls(sources: Path, tap_ctl: list[str], images: Path) -> list[dict[str, Any]]:
    """Every line of CALLS: what was run, and what came of it."""
    words: list[list[str]] = []
    names = load(sources, tap_ctl, words)
    names["images"] = str(images)
    told = []
    for line in CALLS.strip().splitlines():
        words.clear()
        try:
            if re.match(r"\w+ = ", line):
                exec(line, names)
                value = names[line.partition(" ")[0]]
            else:
                value = eval(line, names)
        except names["TapCtl"].CommandFailure as failure:
            value = {FAILURE: failure.get_error_code()}
        if "detach" in line:
            # The tapdisk ends after its answer.
            wait_for(lambda: Process.of(names["pid"]) is None)
        fact = {"call": line, "words": list(words), "value": value}
        told.append(json.loads(_general(json.dumps(fact), names.get("pid"), images)))
    return told


def _general(text: str, pid: int | None, images: Path) -> str:
    text = text.replace(str(images), "{D}")
    return (
        re.sub(rf'(?<![\w/.]){pid}\b(")?', r"P0\1", text).replace(": P0", ': "P0"') if pid else text
    )


def record(tap_ctl: str, sources: str, images: str) -> None:
    make_images(Path(images))
    told = calls(Path(sources), [tap_ctl], Path(images))
    lines = ",\n".join(json.dumps(fact) for fact in told)
    text = '{"of": "TapCtl of xapi-project/sm", "facts": [\n' + lines + "\n]}\n"
    (FACTS / "sm_calls.json").write_text(text)


if __name__ == "__main__":
    import tempfile

    if sys.argv[1] == "--inside":
        record(*sys.argv[2:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            inside = alone(
                [sys.executable, "-m", "tests.support.sm_tapctl", "--inside", *sys.argv[1:], folder]
            )
            sys.exit(subprocess.run(inside, check=False).returncode)
