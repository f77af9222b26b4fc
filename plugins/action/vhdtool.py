"""Runs `vhdtool` on the controller and shows its lines while it works.

`ansible.builtin.command` shows nothing before the end, and a run of the lab takes a minute.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections import deque
from typing import Any

from ansible.plugins.action import ActionBase

HOLDER = "VHDLAB_HOLDER"
MARK = "VHDLAB_RUN"
RETURNED_LINES = 2000


def start_time(pid: int) -> str:
    """The start time of a process in clock ticks since boot (proc(5), field 22 of stat)."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]


def missing_package() -> str | None:
    """What to do where the collection is installed and the package is not."""
    if importlib.util.find_spec("vhdtool") is not None:
        return None
    return f"{sys.executable} has no package vhdtool; install it there: pip install 'vhdtool[lab]'"


class ActionModule(ActionBase):  # type: ignore[misc]
    """See the module of the same name for arguments and results."""

    TRANSFERS_FILES = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "argv": {"type": "list", "elements": "str", "required": True},
                "quiet": {"type": "bool", "default": False},
            }
        )
        missing = missing_package()
        if missing:
            return {"failed": True, "msg": missing, "rc": 127, "stdout_lines": []}
        if self._task.check_mode:
            return {"changed": False, "skipped": True, "rc": 0, "stdout_lines": []}
        argv = [sys.executable, "-P", "-m", "vhdtool.cli.main", *arguments["argv"]]
        try:
            rc, lines = self._stream(argv, arguments["quiet"])
        except OSError as error:
            return {
                "failed": True,
                "msg": f"vhdtool cannot be started: {error.strerror}",
                "rc": 127,
            }
        result = {
            "changed": True,
            "shown": bool(lines) and not arguments["quiet"],
            "rc": rc,
            "stdout_lines": list(lines),
            "cmd": ["vhdtool", *arguments["argv"]],
        }
        if rc != 0:
            result["msg"] = " / ".join(list(lines)[-3:]) or f"{' '.join(argv[4:])}: exit code {rc}"
        return result

    def _stream(self, argv: list[str], quiet: bool) -> tuple[int, deque[str]]:
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        # This is a worker; its parent is ansible-playbook, the run that holds the lab. By the mark
        # `vhdtool hosts down` finds the processes of a run that was killed.
        environment.setdefault(HOLDER, str(os.getppid()))
        environment.setdefault(MARK, f"playbook-{os.getppid()}-{start_time(os.getppid())}")
        lines: deque[str] = deque(maxlen=RETURNED_LINES)
        with subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    text = line.rstrip("\n")
                    lines.append(text)
                    if not quiet:
                        self._display.display(text)
            except BaseException:
                process.send_signal(signal.SIGTERM)
                raise
        return process.returncode, lines
