"""Damaged images: reading and copying the data that can be trusted.

anchors     Structures in a guest's data that state where on the disk they are
blocks      Blocks without a BAT entry: found by their pattern, and placed where
            evidence puts them
damage      The guest sectors, partitions and files that the damage of an image
            affects
files       Names of the files in ranges of a guest's disk (ext, NTFS, FAT)
mapfile     The result of a salvage as a mapfile of GNU ddrescue
ntfs        NTFS volumes without a partition table, by their boot sectors
numbering   The guest block of each orphan block: by its data, then by the order
            of the file
open        Opening a damaged image that other readers refuse
partitions  Partitions and file systems of a guest's disk, to name what a range
            belongs to
reader      Reading a damaged image: the data that can be trusted, and the
            ranges that are lost
"""
