"""VHD images: read, check, change, create and open them. Each folder imports those above it only.

chain/     An image with its parents: found, opened, read as one disk, listed
check/     Checks of one image, and the gate that says what may be read and
           written
create/    New images: empty, differencing, or converted from another
disk/      Open images that serve reads and writes: dynamic, fixed, raw and qcow2
edit/      Changes of closed images: size, chain, metadata, repairs
journal/   Changes that happen wholly or not at all: a journal beside the image,
           whole new files
metadata/  What an image says about itself: footer, header, BAT, batmap and
           locators, read and compared
salvage/   Damaged images: what of them can be trusted, and copied
api        The library's surface (`import vhdtool`): open, create, snapshot and
           check an image
"""
