"""Advice for each finding of `check`: the command that helps, or that none does."""

import shlex
from collections.abc import Iterable

from vhdtool.image.metadata.findings import Finding

REPAIRABLE_DAMAGE = frozenset(
    {"batmap-overstates", "batmap-unallocated", "footers-stale", "locator"}
)
"""Codes of severity "corrupt" that a repair removes."""
BATMAP_CODES = {
    "batmap-missing",
    "batmap-place",
    "batmap-checksum",
    "batmap-overwritten",
    "batmap-overstates",
    "batmap-unallocated",
}
HEADER_CODES = frozenset(
    {"header-cookie", "header-checksum", "header-place", "block-size", "bat-too-large", "bat-place"}
)
"""Codes of a lost or damaged header."""
_BAT_LOST = frozenset({"header-cookie", "block-size", "bat-too-large", "bat-place"})
"""Codes of damage that puts the BAT out of reach, so that no orphans were searched."""
_SIZES = {"geometry", "size-disagrees"}
REPAIRABLE = frozenset(
    {
        "footer-checksum",
        "footer-killed",
        "footer-missing",
        "footer-copy-missing",
        "footer-copy-checksum",
        "footers-differ",
        "leaked-tail",
        "block-short",
        "journal-pending",
        *BATMAP_CODES,
        *_SIZES,
        *REPAIRABLE_DAMAGE,
    }
)
"""All codes that a repair removes, unless the image has other damage."""
REPAIR = "vhdtool repair {image} --yes: repairs it; `--undo` restores what it overwrites"
REBUILD_HEADER = (
    "vhdtool repair {image} --rebuild-header: shows the header that the rest of the image proves; "
    "--yes writes it, `--undo` restores what it overwrites"
)
SALVAGE = (
    "vhdtool read --salvage {image} -o NEW.raw, or convert --salvage {image} NEW.vhd: copies the "
    "data that can be trusted and lists the rest; `vhdtool damage` names the files"
)
ORPHANS = (
    "vhdtool read --salvage {image} --orphans DIR -o NEW.raw: copies these blocks to files; "
    "then vhdtool repair {image} --drop-orphans --yes removes them"
)
SALVAGE_ALL = (
    "vhdtool read --salvage {image} -o NEW.raw --orphans DIR: copies the data that can be trusted, "
    "and the blocks whose entry is lost; with --place-orphans those of evident position are placed"
)
COMPACT = "vhdtool convert {image} NEW.vhd: a copy without the gap"
RELINK = "vhdtool modify {image} --parent PARENT: sets the path of the parent"
COALESCE = "vhdtool coalesce {image}: shortens the chain by writing a child into its parent"
RESIZE = "vhdtool resize {image} SIZE: a whole number of sectors, large enough for every block"
JOURNAL = "no command can tell which state is right: if it is this one, remove the journal"

_BY_CODE = {
    **dict.fromkeys(REPAIRABLE, REPAIR),
    "orphan-block": ORPHANS,
    "leaked-block": COMPACT,
    "size-odd": RESIZE,
    "block-beyond-size": RESIZE,
    "chain-too-deep": COALESCE,
    "parent-missing": RELINK,
    "parent-mismatch": RELINK,
    "parent-loop": RELINK,
    "journal-foreign": JOURNAL,
    "header-proved": REBUILD_HEADER,
}
_ORDER = (
    JOURNAL,
    REBUILD_HEADER,
    SALVAGE,
    SALVAGE_ALL,
    ORPHANS,
    RELINK,
    REPAIR,
    RESIZE,
    COALESCE,
    COMPACT,
)


def advice_for(code: str) -> str:
    """The advice for the code of a corrupt or unclean finding. The default is salvage."""
    return _BY_CODE.get(code, SALVAGE)


def advice(image: str, findings: Iterable[Finding]) -> list[str]:
    """Advice for the findings of one image, without duplicates, the most urgent first.

    A repair is not advised while there is damage that it cannot repair: it would refuse.
    """
    found = list(findings)
    codes = {one.code for one in found}
    faults = [one for one in found if one.severity != "info"]
    wanted = {advice_for(one.code) for one in faults}
    damaged = any(one.severity == "corrupt" and one.code not in REPAIRABLE for one in faults)
    orphans = any(one.code == "orphan-block" for one in faults)
    doubtful = orphans and any(one.code == "batmap-unallocated" for one in faults)
    if damaged or doubtful or JOURNAL in wanted:
        wanted.discard(REPAIR)
    if "header-proved" in codes:
        wanted = wanted - {SALVAGE} | {REBUILD_HEADER}
    elif codes & _BAT_LOST or (damaged and orphans):
        wanted = wanted - {SALVAGE, ORPHANS} | {SALVAGE_ALL}
    quoted = shlex.quote(image)
    return [text.format(image=quoted) for text in _ORDER if text in wanted]
