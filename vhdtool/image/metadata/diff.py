"""Comparison of two metadata dumps: what was lost, and what was added."""

from typing import Any

from vhdtool.errors import UsageError
from vhdtool.image.metadata.dump import SCHEMA
from vhdtool.image.metadata.findings import Finding
from vhdtool.vhd.bits import set_runs
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.units import SECTOR


def diff_monotonic(before: dict[str, Any], after: dict[str, Any]) -> list[Finding]:
    """What a later dump of the same image has lost against an earlier one.

    In a healthy image a BAT entry never vanishes or moves, a bitmap bit never goes from 1 to 0,
    and the disk stays the same disk. Raises UsageError for a value that is no metadata dump.
    """
    for one in (before, after):
        if not isinstance(one, dict) or one.get("schema") != SCHEMA:
            raise UsageError("not a metadata dump of `vhdtool meta` (schema 1)")
    try:
        findings = _identity(before, after)
        if before["header"] is not None and after["header"] is None:
            findings.append(Finding("header-vanished", "corrupt", "the header is gone or damaged"))
            return findings
        return findings + _entries(before, after)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"a metadata dump is damaged: {error!r}") from None


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
        position = {"block": block, "offset": header["bat_offset"] + 4 * block}
        guest = (block * layout.sectors, layout.sectors)
        now = after["bat"].get(key)
        if now is None:
            text = f"block {block} was at sector {sector} and is no longer allocated"
            findings.append(Finding("bat-vanished", "corrupt", text, **position, sectors=guest))
        elif now != sector:
            text = f"block {block} moved from sector {sector} to sector {now}"
            findings.append(Finding("bat-moved", "corrupt", text, **position, sectors=guest))
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
    """What a later dump has in addition to an earlier one, and other harmless changes."""
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
