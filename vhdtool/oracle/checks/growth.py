"""Compares a snapshot with a later one of the same image: metadata only grows.

A BAT entry never vanishes or moves, a bitmap bit never changes from 1 to 0, and the disk stays the
same disk. A record may be older or newer than this code: a field that only one of the two snapshots
has is not compared.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vhdtool.oracle.finding import Finding

Meta = Mapping[str, Any]
SECTOR = 512
FOOTER_STAYS = ("uuid", "current_size", "type")
HEADER_STAYS = ("block_bytes", "bat_offset", "max_entries", "parent_uuid")


def lost_metadata(old_name: str, old: Meta, new_name: str, new: Meta) -> Iterator[Finding]:
    """Metadata of the older snapshot that the newer one does not have."""
    where = f" (from {old_name} to {new_name})"
    yield from _identity(old, new, where)
    if old["header"] is not None and new["header"] is not None:
        yield from _entries(old, new, where)


def _identity(old: Meta, new: Meta, where: str) -> Iterator[Finding]:
    for part, stays in (("footer", FOOTER_STAYS), ("header", HEADER_STAYS)):
        was, now = old.get(part), new.get(part)
        if was is None or part not in new:
            continue
        if now is None:
            yield Finding(f"{part}-vanished", f"the image has no valid {part} any more{where}")
            continue
        for key in stays:
            if key in was and key in now and was[key] != now[key]:
                text = f"the {part}'s {key} changed from {was[key]} to {now[key]}"
                yield Finding(f"{part}-identity-changed", text + where)


def _entries(old: Meta, new: Meta, where: str) -> Iterator[Finding]:
    sectors = _block_sectors(old) or _block_sectors(new)
    for key, sector in old["bat"].items():
        block, now = int(key), new["bat"].get(key)
        if now == sector:
            yield from _bits(block, sectors, old, new, where)
            continue
        guest = (block * sectors, sectors) if sectors else None
        at = old["header"].get("bat_offset")
        offset = at + 4 * block if isinstance(at, int) else None
        if now is None:
            text = f"block {block} was at sector {sector} and is no longer allocated"
            yield Finding("bat-vanished", text + where, "corrupt", block, guest, offset)
        else:
            text = f"block {block} moved from sector {sector} to sector {now}"
            yield Finding("bat-moved", text + where, "corrupt", block, guest, offset)


def _block_sectors(meta: Meta) -> int:
    size = (meta["header"] or {}).get("block_bytes")
    return size // SECTOR if isinstance(size, int) and not isinstance(size, bool) else 0


def _bits(block: int, sectors: int, old: Meta, new: Meta, where: str) -> Iterator[Finding]:
    was, now = old["bitmaps"].get(str(block)), new["bitmaps"].get(str(block))
    if not was or was == now or str(block) not in new["bitmaps"]:
        return
    size = len(was)
    lost = int(was, 16) & ~int((now or "0").ljust(size, "0")[:size], 16)
    if not lost:
        return
    bits = f"{lost:0{size * 4}b}"[: sectors or None]
    at = bits.find("1")
    while at >= 0:
        end = bits.find("0", at)
        end = len(bits) if end < 0 else end
        text = f"block {block}: {end - at} sectors from {at} on were present and no longer are"
        yield Finding(
            "bitmap-bit-lost", text + where, block=block,
            sectors=(block * sectors + at, end - at),
        )  # fmt: skip
        at = bits.find("1", end)
