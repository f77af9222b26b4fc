"""What to do about each finding of `check`: a command that can help, or the word that none can."""

from collections.abc import Iterable

from vhdtool.image.metadata.findings import Finding

MENDED = {"batmap-overstates", "batmap-unallocated", "footers-stale", "locator"}
"""Findings of severity "corrupt" that a repair takes away."""
BATMAP_CODES = {
    "batmap-missing",
    "batmap-place",
    "batmap-checksum",
    "batmap-overwritten",
    "batmap-overstates",
    "batmap-unallocated",
}
_SIZES = {"geometry", "size-disagrees"}
MENDS = frozenset(
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
        *MENDED,
    }
)
"""All findings that a repair takes away, unless others stand in its way."""
REPAIR = "vhdtool repair {image} --yes: mends it; what it overwrites can be put back"
SALVAGE = (
    "vhdtool read --salvage {image} -o NEW.raw, or convert --salvage {image} NEW.vhd: copies what "
    "can be trusted and lists the rest; `vhdtool damage` names the files"
)
ORPHANS = (
    "vhdtool read --salvage {image} --orphans DIR -o NEW.raw: copies these blocks out; "
    "then vhdtool repair {image} --drop-orphans --yes gives them up"
)
SALVAGE_ALL = (
    "vhdtool read --salvage {image} -o NEW.raw --orphans DIR: copies what can be trusted, and the "
    "blocks whose entry is lost; `vhdtool damage` names the files"
)
COMPACT = "vhdtool convert {image} NEW.vhd: a copy without the gap"
RELINK = "vhdtool modify {image} --parent PARENT: says where the parent is"
COALESCE = "vhdtool coalesce {image}: shortens the chain by writing a child into its parent"
RESIZE = "vhdtool resize {image} SIZE: a whole number of sectors, large enough for every block"
JOURNAL = "no command can tell which state is right: where it is this one, remove the journal"
BACKUP = "no command can bring it back from this file: restore a copy of the image"

_BY_CODE = {
    **dict.fromkeys(MENDS, REPAIR),
    "orphan-block": ORPHANS,
    "leaked-block": COMPACT,
    "size-odd": RESIZE,
    "block-beyond-size": RESIZE,
    "chain-too-deep": COALESCE,
    "parent-missing": RELINK,
    "parent-mismatch": RELINK,
    "parent-loop": RELINK,
    "journal-foreign": JOURNAL,
    # Salvage needs a header that leads to the BAT.
    "header-cookie": BACKUP,
    "block-size": BACKUP,
    "bat-too-large": BACKUP,
    "bat-place": BACKUP,
}
_ORDER = (BACKUP, JOURNAL, SALVAGE, SALVAGE_ALL, ORPHANS, RELINK, REPAIR, RESIZE, COALESCE, COMPACT)


def advice_for(code: str) -> str:
    """The advice for a finding that is no mere information. All else is damage: salvage."""
    return _BY_CODE.get(code, SALVAGE)


def advice(image: str, findings: Iterable[Finding]) -> list[str]:
    """Advice for one image's findings, each once, the most urgent first; none for information.

    As long as there is damage that no repair mends, a repair is not advised: it would refuse.
    """
    worth = [one for one in findings if one.severity != "info"]
    wanted = {advice_for(one.code) for one in worth}
    damaged = any(one.severity == "corrupt" and one.code not in MENDS for one in worth)
    orphans = any(one.code == "orphan-block" for one in worth)
    doubtful = orphans and any(one.code == "batmap-unallocated" for one in worth)
    if damaged or doubtful or JOURNAL in wanted:
        wanted.discard(REPAIR)
    if damaged and orphans:
        wanted = wanted - {SALVAGE, ORPHANS} | {SALVAGE_ALL}
    if BACKUP in wanted:
        wanted = {BACKUP}
    return [text.format(image=image) for text in _ORDER if text in wanted]
