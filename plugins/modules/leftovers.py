#!/usr/bin/python
"""Ends what runs of the lab have left on a host: processes, and kernel NBD devices."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: leftovers
short_description: End what runs of the lab have left on a host
description:
  - Ends the processes that a run has started and not ended (guests, disk backends, its iSCSI
    target), and disconnects kernel NBD devices from sockets of the private directory.
  - Other guests, targets and devices of the host are left alone. A host that a run is using is
    refused.
author: the vhdtool project
options:
  private_dir:
    description: The directory that belongs to this host alone.
    type: path
    required: true
"""
EXAMPLES = """
- name: End what is left of runs
  vhdtool.lab.leftovers:
    private_dir: /var/lib/vhdlab
"""
RETURN = """
ended:
  description: The processes and devices, a line each.
  type: list
  returned: success
"""

GRACE = 3.0
"""Seconds between TERM and KILL, in which a disk backend closes its image."""
NBD_CLEAR_SOCK, NBD_DISCONNECT = 0xAB04, 0xAB08


def processes(private: str, proc: Path = Path("/proc")) -> Iterator[tuple[int, str]]:
    """(pid, command line) of what a run has started: all inherit the library path of its agent."""
    mark = f"PYTHONPATH={private}/lib".encode()
    for entry in proc.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if any(one == mark or one.startswith((mark + b"/", mark + b"-")) for one in variables):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                yield int(entry.name), words.decode(errors="replace").strip()


def devices(private: str, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> list[str]:
    """Names of NBD devices whose client was given a socket of the private directory."""
    found = []
    for entry in sorted((sys / "block").glob("nbd*")):
        with contextlib.suppress(OSError):
            client = (entry / "pid").read_text().strip()
            if f"{private}/".encode() in (proc / client / "cmdline").read_bytes():
                found.append(entry.name)
    return found


def run_under_way(private: str) -> bool:
    """Whether a run holds this host: its agent has a lock on run.lock as long as it lives."""
    try:
        descriptor = os.open(f"{private}/run.lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def end(pids: list[int]) -> None:
    """TERM, a moment in which disk backends close their images, KILL."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and any(runs(pid) for pid in pids):
        time.sleep(0.05)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether the process has not ended; one that its parent has not waited for has no words."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def disconnect(name: str) -> None:
    """Disconnect an NBD device, as `nbd-client -d` does."""
    descriptor = os.open(f"/dev/{name}", os.O_RDWR)
    try:
        fcntl.ioctl(descriptor, NBD_DISCONNECT)
        fcntl.ioctl(descriptor, NBD_CLEAR_SOCK)
    finally:
        os.close(descriptor)


def main() -> None:
    module = AnsibleModule(
        argument_spec={"private_dir": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    private = module.params["private_dir"]
    left, connected = dict(processes(private)), devices(private)
    if run_under_way(private):
        agents = [str(pid) for pid, words in left.items() if "vhdtool.lab.hosts.agent" in words]
        module.fail_json(
            msg=f"a run is using this host (pid {', '.join(agents) or 'unknown'}); wait for its "
            "end, or end that process where its controller is gone"
        )
    if not module.check_mode:
        try:
            for name in connected:
                disconnect(name)
        except OSError as error:
            module.fail_json(msg=f"/dev/{name} cannot be disconnected: {error.strerror}")
        end(list(left))
    ended = [f"pid {pid}: {words}" for pid, words in left.items()]
    ended += [f"/dev/{name}" for name in connected]
    module.exit_json(changed=bool(ended), ended=ended)


if __name__ == "__main__":
    main()
