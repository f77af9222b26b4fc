"""What an image says about itself: footer, header, BAT, batmap and locators, read and compared.

bat_sort    Which places a BAT names, and whether they lie apart: a million of
            them in milliseconds
bounds      Where metadata and data of an image end. All in sectors of the file
collector   Collects findings, with a lid on how many of one kind a damaged
            table can produce
dump        Snapshots of all metadata as JSON, and the proof that metadata only
            ever grows
ends        Both ends of a VHD file: the footer at its end and the copy at its
            start
findings    What a check or a comparison found, and what it means for an exit
            code
guesses     Which guest block an orphan may be, from the order of blocks in the
            file or from its data
orphans     Orphan blocks: bitmap and data are in the file, but no BAT entry
            names them
placement   The allocated blocks of an image in file order
qcow2       What a qcow2 image says of itself: its size, and where each of its
            clusters lies
read        Footer, header, BAT and batmap of one image; each number is checked
            against the file's size
signatures  What the content of a file looks like, for messages and for refusing
            to guess
"""
