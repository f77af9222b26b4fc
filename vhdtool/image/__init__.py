"""VHD images: read, check, create, open and change them. Imports point downward in this order.

api/       The library's API (`import vhdtool`): an open image, and functions
           that create, examine, repair and resize
salvage/   Damaged images: reading and copying the data that can be trusted
edit/      Changes of closed images: size, chain, metadata and repairs
disk/      Open images that serve reads and writes: dynamic, fixed, raw and qcow2
create/    New images: empty, differencing, or converted from another image
chain/     An image with its parents: located, opened, checked, and read as one
           disk
check/     The check of one image, and the gate that admits images to readers
           and writers
journal/   Changes that happen wholly or not at all: journals beside the image,
           and whole new files
metadata/  The metadata of one image: footer, header, BAT and batmap, read,
           dumped and compared
"""
