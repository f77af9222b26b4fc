#!/usr/bin/python
"""Documentation of the action plugin of the same name, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = """
module: vhdtool
short_description: Run vhdtool on the controller and show its lines while it works
description:
  - Runs C(vhdtool) with the Python of C(ansible-playbook), and shows each line as it comes.
    M(ansible.builtin.command) shows nothing before the end, and a run of the lab takes a minute.
  - An exit code other than 0 is no failure by itself; the task says what it means with
    C(failed_when).
  - Is skipped in check mode.
author: the vhdtool project
options:
  argv:
    description: The command and its arguments, as they follow C(vhdtool).
    type: list
    elements: str
    required: true
  quiet:
    description: Do not show the lines.
    type: bool
    default: false
"""
EXAMPLES = """
- name: Judge the latest run
  vhdtool.lab.vhdtool:
    argv:
      - judge
      - runs/latest
  register: judged
  failed_when: judged.rc != 0
"""
RETURN = """
rc:
  description: The exit code.
  type: int
  returned: always
stdout_lines:
  description: The last 2000 lines of both streams.
  type: list
  returned: always
shown:
  description: Whether the lines were shown.
  type: bool
  returned: when the program could be started
cmd:
  description: The command that was run, as a user would type it.
  type: list
  returned: when the program could be started
"""
