"""Readers of disk images that the oracles alone use; no code is shared with what wrote them.

image_view  Read-only views of an image: a file, and a file with planted bytes
            over it
qcow2       The tables of a qcow2 image, read and counted here: mapping, COPIED
            flags, refcounts
qcow2_disk  The disk inside a qcow2 image, for the oracles. tests/interop
            compares it with qemu-img
vhd         A plain reader of VHD and raw images, written from the format alone
"""
