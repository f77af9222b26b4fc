"""The library's API (`import vhdtool`). Every error is a VhdtoolError and names the file.

change    Repairing and resizing closed images
create    Creating images: empty ones, children, and copies in another format
examine   Examining images: check, fields, map, and the data of a damaged one
image     An image as an object: open, read, write, close
requests  Requests to an open image: those in flight, and none after its end
"""
