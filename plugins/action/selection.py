"""Refuses tags and limits that leave out what a run needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ansible.plugins.action import ActionBase

PARTS = ("provision", "migrate", "report", "verify")
"""The tags of the playbooks."""


def chosen(parts: Iterable[str], run_tags: Iterable[str], skip_tags: Iterable[str]) -> list[str]:
    """The parts of a playbook that tags leave, in their order."""
    every = bool({"all", "tagged"} & set(run_tags))
    return [part for part in parts if (every or part in run_tags) and part not in skip_tags]


def tag_problem(
    parts: Iterable[str], run_tags: Iterable[str], skip_tags: Iterable[str], imported: bool
) -> str | None:
    """Why the tags make no sense for a playbook with these parts."""
    if set(run_tags) - {*PARTS, "all", "tagged", "always"}:
        return f"--tags {','.join(sorted(run_tags))}: there are {', '.join(PARTS)}"
    if not imported and not chosen(parts, run_tags, skip_tags):
        return f"the tags leave nothing to be done; this playbook has {', '.join(parts)}"
    return None


def left_out(variables: dict[str, Any]) -> list[str]:
    """The hosts that a run needs and the play lacks."""
    groups = variables["groups"]
    needed = set(groups.get("hypervisors", ()))
    # An implicit localhost is in no group; only a limit can leave it out.
    if "ansible_limit" in variables or "localhost" in groups["all"]:
        needed.add("localhost")
    return sorted(needed - set(variables["ansible_play_hosts_all"]))


class ActionModule(ActionBase):  # type: ignore[misc]
    """See the module of the same name for arguments and results."""

    TRANSFERS_FILES = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "parts": {
                    "type": "list",
                    "elements": "str",
                    "choices": list(PARTS),
                    "required": True,
                },
                "imported": {"type": "bool", "default": False},
            }
        )
        assert task_vars is not None
        tags = (list(task_vars["ansible_run_tags"]), list(task_vars["ansible_skip_tags"]))
        problem = tag_problem(arguments["parts"], *tags, arguments["imported"])
        if problem:
            return {"failed": True, "msg": problem}
        parts = chosen(arguments["parts"], *tags)
        missing = left_out(task_vars) if "migrate" in parts else []
        if missing:
            return {
                "failed": True,
                "msg": f"--limit {task_vars.get('ansible_limit', '')} leaves out "
                f"{', '.join(missing)}; a run needs localhost and both hosts",
            }
        return {"changed": False, "parts": parts}
