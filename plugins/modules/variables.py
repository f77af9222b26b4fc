#!/usr/bin/python
"""Documentation of the action plugin of the same name, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = """
module: variables
short_description: Refuse variables that look like those of the lab's roles and are none
description:
  - A misspelt variable would have no effect, and the run would be another than the one meant. This
    fails for an extra variable (C(-e)) that begins with the name of a role of this collection and
    is not in its argument specification.
  - Variables of the inventory are refused where they are nearly the name of a known one.
  - Names the nearest known variable. Changes nothing.
author: the vhdtool project
options: {}
"""
EXAMPLES = """
- name: Check the names of the variables
  vhdtool.lab.variables:
"""
RETURN = """
msg:
  description: Each unknown variable, with the nearest known one.
  type: str
  returned: failure
given:
  description: The roles' variables among the extra variables, with their values.
  type: dict
  returned: success
"""
