"""Hypervisors that run the guest and migrate it: one protocol, and a driver each.

accelerator   The choice between KVM and TCG on a host: what its kernel says, and
              whether a guest boots
driver        What the lab asks of a hypervisor: guests, migrations, and where the
              runner can hold one
qemu          QEMU as a driver: a process on the host, driven over QMP
qemu_command  The command line of QEMU: a machine whose guest migrates, and its disk
qmp           QMP of a QEMU on a lab host: commands, and events in order
xen           Xen as a driver: PVH domains, driven by xl; the runner holds the switch
xen_disk      A guest's disk in dom0: the kernel's nbd client on a shim, or a file
              of zeros without one
xen_transfer  One `xl migrate`, whose relay waits when the destination has all
              memory
xl            xl on a lab host: short commands, and the domains that are there
"""
