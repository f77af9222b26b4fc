"""Readers of disk images for the oracles alone. They share no code with the image library.

image_view  Read-only views: a file, and a view with some bytes replaced
packed      Packed images, in place of sparse files
qcow2       The tables of a qcow2 image, its refcounts, and its disk
vhd         The disk in a VHD or a raw image
"""
