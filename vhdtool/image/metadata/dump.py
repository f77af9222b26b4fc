"""Snapshots of all metadata as JSON, and the proof that metadata only ever grows."""

from typing import Any

from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.image.metadata.ends import Ends, read_ends
from vhdtool.image.metadata.findings import Finding
from vhdtool.image.metadata.read import (
    check_table,
    read_bat,
    read_batmap,
    read_batmap_header,
    read_header,
)
from vhdtool.storage import Storage
from vhdtool.vhd.batmap import batmap_possible
from vhdtool.vhd.bits import set_runs
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import FIXED
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR, UNUSED

SCHEMA = 1


def snapshot(storage: Storage) -> dict[str, Any]:
    """All metadata of an image, closed or in use, in JSON types.

    Keys: schema, file_size (bytes), footer (with "place": "end" or "copy"; null when neither is
    valid), header, bat (block -> first sector in the file), bitmaps (block -> hex of the bits,
    one a sector of the block; of no more blocks than fit into the file), batmap (hex or null).
    What cannot be read is null or left out: a snapshot judges nothing. Raises NotAVhd, or
    StorageError.
    """
    ends = read_ends(storage)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "file_size": ends.file_size,
        "footer": _footer(ends),
        "header": None,
        "bat": {},
        "bitmaps": {},
        "batmap": None,
    }
    header = _usable_header(storage, ends)
    if header is None:
        return result
    result["header"] = header.as_dict()
    layout = BlockLayout(header.block_bytes)
    bat = result["bat"]
    bitmaps = result["bitmaps"]
    table = read_bat(storage, header)
    # A table of garbage may name millions of blocks, many more than the file has.
    fit = storage.size() // SECTOR // layout.total_sectors + 1
    for block, sector in enumerate(table):
        if sector != UNUSED:
            bat[str(block)] = sector
            if fit:
                bits = storage.pread(sector * SECTOR, layout.bitmap_bytes)
                bitmaps[str(block)] = bits.hex()
                fit -= bool(bits)
    footer = ends.best
    if footer is not None and batmap_possible(footer):
        batmap = read_batmap_header(storage, header)
        full = read_batmap(storage, batmap, header) if batmap is not None else None
        result["batmap"] = full[: -(-header.max_entries // 8)].hex() if full is not None else None
    # The end of a live image moves on while its bitmaps are read; the later size fits them all.
    result["file_size"] = storage.size()
    return result


def _footer(ends: Ends) -> dict[str, Any] | None:
    best = ends.best
    if best is None:
        return None
    return {**best.as_dict(), "place": "end" if best is ends.end else "copy"}


def _usable_header(storage: Storage, ends: Ends) -> Header | None:
    footer = ends.best
    if footer is not None and footer.disk_type == FIXED:
        return None
    try:
        header = read_header(storage, footer.data_offset if footer is not None else SECTOR)
        header.validate(storage.name)
        if footer is not None:
            check_table(storage.name, header, footer, ends.file_size)
        elif header.bat_offset + 4 * header.max_entries > ends.file_size:
            return None
    except VhdtoolError:
        return None
    return header


def diff_monotonic(before: dict[str, Any], after: dict[str, Any]) -> list[Finding]:
    """What a later snapshot of the same image has lost against an earlier one.

    In a healthy image a BAT entry never vanishes or moves, a bitmap bit never goes from 1 to 0,
    and the disk stays the same disk. Raises UsageError when a snapshot is none.
    """
    for one in (before, after):
        if not isinstance(one, dict) or one.get("schema") != SCHEMA:
            raise UsageError("not a metadata snapshot of `vhdtool meta` (schema 1)")
    try:
        findings = _identity(before, after)
        if before["header"] is not None and after["header"] is None:
            findings.append(Finding("header-vanished", "corrupt", "the header is gone or damaged"))
            return findings
        return findings + _entries(before, after)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"a metadata snapshot is damaged: {error!r}") from None


def _identity(before: dict[str, Any], after: dict[str, Any]) -> list[Finding]:
    findings = []
    old, new = before["footer"], after["footer"]
    if old is not None and new is None:
        findings.append(Finding("footer-vanished", "corrupt", "no valid footer is left"))
    elif old is not None:
        for key in ("uuid", "current_size", "type"):
            if old[key] != new[key]:
                text = f"the footer's {key} changed from {old[key]} to {new[key]}"
                findings.append(Finding("footer-identity-changed", "corrupt", text))
    old, new = before["header"], after["header"]
    if old is not None and new is not None:
        for key in ("block_bytes", "bat_offset", "max_entries", "parent_uuid"):
            if old[key] != new[key]:
                text = f"the header's {key} changed from {old[key]} to {new[key]}"
                findings.append(Finding("header-identity-changed", "corrupt", text))
    return findings


def _entries(before: dict[str, Any], after: dict[str, Any]) -> list[Finding]:
    findings: list[Finding] = []
    header = before["header"]
    if header is None:
        return findings
    layout = BlockLayout(header["block_bytes"])
    for key, sector in before["bat"].items():
        block = int(key)
        place = {"block": block, "offset": header["bat_offset"] + 4 * block}
        guest = (block * layout.sectors, layout.sectors)
        now = after["bat"].get(key)
        if now is None:
            text = f"block {block} was at sector {sector} and is no longer allocated"
            findings.append(Finding("bat-vanished", "corrupt", text, **place, sectors=guest))
        elif now != sector:
            text = f"block {block} moved from sector {sector} to sector {now}"
            findings.append(Finding("bat-moved", "corrupt", text, **place, sectors=guest))
        else:
            old, new = (one["bitmaps"].get(key, "") for one in (before, after))
            findings += _bits(block, sector, layout, old, new) if old != new else []
    return findings


def _bits(block: int, sector: int, layout: BlockLayout, old: str, new: str) -> list[Finding]:
    was = bytes.fromhex(old)
    now = bytes.fromhex(new).ljust(len(was), b"\0")
    lost = bytes(a & ~b & 0xFF for a, b in zip(was, now, strict=False))
    return [
        Finding(
            "bitmap-bit-lost",
            "corrupt",
            f"block {block}: {count} sectors from {first} were present and no longer are",
            block=block,
            offset=sector * SECTOR + first // 8,
            sectors=(block * layout.sectors + first, count),
        )
        for first, count in set_runs(lost, layout.sectors)
    ]


def diff_growth(before: dict[str, Any], after: dict[str, Any]) -> list[Finding]:
    """What a later snapshot has more than an earlier one, and other harmless changes."""
    findings = [
        Finding(f"{name.replace('_', '-')}-changed", "info", f"{name} changed")
        for name in ("file_size", "batmap")
        if before[name] != after[name]
    ]
    for name in ("footer", "header"):
        old, new = before[name] or {}, after[name] or {}
        for key in sorted(set(old) | set(new)):
            if old.get(key) != new.get(key):
                text = f"{name}: {key} was {old.get(key)}, is {new.get(key)}"
                findings.append(Finding(f"{name}-field", "info", text))
    for key, sector in after["bat"].items():
        if key not in before["bat"]:
            text = f"block {key} was allocated at sector {sector}"
            findings.append(Finding("bat-new", "info", text, block=int(key)))
        elif before["bitmaps"].get(key) != after["bitmaps"].get(key):
            text = f"block {key}: its bitmap changed"
            findings.append(Finding("bitmap-changed", "info", text, block=int(key)))
    return findings
