"""The VHD format on disk: bytes <-> values. No files, no sockets.

Layout: Microsoft, *Virtual Hard Disk Image Format Specification* 1.0; the batmap, the hidden
flag and the key hash are extensions of Xen's blktap. All integers are big-endian; a sector is
512 bytes; offsets in the BAT are in sectors, all others in bytes.
"""
