"""Terminal output of the lab's playbooks: one line for each change and each failure.

The first failure also goes to the record of a run that ended before it could write why.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from ansible import constants as C
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
name: brief
type: stdout
short_description: One line for each change and each failure
description:
  - Shows plays by name, changed tasks, messages of C(debug), and failures by their message; nothing
    for tasks that changed nothing. With C(-v) it is the default output of Ansible.
  - Writes the first failure, or that the run was interrupted, to the record of a run that
    C(vhdtool.lab.lab) has begun.
author: the vhdtool project
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""


FAILED = "FAILED"
"""The word of every failure in a log: the lines of cases have it too."""


def message(result: dict[str, Any]) -> str:
    """The failure that a task's result describes, in one line."""
    errors = result.get("argument_errors")
    if errors:
        return "; ".join(str(error) for error in errors)
    if "results" in result:
        return "; ".join(message(item) for item in result["results"] if item.get("failed"))
    parts = [str(result.get("msg") or "failed")]
    if "msg" not in result or parts[0].startswith("non-zero return code"):
        output = str(result.get("stderr") or result.get("stdout") or "").strip()
        parts += output.splitlines()[-3:]
    return " / ".join(" ".join(part.split()) for part in parts)


def when_verbose(name: str) -> Callable[..., None]:
    """A method of the default callback that is called with `-v` only."""

    def method(self: CallbackModule, *arguments: Any, **named: Any) -> None:
        if self.verbose:
            getattr(Default, name)(self, *arguments, **named)

    return method


class CallbackModule(Default):  # type: ignore[misc]
    """The default callback, silent about tasks that changed nothing."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "vhdtool.lab.brief"

    def __init__(self) -> None:
        super().__init__()
        # A full disk under the log is reported once by the lab, not here for each line.
        logging.raiseExceptions = False
        self._begun = set[str]()
        self._record: str | None = None
        self._failure: str | None = None
        self._pid = os.getpid()
        if os.isatty(1):  # for the programs behind pipes whose output this shows
            os.environ.setdefault("COLUMNS", str(shutil.get_terminal_size().columns))
        # Ansible calls no callback after Ctrl-C.
        atexit.register(self._end_record)

    @property
    def verbose(self) -> bool:
        return bool(self._display.verbosity > 0)

    def _end_record(self) -> None:
        """Writes to the record why the run has ended, unless that is written there."""
        forked = os.getpid() != self._pid
        if forked or self._record is None:
            return
        why = self._failure or "it was interrupted"
        command = [sys.executable, "-P", "-m", "vhdtool.cli.main", "lab", "end", self._record]
        subprocess.run(
            [*command, f"--error={why}"], stdin=subprocess.DEVNULL, timeout=60, check=False
        )

    def _failed(self, result: Any, text: str) -> None:
        self._failure = self._failure or f"{result._host.get_name()}: {text}"

    def _show(self, result: Any, what: str, text: str, color: str) -> None:
        self._display.display(f"{result._host.get_name()}: {what}: {text}", color=color)

    v2_playbook_on_start = when_verbose("v2_playbook_on_start")
    v2_playbook_on_task_start = when_verbose("v2_playbook_on_task_start")
    v2_playbook_on_handler_task_start = when_verbose("v2_playbook_on_handler_task_start")
    v2_playbook_on_include = when_verbose("v2_playbook_on_include")
    v2_playbook_on_no_hosts_remaining = when_verbose("v2_playbook_on_no_hosts_remaining")
    v2_runner_on_start = when_verbose("v2_runner_on_start")
    v2_runner_on_skipped = when_verbose("v2_runner_on_skipped")
    v2_runner_item_on_ok = when_verbose("v2_runner_item_on_ok")
    v2_runner_item_on_failed = when_verbose("v2_runner_item_on_failed")
    v2_runner_item_on_skipped = when_verbose("v2_runner_item_on_skipped")

    def v2_playbook_on_play_start(self, play: Any) -> None:
        if self.verbose:
            super().v2_playbook_on_play_start(play)
        elif (name := play.get_name().strip()) and name not in self._begun:
            # Playbooks that import each other repeat a play, which then has nothing to do.
            self._begun.add(name)
            self._play = play
            self._display.display(f"== {name}", color=C.COLOR_HIGHLIGHT)

    def v2_runner_on_ok(self, result: Any) -> None:
        command = [str(word) for word in result._result.get("cmd") or []]
        if command[:3] == ["vhdtool", "lab", "begin"]:
            self._record = command[3]
        if self.verbose:
            super().v2_runner_on_ok(result)
        elif result._result.get("changed") and not result._result.get("shown"):
            name = result._task.get_name().removeprefix("vhdtool.lab.")
            self._show(result, "changed", name, C.COLOR_CHANGED)
        elif result._task.action in C._ACTION_DEBUG and "msg" in result._result:
            self._display.display(f"{result._host.get_name()}: {result._result['msg']}")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            self._failed(result, message(result._result))
        if self.verbose:
            super().v2_runner_on_failed(result, ignore_errors)
        elif not ignore_errors and not result._result.get("shown"):
            self._show(result, FAILED, message(result._result), C.COLOR_ERROR)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        text = "unreachable: " + message(result._result)
        self._failed(result, text)
        if self.verbose:
            super().v2_runner_on_unreachable(result)
        else:
            self._show(result, FAILED, text, C.COLOR_UNREACHABLE)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if self.verbose:
            super().v2_playbook_on_stats(stats)
            return
        for host in sorted(stats.processed):
            count = stats.summarize(host)
            shown = ("ok", "changed", "unreachable", "failures")
            text = " ".join(f"{name.replace('failures', 'failed')}={count[name]}" for name in shown)
            bad = count["failures"] or count["unreachable"]
            self._display.display(f"{host}: {text}", color=C.COLOR_ERROR if bad else C.COLOR_OK)
