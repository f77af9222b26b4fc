"""Short commands on any machine of the lab: run to their end, one error for every failure.

Hosts run this too, so it imports the standard library only.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from vhdtool.errors import LabError


def run_command(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str = "",
    timeout: float | None = None,
    highest_status: int = 0,
) -> str:
    """The standard output of a command; `env` is added to this process's environment.

    Raises LabError with the last line that it wrote when its exit status is above
    `highest_status` or a signal, or on a timeout; OSError when it cannot be started.
    """
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{argv[0]}: no end within {timeout:.0f} s") from None
    if not 0 <= done.returncode <= highest_status:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise LabError(f"{argv[0]}: {' '.join(lines[-1:]) or f'exit status {done.returncode}'}")
    return done.stdout


def last_line(log: Path) -> str:
    """The last line of a program's log that is not empty; "" if there is none."""
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
