"""The library's API (`import vhdtool`). Every error is a VhdtoolError and names the file.

change    Repairing and resizing closed images
create    Creating images: empty ones, children, and copies in another format
examine   What an image is: check, fields, map, and what is left of a damaged one
image     An image as an object: open, read, write, close
requests  Requests to an open image: those in flight, and none after its end
"""
