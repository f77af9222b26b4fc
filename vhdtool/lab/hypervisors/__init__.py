"""Hypervisors that run the guest and migrate it, a driver each.

qemu  QEMU on a lab host: started by the agent, driven over QMP, with the flags that
      migrate
"""
