#!/usr/bin/python
"""Installs the Debian packages that are missing; where none is, it asks no network."""

from __future__ import annotations

import os
import subprocess

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: packages
short_description: Install the Debian packages that are missing
description:
  - Where all packages are installed, this needs neither package sources nor C(python3-apt), and no
    network. M(ansible.builtin.apt) needs them for its check mode and to refresh its cache.
  - Where a package cannot be installed, the message names the packages that are missing and the
    variable that leaves installing out.
author: the vhdtool project
options:
  names:
    description: The packages.
    type: list
    elements: str
    required: true
  variable:
    description: The variable that leaves installing out, for the message.
    type: str
    required: true
"""
EXAMPLES = """
- name: Install QEMU
  vhdtool.lab.packages:
    names: [qemu-system-x86]
    variable: hypervisor_kvm_install
"""
RETURN = """
missing:
  description: The packages that were missing.
  type: list
  returned: success
"""

OPTIONS = (
    *("-o", "DPkg::Lock::Timeout=60", "-o", "Acquire::Retries=0"),
    *("-o", "Acquire::http::Timeout=15", "-o", "Acquire::https::Timeout=15"),
)
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}


def missing(names: list[str]) -> list[str]:
    """Those of the packages that are not installed. Raises OSError on hosts without dpkg."""
    asked = ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\\n"]
    done = subprocess.run(
        [*asked, *names],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {
        line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")
    }
    return [name for name in names if name not in installed]


def install(names: list[str]) -> str | None:
    """Install the packages; why that failed, in one line, or None."""
    # The lists may be fresh, or there may be no other sources: ask the network only if need be.
    trouble = apt_get("install", "--yes", "--no-install-recommends", *names)
    if trouble is None:
        return None
    stale = apt_get("update")
    if stale is not None:
        return f"{trouble}; apt-get update: {stale}"
    return apt_get("install", "--yes", "--no-install-recommends", *names)


def apt_get(*words: str) -> str | None:
    """The first error of apt-get, or None."""
    done = subprocess.run(
        ["apt-get", *OPTIONS, *words],
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    errors = [line.strip() for line in done.stderr.splitlines() if line.startswith("E:")]
    return errors[0] if errors else f"apt-get: exit code {done.returncode}"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "variable": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    names, variable = module.params["names"], module.params["variable"]
    way_out = f"install them by hand, or set {variable}: false where they come in another way"
    try:
        lacking = missing(names)
    except OSError:
        module.fail_json(msg=f"no dpkg here to install {', '.join(names)}; {way_out}")
    if lacking and not module.check_mode:
        trouble = install(lacking)
        if trouble is not None:
            module.fail_json(msg=f"missing: {', '.join(lacking)}; {trouble}; {way_out}")
    after = "".join(f"{name}\n" for name in lacking)
    diff = {"before_header": "packages", "after_header": "packages", "before": "", "after": after}
    module.exit_json(changed=bool(lacking), missing=lacking, diff=diff)


if __name__ == "__main__":
    main()
