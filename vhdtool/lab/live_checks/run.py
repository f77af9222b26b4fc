"""Starts pytest with the checks of the hosts, over SSH, and says which failed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.case.runner import CaseRun
from vhdtool.lab.config import LabConfig

LIVE_CASES = (("overlap", False), ("overlap", True), ("activate", True))
"""The cases with live checks: one of each verdict."""
TIMEOUT = 120
PACKAGE = "vhdtool.lab.live_checks"


class FailedLiveCheck(LabError):
    """A check of the hosts failed. The case ran on, and the oracles judge its record."""


def check_live(config: LabConfig, run: CaseRun, phase: str) -> None:
    """Check the hosts, phase "live" or "after". Raises FailedLiveCheck for checks that failed."""
    plan = run.plan
    if not config.live_tests or (plan.strategy.name, plan.guard) not in LIVE_CASES:
        return
    path = run.record.folder.absolute() / "live.json"
    described = describe(config, run, phase)
    path.write_text(json.dumps(described, indent=1))
    log = run.record.folder / f"testinfra-{phase}.log"
    with open(log, "wb") as out:
        try:
            done = subprocess.run(
                command(described, path),
                env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                check=False,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"testinfra, {phase}: no end within {TIMEOUT} s; see {log}") from None
    if done.returncode:
        raise FailedLiveCheck(
            f"testinfra, {phase}: {failed_checks(log.read_text(errors='replace'))}"
        )


def command(described: dict[str, Any], path: Path) -> list[str]:
    """What a user would type to check the hosts that `described`, in the file `path`, names."""
    # No setting of a directory above has a say: neither pytest's own, nor a module beside it.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-c", os.devnull]
    command += [f"--rootdir={path.parent}", "-p", "no:cacheprovider"]
    command += ["-p", f"{PACKAGE}.plugin", "--pyargs", PACKAGE, "-m", described["phase"]]
    hosts = described["hosts"].values()
    urls = [f"ssh://{host['ssh']}?controlpersist=0&sudo={host['sudo']}" for host in hosts]
    command += [f"--hosts={','.join(urls)}", f"--case={path}"]
    return command + (
        [f"--ssh-config={described['ssh_config']}"] if described["ssh_config"] else []
    )


def failed_checks(output: str) -> str:
    """Which checks failed, in words, or pytest's last line."""
    names = dict.fromkeys(re.findall(r"^(?:FAILED|ERROR) \S+::test_(\w+)", output, re.MULTILINE))
    if names:
        return "not true that " + ", ".join(name.replace("_", " ") for name in names)
    return " ".join(output.strip().splitlines()[-1:])


def describe(config: LabConfig, run: CaseRun, phase: str) -> dict[str, Any]:
    """What must be found on the hosts now; the checks get it as live.json."""
    hosts: dict[str, Any] = {}
    active = []
    for host, role in zip(run.hosts, ("source", "destination"), strict=True):
        sides = [side for side in run.sides if side.host is host and not side.shim.ending]
        shim = guest = None
        for side in sides[-1:]:
            shim = side.shim.describe()
            guest = side.guest.describe() if side.guest.alive else None
            active += [host.name] if shim["state"] == "active" else []
        hosts[host.name] = {
            "ssh": host.config.ssh,
            "sudo": host.config.sudo,
            "python": host.config.python,
            "role": role,
            "private_dir": host.config.private_dir,
            "shim": shim,
            "guest": guest,
        }
    plan = run.plan
    return {
        "phase": phase,
        "hypervisor": config.hypervisor,
        "strategy": plan.strategy.name,
        "guard": plan.guard,
        "expected": plan.strategy.expected(plan.guard),
        "shared_dir": config.shared_dir,
        "image": plan.image,
        "lease": plan.image + ".lease",
        "ssh_config": os.path.relpath(config.ssh_config) if config.ssh_config else None,
        "hosts": hosts,
        "active": "both" if len(active) == 2 else active[0] if active else "none",
    }
