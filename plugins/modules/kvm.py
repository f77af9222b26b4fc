#!/usr/bin/python
"""Loads KVM's kernel module where the CPU has the feature and no module is loaded."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: kvm
short_description: Load the kernel module of KVM where it is needed
description:
  - A host that was started before QEMU was installed may have no C(/dev/kvm). This loads
    C(kvm_intel) or C(kvm_amd) where the CPU says that it can, and changes nothing otherwise.
  - A host without KVM is no failure, because a run can emulate the guest's CPU.
author: the vhdtool project
options: {}
"""
EXAMPLES = """
- name: Load KVM
  vhdtool.lab.kvm:
"""
RETURN = """
reason:
  description: Why the host has no KVM; empty where it has.
  type: str
  returned: success
"""

MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}


def wanted(cpuinfo: str) -> str | None:
    """The kernel module for this CPU; None where it has no such feature."""
    flags = set(cpuinfo.split())
    return next((name for flag, name in MODULES.items() if flag in flags), None)


def load(name: str) -> str:
    """Load a kernel module; why that failed, or an empty text."""
    try:
        # By its path: a login that is not root's may have no sbin in its PATH.
        done = subprocess.run(
            ["/usr/sbin/modprobe", name], capture_output=True, text=True, check=False
        )
    except OSError as error:
        return f"modprobe: {error.strerror}"
    return "" if done.returncode == 0 else " / ".join(done.stderr.split("\n")).strip(" /")


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    if Path("/dev/kvm").exists():
        module.exit_json(changed=False, reason="")
    name = wanted(Path("/proc/cpuinfo").read_text())
    reason = "the CPU has neither vmx nor svm" if name is None else ""
    if name is not None and not module.check_mode:
        reason = load(name)
    module.exit_json(changed=not reason, reason=reason)


if __name__ == "__main__":
    main()
