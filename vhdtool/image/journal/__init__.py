"""Changes that happen wholly or not at all: journals beside the image, and whole new files.

new_file     New files that appear under their name only when they are complete
overlay      A view of an image with some bytes replaced
transaction  Several writes to an image that take effect together, with a
             journal beside the image
undo         The format of journals: the bytes that a change overwrites
"""
