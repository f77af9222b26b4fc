"""An image with its parents: located, opened, checked, and read as one disk.

check            Check of an image together with its parents
detect           The format of a file by its content, and of a new file by its
                 suffix
disk_file        A disk as a file object of Python's, for programs that read or
                 write files
export           Copying guest data of a chain to a raw file; holes stay holes
info             Every field of an image and its chain, as JSON types
layers           Reading guest data of one layer or of a whole chain
locate_parent    Locating the parent of a differencing image
open             Opening an image together with all its parents
ordered_workers  A few threads that share one stream of work items
tree             The images of a directory as trees of parents and children
"""
