#!/usr/bin/python
"""Runs one of XCP's VDI operations on a host, by the package that the role tapdisk installs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: vdi
short_description: Run one of XCP's VDI operations on an image that hosts share
description:
  - Attaches, activates, deactivates or detaches an image on this host, or removes its stale keys.
    An operation that is done already changes nothing.
  - An image that another host has active is refused, with that host's name.
author: the vhdtool project
options:
  operation:
    description: What to do.
    type: str
    choices: [attach, activate, deactivate, detach, clear, status]
    required: true
  image:
    description: The image, a file that all hosts see.
    type: path
    required: true
  host:
    description: The name of this host in the keys.
    type: str
    required: true
  lib:
    description: The directory of the package on this host.
    type: path
    required: true
  run_dir:
    description: The directory of the sockets.
    type: path
    default: /run/vhdtool/vdi
  read_only:
    description: Attach for reading; several hosts may do so.
    type: bool
    default: false
  force:
    description: The number of a key, or the epoch of the lease, of a host that is certainly dead.
    type: int
  wait:
    description: Seconds to wait for another operation.
    type: float
    default: 30
"""
EXAMPLES = """
- name: Serve an image here
  vhdtool.lab.vdi:
    operation: activate
    image: /srv/disk.vhd
    host: alpha
    lib: /var/lib/vhdlab/lib
"""
RETURN = """
status:
  description: The state of the image here, its URI, the keys of all hosts, and the lease.
  type: dict
  returned: success
notes:
  description: The stale keys that were removed, a line each.
  type: list
  returned: success
"""

DONE_BEFORE = {
    "attach": ("attached", "standby", "active", "paused", "fenced"),
    "activate": ("active",),
    "deactivate": ("detached", "attached"),
    "detach": ("detached",),
}
"""The states in which an operation has nothing to do."""


def has_to_act(operation: str, status: dict[str, Any]) -> bool:
    """Whether the operation would change anything."""
    mine = f"host_{status['host']}"
    stale = [key for key in status["keys"] if key["owner"] == "gone"]
    if operation == "clear":
        return bool(stale)
    if operation in ("activate", "deactivate") and any(key["name"] == mine for key in stale):
        return True
    return operation != "status" and status["state"] not in DONE_BEFORE[operation]


def run(parameters: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Runs the operation; the results of the module. Raises what the package raises."""
    from vhdtool.vdi.operations import Vdi
    from vhdtool.vdi.rules import refusal
    from vhdtool.vdi.status import describe

    operation, force, notes = parameters["operation"], parameters["force"], list[str]()
    vdi = Vdi(
        parameters["image"],
        parameters["host"],
        Path(parameters["run_dir"]),
        patience=parameters["wait"],
        note=notes.append,
    )
    before = describe(vdi)
    changed = has_to_act(operation, before) or (operation == "clear" and force is not None)
    if not check_mode:
        if operation == "attach":
            vdi.attach(read_only=parameters["read_only"])
        elif operation == "activate":
            vdi.activate(force)
        elif operation == "deactivate":
            vdi.deactivate()
        elif operation == "detach":
            vdi.detach()
        elif operation == "clear":
            for key in vdi.clear(force):
                if key.state == "unknown":
                    raise refusal(vdi.image, key)
    return {"changed": changed, "status": describe(vdi), "notes": notes}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "operation": {
                "type": "str",
                "required": True,
                "choices": [*DONE_BEFORE, "clear", "status"],
            },
            "image": {"type": "path", "required": True},
            "host": {"type": "str", "required": True},
            "lib": {"type": "path", "required": True},
            "run_dir": {"type": "path", "default": "/run/vhdtool/vdi"},
            "read_only": {"type": "bool", "default": False},
            "force": {"type": "int"},
            "wait": {"type": "float", "default": 30},
        },
        supports_check_mode=True,
    )
    sys.path.insert(0, module.params["lib"])
    try:
        from vhdtool.errors import VhdtoolError
    except ImportError:
        if module.check_mode:
            module.exit_json(changed=module.params["operation"] != "status", status={}, notes=[])
        module.fail_json(msg=f"{module.params['lib']}: has no package vhdtool; provision this host")
    try:
        results = run(module.params, module.check_mode)
    except VhdtoolError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**results)


if __name__ == "__main__":
    main()
