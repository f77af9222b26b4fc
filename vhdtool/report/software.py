"""software.json: the version and the commit of vhdtool with which a run was made.

A history names with it the commits between which an order began to fail.
"""

import os
import subprocess
from pathlib import Path

import vhdtool

NAME = "software.json"
GIT_SECONDS = 10


def software() -> dict[str, str | None]:
    """The contents of software.json."""
    return {"vhdtool": vhdtool.__version__, "commit": _commit()}


def _commit() -> str | None:
    """The commit of the checkout, ending in `-dirty` if files differ; None where there is none."""
    checkout = Path(vhdtool.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    # A hook or a bisection sets GIT_DIR; root may run the checkout of another user.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "safe.directory=*", "-C", str(checkout)]
    command += ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
