"""Damaged images: reading and copying the data that can be trusted.

damage      The guest sectors, partitions and files that the damage of an image
            affects
files       Names of the files in ranges of a guest's disk (ext, NTFS, FAT)
open        Opening a damaged image that other readers refuse
partitions  Partitions and file systems of a guest's disk, to name what a range
            belongs to
reader      Reading a damaged image: the data that can be trusted, and the
            ranges that are lost
"""
