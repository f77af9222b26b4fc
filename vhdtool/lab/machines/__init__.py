"""Emulated machines for the lab, with kernels of their own: two hosts and an NFS server.

base_image  Builder of the machines' disk image, cached by its inputs
cache       The cache of disk images and snapshots: one writer at a time
control     up, down and status of the machines
kind        The machines as hosts of one kind
layout      Names, addresses, and the command line of the QEMU that emulates
            each
seed        The files of one machine's own, unpacked at boot
snapshot    Saves the machines when they have booted, and starts them from there
supervisor  The supervisor, pid 1 of the lab: two bridges, and a QEMU each
"""
