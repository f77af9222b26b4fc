"""An image with its parents: found, opened, read as one disk, listed.

check            Checking an image together with its parents
detect           Which format a file has, by its content, and which one a
                 new file gets, by its name
export           Guest data out of a chain into a raw file, holes kept as
                 holes
info             Everything about an image in words, as JSON types
layers           Reading guest data of one layer or a whole chain, and
                 saying where each range comes from
locate_parent    Where the parent of a differencing disk is: locators
                 first, the name in the header last
open             Opening an image together with all its parents
ordered_workers  A few threads over one stream of work: the kernel copies
                 outside Python's lock
tree             A directory of images as trees of parents and children
"""
