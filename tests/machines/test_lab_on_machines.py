"""`make lab LAB=kvm` and `LAB=xen`, as a user types them, and what they leave behind.

Each takes ten minutes and more: three machines are emulated, and a case takes one to three minutes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = {"activate-on": "consistent", "overlap-off": "corrupt", "overlap-on": "refused"}


def make(state: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "VHDLAB_STATE": str(state)}
    return subprocess.run(
        ["make", "-C", str(ROOT), *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def left_of(state: Path) -> list[str]:
    """Processes that know the lab's state directory, and its mounts."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if str(state) in line]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(b"VHDLAB_HOSTS=" + os.fsencode(state)) for word in environment):
            found.append(f"process {folder.name}")
    return found


@pytest.mark.parametrize("hypervisor", ["kvm", "xen"])
def test_a_lab_on_machines_has_the_expected_verdicts(hypervisor: str, tmp_path: Path) -> None:
    state, run = tmp_path / "lab", tmp_path / "run"
    try:
        words = [f"LAB={hypervisor}", "STRATEGY=activate,overlap", f"RUN_DIR={run}"]
        done = make(state, "lab", *words)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        verdict: dict[str, Any] = json.loads((run / "verdict.json").read_text())
        assert (verdict["hypervisor"], verdict["storage"]) == (hypervisor, "nfs")
        found = {one["case"].removesuffix("-s1"): one["verdict"] for one in verdict["strategies"]}
        assert found == CASES
        for phase in ("live", "after"):
            log = (run / "activate-on-s1" / f"testinfra-{phase}.log").read_text()
            assert "passed" in log
            assert "failed" not in log
        judge = [sys.executable, "-m", "vhdtool", "judge", str(run)]
        assert subprocess.run(judge, cwd=ROOT, check=False, capture_output=True).returncode == 0
    finally:
        ended = make(state, "clean-lab")
    assert ended.returncode == 0, ended.stderr
    assert left_of(state) == []
