"""Open images that serve reads and writes: dynamic, fixed, raw and qcow2.

allocator        Allocates blocks: a durable bitmap first, the BAT entry after it
base             OpenDisk: what every open disk offers; the hooks of its owner; its parent
block_map        BAT and sector bitmaps in memory
block_reader     Reads present sectors from the file, the others from the parent
dynamic          DynamicDisk: a dynamic VHD, composed of the above
flat             Fixed VHDs and raw images, whose guest bytes are file bytes
metadata_writer  Writes BAT entries, bitmaps, batmap and footer, after the owner's hook
open             Opens an image of any kind
overlay          A disk whose writes go to a temporary file, and are lost
policy           How an open image is written: by the rules, or by another policy
preallocation    Zeros behind the last block, durable before a BAT entry points there
qcow2            A qcow2 image, opened by QEMU's own code in a child process
qemu_nbd         qemu-nbd as a child process
tapdisk2         The policy that writes an image as tapdisk2 does: it trusts its memory
"""
