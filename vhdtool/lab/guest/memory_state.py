"""A guest that is booted once and then started from its memory: 0.2 s instead of four.

The state is made on the source host with a blank disk of the right size, because the guest reads
nothing from the disk before it is told to write. It is kept in the host's cache directory under a
key of all that it depends on.
"""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hypervisors.qemu import Loop, Machine, Qemu, blank_disk

BOOT_TIMEOUT = 90.0
PROBE_TIMEOUT = 20.0
"""A guest in a nested guest takes 10 s to its first words. A KVM that hangs costs this once."""
STATES = 4
"""Snapshots that a host keeps, of some 110 MB each: one for each disk size in use."""


class Lines:
    """The text of a console, for a guest that is not on record."""

    def __init__(self) -> None:
        self.text = b""

    def take(self, data: bytes) -> None:
        self.text += data

    def wait(self, wanted: bytes, timeout: float, qemu: Qemu) -> bool:
        deadline = time.monotonic() + timeout
        while wanted not in self.text:
            if time.monotonic() > deadline or qemu.died is not None:
                return False
            time.sleep(0.01)
        return True


def accelerator(host: Host, asked: str, kernel: str, initrd: str, facts: dict[str, Any]) -> str:
    """`kvm` where a probe boots this kernel within seconds, else `tcg`; the answer is cached.

    /dev/kvm alone proves nothing: a paravirtual one may hang every stock kernel.
    """
    if asked != "auto":
        if asked == "kvm" and not facts["kvm"]:
            raise LabError(f"{host.name}: no usable KVM (no vmx/svm flag or no /dev/kvm)")
        return asked
    if not facts["kvm"]:
        return "tcg"
    key = _key(facts["qemu"], facts["kernel"], host.call("digest", path=kernel))
    path = f"{host.config.cache_dir}/kvm-{key}.json"
    cached = host.read(path)
    if not cached:
        answer = "kvm" if _boots_on_kvm(host, kernel, initrd) else "tcg"
        host.call("write", path=path, data=_b64(json.dumps(answer).encode()))
        return answer
    return str(json.loads(cached))


def _boots_on_kvm(host: Host, kernel: str, initrd: str) -> bool:
    lines = Lines()
    machine = Machine(kernel, initrd, "kvm")
    qemu = Qemu(host, "kvm-probe", machine, blank_disk(1 << 20))
    try:
        host.connect(qemu.console, lines.take)
        return lines.wait(b"ready", PROBE_TIMEOUT, qemu)
    except LabError:
        return False
    finally:
        qemu.kill()


def ensure_snapshot(
    host: Host,
    loop: Loop,
    machine: Machine,
    disk_bytes: int,
    facts: dict[str, Any],
    say: Callable[[str], None],
) -> str:
    """The path on the host of the state of a guest that waits for its orders."""
    parts = [host.call("digest", path=path) for path in (machine.kernel, machine.initrd)]
    devices = machine.disks(blank_disk(disk_bytes))
    key = _key(facts["qemu"], *parts, json.dumps([*machine.board(), *devices]))
    path = f"{host.config.cache_dir}/guest-{key}.state"
    if not host.call("exists", paths=[path])[0]:
        say("booting the guest once, to start it from its snapshot from now on")
        _make(host, loop, machine, disk_bytes, path)
    return path


def _make(host: Host, loop: Loop, machine: Machine, disk_bytes: int, path: str) -> None:
    lines = Lines()
    qemu = Qemu(host, "guest-boot", machine, blank_disk(disk_bytes))
    try:
        host.connect(qemu.console, lines.take)
        qemu.connect(loop)
        if not lines.wait(b"ready", BOOT_TIMEOUT, qemu):
            tail = lines.text.decode(errors="replace").strip().splitlines()[-1:]
            raise LabError(
                f"{host.name}: the guest did not boot in {BOOT_TIMEOUT:.0f} s; "
                f"console: {tail or 'empty'}; {qemu.last_words()}"
            )
        qemu.execute("stop")
        qemu.enable_migration_events()
        qemu.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 33})
        qemu.execute("migrate", uri=f"exec:cat > {path}.new")
        qemu.wait_migration("completed", timeout=60)
    finally:
        qemu.kill()
    host.call("rename", old=f"{path}.new", new=path)
    host.call("prune", folder=host.config.cache_dir, pattern="guest-*.state*", keep=STATES)


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _b64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()
