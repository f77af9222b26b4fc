#!/usr/bin/python
"""Tests whether hosts share a directory, and byte-range locks on the files in it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: shared_directory
short_description: Test whether hosts share a directory and byte-range locks
description:
  - One host makes a file and holds a lock on it (C(hold)). Each host tests whether it sees the
    file, and whether the lock excludes it (C(test)). Then the file is removed (C(end)).
author: the vhdtool project
options:
  action:
    description: What to do.
    type: str
    choices: [hold, test, end]
    required: true
  path:
    description: The directory for C(hold), the file that C(hold) returned for the others.
    type: path
    required: true
  holder:
    description: The host that holds the lock, for the message.
    type: str
    default: another host
"""
EXAMPLES = """
- name: Make a locked file
  vhdtool.lab.shared_directory:
    action: hold
    path: /srv/vhdlab
"""
RETURN = """
path:
  description: The file that was made.
  type: str
  returned: for hold
problem:
  description: Why this host does not share the file or its lock; empty when it does.
  type: str
  returned: for test
"""

HELD_SECONDS = 120
"""An interrupted play never comes to `end`; the file is removed after this time all the same."""


def lock(descriptor: int) -> bool:
    """Takes an exclusive lock of this open file; False when another holds it."""
    first_byte = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, first_byte)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def mount_of(path: str) -> tuple[str, str]:
    """Type and options of the file system of a path (proc(5), mountinfo)."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = ("unknown", "")
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == wanted:
                kind, _, options = rest.split()[:3]
                found = (kind, options)
    return found


def hold(directory: str) -> str:
    """Makes a file, locked by a process that outlives this one; returns its path."""
    descriptor, path = tempfile.mkstemp(prefix=".shared-", dir=directory)
    try:
        if not lock(descriptor):
            raise OSError(errno.EAGAIN, "a new file is locked already", path)
        if os.fork() == 0:
            hold_until_removed(descriptor, path)
    except OSError:
        os.unlink(path)
        raise
    os.close(descriptor)
    return path


def hold_until_removed(descriptor: int, path: str) -> None:
    """Runs in the forked process, without Ansible's pipes."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    until = time.monotonic() + HELD_SECONDS
    while os.path.exists(path):
        if time.monotonic() > until:
            os.unlink(path)
        time.sleep(0.1)
    os.close(descriptor)
    os._exit(0)


def problem(path: str, holder: str) -> str:
    """Why this host does not share the file or its lock; empty when it does."""
    directory = os.path.dirname(path)
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return (
            f"{directory} is not shared: a file that {holder} made is not seen here; "
            "mount the same storage on both hosts"
        )
    try:
        if not lock(descriptor):
            return ""
    finally:
        os.close(descriptor)
    kind, options = mount_of(path)
    return (
        f"{directory} does not share locks: {holder} holds one on a file there, and this host got "
        f"it too (file system {kind}, options {options}); two hosts could write one image at once. "
        "Mount it so that locks go to the server: NFS 4, or NFS 3 without nolock and local_lock"
    )


def explained(error: OSError, directory: str) -> str:
    """The error, with what the user can do about it."""
    text = f"{directory}: {error.strerror}"
    try:
        kind, options = mount_of(directory)
    except OSError:
        return text
    text += f" (file system {kind}, options {options})"
    if error.errno in (errno.EACCES, errno.EPERM) and kind.startswith("nfs"):
        text += "; root must be allowed to write there: export it with no_root_squash"
    if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
        text += (
            "; it has no byte-range locks, without which two hosts could write one image at once"
        )
    return text


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ["hold", "test", "end"], "required": True},
            "path": {"type": "path", "required": True},
            "holder": {"type": "str", "default": "another host"},
        },
        supports_check_mode=False,
    )
    action, path = module.params["action"], module.params["path"]
    try:
        if action == "hold":
            module.exit_json(changed=False, path=hold(path))
        if action == "test":
            module.exit_json(changed=False, problem=problem(path, module.params["holder"]))
        elif os.path.lexists(path):
            os.unlink(path)
    except OSError as error:
        module.fail_json(msg=explained(error, path if action == "hold" else os.path.dirname(path)))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
