"""Runs one live migration of a writing guest, step by step, and records everything.

strategies.py: the orders as data · agent.py: what runs on each host · hosts.py: persistent SSH to
the agents · tap.py, qemu.py: the shim and QEMU as seen from the controller · console.py, record.py:
what a case leaves behind · plan.py, runner.py: one case · config.py, lab.py: all cases · look.py:
testinfra on live hosts · guest/: what migrates · localhosts/: two hosts on this machine.
"""
