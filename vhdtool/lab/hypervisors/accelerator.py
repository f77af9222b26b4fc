"""The choice between KVM and TCG on a host: what its kernel says, and whether a guest boots.

/dev/kvm alone proves nothing: a paravirtual one may hang every stock kernel. A guest is booted
once, and the host's cache directory has the result. A "no" may come from a busy moment, so it holds
until the host is started again, and for a day at most.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hypervisors.driver import Progress

PROBE_TIMEOUT = 20.0
"""A nested guest takes 10 s to its first line. A KVM that hangs costs this timeout once a day."""
NO_SECONDS = 24 * 3600.0
Facts = Mapping[str, Any]
Boots = Callable[[Host], bool]


def choose(
    asked: str, host: Host, facts: Facts, kernel: str, boots: Boots, progress: Progress
) -> str:
    """`kvm` or `tcg` for this host; `boots` starts a guest on KVM there. Raises LabError."""
    if asked == "kvm" and facts["no_kvm"]:
        raise LabError(f"{host.name}: no usable KVM: {facts['no_kvm']}")
    if asked != "auto":
        return asked
    works = not facts["no_kvm"] and _probe(host, facts, kernel, boots, progress)
    return "kvm" if works else "tcg"


def refuse_emulation_inside_emulation(accelerator: str, host: Host, facts: Facts) -> None:
    """Raises LabError for a guest that would be emulated on an emulated CPU."""
    if accelerator == "tcg" and facts["emulated"]:
        reason = facts["no_kvm"] or "KVM is there, but was not asked for or does not work"
        raise LabError(
            f"{host.name}: the CPU of this host is itself emulated (QEMU's TCG), and a guest that "
            f"is emulated once more does not boot in time; {reason}; run both hosts on KVM, or "
            "give them a CPU with svm (-cpu max) and set migration_accelerator to kvm"
        )


def _probe(host: Host, facts: Facts, kernel: str, boots: Boots, progress: Progress) -> bool:
    """Whether a guest boots on KVM, from the host's cache or by a try."""
    parts = (facts["qemu"], facts["kernel"], host.call("digest", path=kernel))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = f"{host.config.cache_dir}/kvm-{key}.json"
    now, boot = float(host.call("clock")), facts["boot_id"]
    known = _cached(host.read(path), now, boot)
    if known is not None:
        return known
    works = boots(host)
    if not works:
        progress(
            f"{host.name}: KVM is there, but no guest boots on it within {PROBE_TIMEOUT:.0f} s; "
            "the guest's CPU is emulated; KVM is tried again tomorrow, or after a reboot"
        )
    answer = "kvm" if works else {"not_before": now + NO_SECONDS, "boot_id": boot}
    host.call("write", path=path, data=base64.b64encode(json.dumps(answer).encode()).decode())
    return works


def _cached(text: bytes, now: float, boot: str) -> bool | None:
    """The result in the cache; None where there is none, or a "no" that is too old."""
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    if answer == "kvm":
        return True
    if isinstance(answer, dict) and answer.get("boot_id") == boot and now < answer["not_before"]:
        return False
    return None
