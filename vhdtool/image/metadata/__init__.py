"""The metadata of one image: footer, header, BAT and batmap, read, dumped and compared.

bat_sort    Sorts BAT entries and detects overlapping blocks; a million entries
            take milliseconds
bounds      Where the metadata and the data of an image end
diff        Comparison of two metadata dumps: what was lost, and what was added
dump        The metadata dump of a VHD or qcow2 image: all its metadata as one
            JSON value
ends        Both ends of a VHD file: the footer at its end and the copy at its
            start
findings    Findings of a check or a comparison, the report on one image, and
            their exit codes
orphans     Orphan blocks: bitmap and data are in the file, but no BAT entry
            names them
placement   The allocated blocks of an image in file order
qcow2       The metadata of a qcow2 image: its size and the file offset of each
            cluster
read        Footer, header, BAT and batmap of one image; each number is checked
            against the file's size
signatures  The format of a file by magic numbers in its content, and by the
            suffix of its name
"""
