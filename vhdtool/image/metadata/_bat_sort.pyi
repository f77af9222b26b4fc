"""Sorts BAT entries in C (bat_sort.c): a million of them in milliseconds."""

from array import array

def sort(entries: array[int], /) -> None:
    """Sorts an array("I") in place. Raises MemoryError."""
