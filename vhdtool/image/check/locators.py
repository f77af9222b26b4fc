"""Parent locators: are the paths to the parent where the header says?"""

from vhdtool.image.check.regions import Region
from vhdtool.image.metadata.collector import Collector
from vhdtool.vhd.header import Header, Locator
from vhdtool.vhd.locators import KNOWN_CODES
from vhdtool.vhd.units import SECTOR, pad

LARGEST = 64 << 10
"""More bytes than any path takes."""


def locator_regions(header: Header, file_size: int, found: Collector) -> list[Region]:
    """The places of all sound locators; the others are reported."""
    regions = []
    for index, locator in enumerate(header.locators):
        if not locator.used:
            continue
        name = f"parent locator {index + 1}"
        if locator.code not in KNOWN_CODES:
            found.info("locator-code", f"{name} has the unknown code {locator.code!r}")
        fault = locator_fault(locator, file_size)
        if fault is not None:
            found.corrupt("locator", f"{name} {fault}", offset=locator.offset)
            continue
        first = locator.offset // SECTOR
        room = max(locator.room or 0, pad(locator.length))
        regions.append(Region(name, first, first + room // SECTOR))
    return regions


def locator_fault(locator: Locator, file_size: int) -> str | None:
    """What cannot be right about a locator's place, in words, or None."""
    room = locator.room
    if room is None:
        return f"has room for {locator.space}: neither sectors nor whole sectors in bytes"
    if room > LARGEST or locator.length > LARGEST:
        return f"is absurdly large ({room} bytes for a path of {locator.length})"
    if locator.length > room:
        return f"is longer ({locator.length} bytes) than its room ({room} bytes)"
    if locator.offset % SECTOR or locator.offset + locator.length > file_size:
        return f"lies outside the file or between sectors (byte {locator.offset})"
    return None
