"""Runs one live migration of a writing guest, step by step, and records everything.

strategies.py: the orders as data · agent.py: what runs on each host · hosts.py: persistent SSH to
the agents · tap.py, qemu.py: the shim and QEMU as seen from the controller · console.py, record.py:
what a case leaves behind · runner.py: one case · lab.py: all cases · guest/: what migrates.
"""
