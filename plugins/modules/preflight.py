#!/usr/bin/python
"""Checks whether a run of the lab can start on a host."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: preflight
short_description: Check whether a run of the lab can start on a host
description:
  - Checks the shared directory and its free space, the private directory, the migration port,
    the programs that are needed, and that it runs as root. Changes nothing.
  - Returns how the module itself came to the host, so that others can come the same way.
author: the vhdtool project
options:
  shared_dir:
    description: The directory that both hosts share.
    type: path
    required: true
  private_dir:
    description: The directory that belongs to this host alone.
    type: path
    required: true
  address:
    description: This host's address for the migration.
    type: str
    required: true
  port:
    description: The TCP port of the migration.
    type: int
    required: true
  bytes_needed:
    description: Free space that a run needs in the shared directory.
    type: int
    required: true
  programs:
    description: Programs that must be found.
    type: list
    elements: str
    default: []
"""
EXAMPLES = """
- name: Check the host
  vhdtool.lab.preflight:
    shared_dir: /srv/vhdlab
    private_dir: /var/lib/vhdlab
    address: 192.0.2.11
    port: 49160
    bytes_needed: 1073741824
"""
RETURN = """
free:
  description: Free bytes in the shared directory.
  type: int
  returned: success
node:
  description: The host's own name, as uname(2) has it.
  type: str
  returned: success
boot_id:
  description: The running kernel's identity; namespaces of one machine have the same.
  type: str
  returned: success
python:
  description: The Python that runs this module.
  type: str
  returned: success
sudo:
  description: Whether the login became root by C(sudo).
  type: bool
  returned: success
"""


def port_problem(address: str, port: int) -> str | None:
    """Why QEMU cannot listen on an address and port; None when it can."""
    try:
        families = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"migration_address {address} cannot be resolved here: {error.strerror}"
    family, kind, protocol, _, target = families[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
            probe.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"the migration port {port} is in use; choose another by migration_port"
            if error.errno == errno.EADDRNOTAVAIL:
                return f"migration_address {address} is not an address of this host"
            return f"cannot listen on {address}:{port}: {error.strerror}"
    return None


def problems(arguments: dict[str, Any]) -> list[str]:
    """Every reason why a run cannot start, a line each."""
    if os.geteuid() != 0:
        return [f"tasks run as user {os.geteuid()} and not as root; set ansible_become: true"]
    found: list[str] = []
    shared, private = arguments["shared_dir"], arguments["private_dir"]
    refused = write_problem(shared)
    if refused:
        found.append(f"{shared}: cannot be written ({refused}); is the storage mounted?")
    else:
        free, needed = free_bytes(shared), arguments["bytes_needed"]
        if free < needed:
            found.append(
                f"{shared}: {free >> 20} MiB free, a run needs {needed >> 20} MiB; "
                "free some space or choose a smaller migration_image_size"
            )
    if os.path.isdir(private) and os.stat(private).st_mode & 0o077:
        found.append(f"{private}: other users can read it; its mode must be 0700")
    found += [
        f"{program}: not found; install it or correct the variable that names it"
        for program in arguments["programs"]
        if shutil.which(program) is None
    ]
    problem = port_problem(arguments["address"], arguments["port"])
    return found + ([problem] if problem else [])


def write_problem(directory: str) -> str | None:
    """Why no file can be made in a directory. An NFS client answers access(2) from its cache."""
    try:
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        return error.strerror
    return None


def machine() -> dict[str, Any]:
    """The node name, by which an NFS server tells clients apart, and the identity of the kernel."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return {"node": os.uname().nodename, "boot_id": file.read().strip()}


def way_in() -> dict[str, Any]:
    """How this module was started, as sudo(8) and Python say."""
    return {"python": sys.executable, "sudo": "SUDO_UID" in os.environ}


def free_bytes(directory: str) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "shared_dir": {"type": "path", "required": True},
            "private_dir": {"type": "path", "required": True},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "bytes_needed": {"type": "int", "required": True},
            "programs": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    found = problems(module.params)
    if found:
        module.fail_json(msg="; ".join(found))
    free = free_bytes(module.params["shared_dir"])
    module.exit_json(changed=False, free=free, **machine(), **way_in())


if __name__ == "__main__":
    main()
