"""The check of one image, and the gate that admits images to readers and writers.

admission   The admission gate: the one place that decides whether an image may
            be read or written
advice      Advice for each finding of `check`: the command that helps, or that
            none does
bat_search  Tables in a file that can be its BAT, where no header says which one
            is
bitmaps     Check of sector bitmaps and batmap: they agree, and every present
            sector is in the file
collector   Collects findings, and limits the number of one code
image       Check of one image: compares its structures with each other and
            with the file
lost_header A lost header, rebuilt from what footer, BAT, batmap and blocks prove
overlaps    Ownership of the sectors of a file: no two structures share one,
            and none is leaked
regions     Where the metadata of an image lies: no block, and no other
            metadata, may overlap it
structures  Check of footers, header, parent locators and the extent of a fixed
            disk
"""
