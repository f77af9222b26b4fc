#!/usr/bin/python
"""Documentation of the action plugin of the same name, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = """
module: selection
short_description: Refuse tags and limits that leave out what a run needs
description:
  - A playbook that does nothing must not end as if it had worked. This fails for a tag that no
    playbook has, for tags that leave nothing to be done, and for a limit that leaves out the
    controller or a host where the playbook migrates.
  - Reads C(--tags), C(--skip-tags) and C(--limit) of C(ansible-playbook). Changes nothing.
author: the vhdtool project
options:
  parts:
    description: The parts that the playbook has.
    type: list
    elements: str
    choices: [provision, migrate, report, verify]
    required: true
  imported:
    description: Another playbook has imported this one, so its tags may leave out all of it.
    type: bool
    default: false
"""
EXAMPLES = """
- name: Check the tags and the limit
  vhdtool.lab.selection:
    parts: [migrate]
"""
RETURN = """
parts:
  description: The parts that the tags choose.
  type: list
  returned: success
"""
