"""Who may write an image: locks on the file itself, and what tells one file from another.

image_lock       Byte-range locks on the image itself: who may write it,
                 whatever name leads to it
locked_file      The file or block device of an image, locked through the
                 descriptor that does the I/O
locked_memory    A file in memory whose lock a server can give away, as an
                 NFSv4 server does
loop             Loop devices: a second name of a file, whose I/O knows
                 nothing of locks on that file
mounts           What kind of file system a path is on, by proc(5)'s
                 mountinfo
persistent_path  The path by which a file or volume can be found again
                 after a restart
"""
