"""Damaged images: what of them can be trusted, and copied.

convert     A new image or raw file from what can be trusted of a damaged one
open        Opening a damaged image with less than other readers demand, and a
            list of what to doubt
partitions  Partitions and file systems of a guest's disk: enough to say what a
            range belongs to
reader      Reading a damaged image: all that can still be trusted, and a list
            of the rest
"""
