#!/usr/bin/python
"""Tries an NFS export before a host is changed: mounts it elsewhere, writes, unmounts it."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: export
short_description: Try an NFS export before a host is changed
description:
  - Mounts the export in a temporary directory, makes and removes a file there as root, unmounts.
  - Says what the server must change where that fails. Is skipped in check mode.
author: the vhdtool project
options:
  source:
    description: The export, as C(server:/path).
    type: str
    required: true
  options:
    description: The options of the mount.
    type: str
    default: ""
  path:
    description: Where it is to be mounted. An export that is mounted there is not tried again.
    type: path
    required: true
"""
EXAMPLES = """
- name: Try the export
  vhdtool.lab.export:
    source: nfs.example.org:/export/vhdlab
    options: vers=4.2,hard
    path: /srv/vhdlab
"""
RETURN = """
msg:
  description: Why the export cannot be used, and what to change on the server.
  type: str
  returned: failure
"""

SECONDS = 60
HINTS = {
    "access denied": "; name this host's address in the export's line, then exportfs -ra",
    "no such file": "; correct the path, which with NFS 4 begins at the export with fsid=0, if any",
    "not known": "; the server's name cannot be resolved here",
    "bad option": "; is nfs-common installed?",
    "helper program": "; is nfs-common installed?",
}
"""What to do, by words that mount.nfs(8) uses."""


def is_mounted(source: str, path: str) -> bool:
    """Whether the export is mounted at `path` (proc(5), mountinfo; spaces are escaped there)."""
    with open("/proc/self/mountinfo") as lines:
        mounts = [line.partition(" - ") for line in lines]
    wanted = (source.replace(" ", "\\040"), path.replace(" ", "\\040"))
    return any((after.split()[1], before.split()[4]) == wanted for before, _, after in mounts)


def problem(source: str, options: str) -> str | None:
    """Why the export cannot be used, in one line; None when it can."""
    directory = tempfile.mkdtemp(prefix="vhdlab-export-")
    try:
        refused = mount(source, directory, options)
        if refused is not None:
            return f"{source}: {refused}"
        try:
            return write_problem(source, directory)
        finally:
            unmount(directory)
    finally:
        os.rmdir(directory)


def mount(source: str, directory: str, options: str) -> str | None:
    """Mount the export; why that failed, or None."""
    # One try: by default mount.nfs goes on for two minutes in silence.
    words = ",".join(word for word in (options, "retry=0") if word)
    command = ["mount", "-t", "nfs", "-o", words, source, directory]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS} s; is the server up, and TCP port 2049 open?"
    if done.returncode == 0:
        return None
    text = " / ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
    hint = next((hint for words, hint in HINTS.items() if words in text.lower()), "")
    return (text or f"mount: exit code {done.returncode}") + hint


def write_problem(source: str, directory: str) -> str | None:
    """Why root can make no file on the mounted export; None when it can."""
    try:
        descriptor, path = tempfile.mkstemp(prefix=".export-", dir=directory)
        os.close(descriptor)
        os.unlink(path)
    except OSError as error:
        text = f"{source}: root cannot write there: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"{text}; export it with no_root_squash, then exportfs -ra"
        if error.errno == errno.EROFS:
            return f"{text}; export it with rw, then exportfs -ra"
        return text
    return None


def unmount(directory: str) -> None:
    """Unmount, at the latest when nobody uses the directory any more."""
    if subprocess.run(["umount", directory], capture_output=True, check=False).returncode != 0:
        subprocess.run(["umount", "--lazy", directory], capture_output=True, check=False)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "options": {"type": "str", "default": ""},
            "path": {"type": "path", "required": True},
        },
        supports_check_mode=False,
    )
    source = module.params["source"]
    if is_mounted(source, module.params["path"]):
        module.exit_json(changed=False)
    found = problem(source, module.params["options"])
    if found is not None:
        module.fail_json(msg=found)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
