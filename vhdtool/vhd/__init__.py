"""The VHD format on disk: bytes <-> values. No files, no sockets.

bat       The block allocation table as an array of sector offsets
batmap    blktap's batmap: one bit a block, set when every sector is present
bits      Bitmaps of blktap and Microsoft, most significant bit first
blocks    Arithmetic of blocks: a sector bitmap, then the data
creators  Who wrote an image, and what they mean by its size
footer    The footer at the end of every VHD, and its copy at the start
geometry  Cylinders, heads and sectors per track
header    The dynamic disk header, and the eight parent locators inside it
locators  Paths in parent locators: text <-> the bytes of each platform code
units     Sizes, clocks and checksums that every structure shares

Layout: Microsoft, *Virtual Hard Disk Image Format Specification* 1.0; the batmap, the hidden
flag and the key hash are extensions of Xen's blktap. All integers are big-endian; a sector is
512 bytes; offsets in the BAT are in sectors, all others in bytes.
"""
