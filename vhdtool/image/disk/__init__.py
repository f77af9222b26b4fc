"""Open images that serve reads and writes: dynamic, fixed, raw and qcow2.

allocator      New blocks of an open image: durable room with its bitmap, and
               then the table entry
block_map      What an open image knows of its blocks: where each is, and
               which of its sectors are there
block_reader   The reading half of an open image with blocks
closing        What ends an image: its batmap and its footer
dynamic        An open dynamic VHD: reads, writes, allocates, closes. What
               the shim serves
flat           Disks that are their file from the first byte on: fixed VHDs
               and raw images
freeing        What a guest has no use for any more, and what it will want
               soon: advice to an open image
hooks          What an open image asks and tells
layout         Where an open image's data lies, for who moves it without
               asking for each request
many           Several requests of one disk at once, on storage that bypasses
               the page cache
open           An image of any kind, opened for reading and writing
preallocation  Room for new blocks: zeros behind the end of data, durable
               before a BAT entry points there
qcow2          A qcow2 image opened for reading and writing: QEMU's own code,
               in a child process
qemu_nbd       qemu-nbd as a child: it opens a qcow2 image, and serves it to
               us alone
tapdisk2       A dynamic image treated as tapdisk2 treats it, write by write:
               it trusts its memory
"""
