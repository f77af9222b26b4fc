"""Damaged images: reading and copying the data that can be trusted.

open        Opening a damaged image that other readers refuse
partitions  Partitions and file systems of a guest's disk, to name what a range
            belongs to
reader      Reading a damaged image: the data that can be trusted, and the
            ranges that are lost
"""
