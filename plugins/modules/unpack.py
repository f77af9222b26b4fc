#!/usr/bin/python
"""Unpacks the package for hosts beside its zip file and compiles it."""

from __future__ import annotations

import compileall
import os
import shutil
import sys
import zipfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: unpack
short_description: Unpack the package for hosts beside its zip file and compile it
description:
  - Unpacks to a directory whose name has the zip file's checksum, points the link C(lib) beside it
    there, and removes what older ones left. The directory appears complete and last, so the next
    run completes one that was interrupted.
  - Compiles with the Python that runs the module, which is the one that the lab uses on the host.
author: the vhdtool project
options:
  path:
    description: The zip file; C(lib) is made in its directory.
    type: path
    required: true
"""
EXAMPLES = """
- name: Unpack and compile it
  vhdtool.lab.unpack:
    path: /var/lib/vhdlab/vhdtool.zip
"""
RETURN = """
lib:
  description: The directory that the link names.
  type: str
  returned: success
"""

LEAST = (3, 11)


def unpack(bundle: str, target: str, link: str) -> str | None:
    """Makes the directory and the link. Returns a message where the package does not compile."""
    directory = os.path.dirname(target)
    fresh = os.path.join(directory, "unpacking")
    shutil.rmtree(fresh, ignore_errors=True)
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(fresh)
    if not compileall.compile_dir(fresh, quiet=2):
        return f"{bundle}: does not compile with Python {sys.version.split()[0]}"
    for name in os.listdir(directory):
        if name.startswith("lib-"):
            shutil.rmtree(os.path.join(directory, name))
    fresh_link = os.path.join(directory, "linking")
    if os.path.lexists(fresh_link):
        os.unlink(fresh_link)
    os.symlink(os.path.basename(target), fresh_link)
    os.replace(fresh_link, link)
    os.rename(fresh, target)
    return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={"path": {"type": "path", "required": True}}, supports_check_mode=True
    )
    if sys.version_info < LEAST:
        module.fail_json(
            msg=f"{sys.executable} is Python {sys.version.split()[0]}, the lab needs 3.11; "
            "name another one by ansible_python_interpreter"
        )
    bundle = module.params["path"]
    if not os.path.exists(bundle):
        if not module.check_mode:
            module.fail_json(msg=f"{bundle}: no such file")
        module.exit_json(changed=True)
    directory = os.path.dirname(bundle)
    link = os.path.join(directory, "lib")
    target = os.path.join(directory, f"lib-{module.sha1(bundle)[:12]}")
    changed = not os.path.isdir(target)
    if changed and not module.check_mode:
        problem = unpack(bundle, target, link)
        if problem:
            module.fail_json(msg=problem)
    module.exit_json(changed=changed, lib=target)


if __name__ == "__main__":
    main()
