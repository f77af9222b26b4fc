"""Hypervisors that run the guest and migrate it: one protocol, and a driver each.

accelerator   The choice between KVM and TCG on a host: what its kernel says, and
              whether a guest boots
driver        What the lab asks of a hypervisor: guests, migrations, and where the
              runner can hold one
qemu          QEMU as a driver: a process on the host, driven over QMP
qemu_command  The command line of QEMU: a machine whose guest migrates, and its disk
qmp           QMP of a QEMU on a lab host: commands, and events in order
"""
