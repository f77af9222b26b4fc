"""This machine and its processes: what tells a boot, a machine or a process from another.

Source: proc(5), pid_namespaces(7), time_namespaces(7), machine-id(5).
"""

import os
from functools import cache
from pathlib import Path

UNKNOWN_BOOT = "unknown"
"""The boot of a process whose /proc does not show its own pid namespace; it proves nothing."""
_MACHINE = (Path("/etc/machine-id"), Path("/sys/class/dmi/id/product_uuid"))


def boot_id() -> str:
    """Returns the kernel's boot id and our namespaces, or UNKNOWN_BOOT.

    In a container with its host's /proc every pid means another process, and in another time
    namespace every process has another start time: a living process would seem to be gone.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return UNKNOWN_BOOT
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return UNKNOWN_BOOT
    try:
        return f"{boot}/{pids}/{os.stat('/proc/self/ns/time').st_ino}"
    except OSError:
        # Kernels before 5.6 have no time namespaces.
        return f"{boot}/{pids}"


@cache
def machine_id() -> str:
    """Returns the machine-id and the firmware's UUID, which a copy of the machine does not share.

    "" where the system has no machine-id.
    """
    known = []
    for path in _MACHINE:
        try:
            known.append(path.read_text().strip().replace("-", "").lower())
        except OSError:
            known.append("")
    return "/".join(known) if known[0] else ""


def stat_fields(pid: int) -> list[str] | None:
    """Returns the fields of /proc/PID/stat from the state on; None for no such process.

    Raises OSError when that cannot be known.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        # A /proc mounted with hidepid hides the processes of others; kill() finds them all.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        raise
    return text.rsplit(")", 1)[1].split()


def process_start(pid: int) -> int | None:
    """Returns the start time of a process in clock ticks after boot; None for none or a zombie.

    Pid and start time identify a process; a pid alone is used again. Raises OSError as
    `stat_fields` does.
    """
    fields = stat_fields(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])
