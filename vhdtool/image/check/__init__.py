"""Checks of one image, and the gate that says what may be read and written.

admission   May this image be read? May it be written? The one place that
            decides
advice      What to do about each finding of `check`: a command that can help,
            or the word that none can
bitmaps     Bitmaps and batmap: what is present, do both say the same, and is it
            in the file?
image       Is an image what it says? Every finding with code, place and meaning
locators    Parent locators: are the paths to the parent where the header says?
overlaps    Who owns which sector of the file: no two structures may share one,
            none may be lost
regions     Where the metadata of an image is: no block, and no other metadata,
            may be there
structures  Footers and header: is this the disk that it says, and can its
            tables be found?
"""
