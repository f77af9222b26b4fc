"""Faults in the tables, header and footers of a copy of the closed image.

The snapshots, the rest of the image or the report of `qemu-img check` contradict them.
"""

from collections.abc import Iterator
from dataclasses import replace

from vhdtool.oracle.evidence.schedule import SECTOR
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Outcomes
from vhdtool.oracle.planted.fault import Fault, at_block, bat_of, damaged_blocks, finds
from vhdtool.oracle.readers.image_view import OverlayView, View
from vhdtool.oracle.readers.qcow2 import Qcow2Reader, entry_bytes
from vhdtool.oracle.readers.vhd import UNUSED, DynamicReader, open_reader


def qcow2_faults(evidence: Evidence, view: View, outcomes: Outcomes) -> Iterator[Fault]:
    """Faults of a qcow2 image, seen by its snapshots, its own tables and `qemu-img check`."""
    reader = Qcow2Reader(view)
    sound = sorted(reader.blocks.keys() - damaged_blocks(outcomes))
    last = evidence.record.snapshots[-1:]

    def entry(cluster: int, offset: int) -> View:
        at = reader.entry(cluster)
        assert at is not None
        return OverlayView(view, [(at, entry_bytes(offset))])

    then = {b for s in last for b in bat_of(s.meta)}
    if last and last[0].point == "all-closed":
        for cluster in [c for c in sound if str(c) in then][:1]:
            changed = evidence.with_view(entry(cluster, 0))
            yield Fault("metadata", "image-entry-gone", changed, at_block("image-bat", cluster))
    yield from _qcow2_structure(evidence, view, reader, sound)


def _qcow2_structure(
    evidence: Evidence, view: View, reader: Qcow2Reader, sound: list[int]
) -> Iterator[Fault]:
    """Tables, refcounts and flags that contradict one another, and another check.json."""
    report = evidence.record.qemu_check
    if len(sound) < 6 or report is None or report.get("corruptions"):
        return
    one, other, far, odd, alone, shared = (sound[n * (len(sound) - 1) // 5] for n in range(6))
    blocks, cluster = reader.blocks, reader.header.cluster
    size = -(-view.size() // cluster) * cluster
    first = int.from_bytes(view.pread(reader.header.refcounts, 8), "big")
    width = reader.header.refcount_bits // 8

    def entry(block: int, data: bytes) -> tuple[int, bytes]:
        at = reader.entry(block)
        assert at is not None
        return at, data

    patches = [
        entry(other, entry_bytes(blocks[one])),
        entry(far, entry_bytes(size + 8 * cluster)),
        entry(odd, entry_bytes(blocks[odd] + SECTOR)),
        entry(shared, blocks[shared].to_bytes(8, "big")),
        (first + blocks[alone] // cluster * width, bytes(width)),
        (79, b"\1"),
    ]
    counts = {"corruptions": 1, "check-errors": 1, "allocated-clusters": 0}
    record = replace(evidence.record, qemu_check={**report, **counts})
    changed = replace(evidence, view=OverlayView(view, patches), record=record)
    for name, matches in (
        ("overlap", lambda f: f.code == "cluster-place" and f.block in (one, other)),
        ("entry-past-end", at_block("cluster-place", far)),
        ("entry-odd", at_block("cluster-place", odd)),
        ("copied-flag", at_block("copied-flag", shared)),
        ("refcount-zero", at_block("refcount-low", alone)),
        ("refcounts-dirty", finds("refcounts-dirty")),
        ("qemu-img-corruptions", finds("qemu-img-corruptions")),
        ("qemu-img-failed", finds("qemu-img-check-errors")),
        ("another-image-checked", finds("other-check")),
    ):
        yield Fault("structure", name, changed, matches)
    index = max(reader.tables.l1)
    table = OverlayView(
        view, [(reader.header.l1_offset + 8 * index, entry_bytes(size + 8 * cluster))]
    )
    changed = replace(evidence, view=table, record=replace(record, qemu_check=None))
    yield Fault("structure", "table-place", changed, finds("table-place"))
    yield Fault("structure", "unchecked", changed, finds("missing"))


def image_faults(evidence: Evidence, outcomes: Outcomes) -> Iterator[Fault]:
    """Faults of the closed image, seen by its snapshots and its own structure."""
    view = evidence.view
    if view is None or evidence.image_format == "raw":
        return
    if evidence.image_format == "qcow2":
        yield from qcow2_faults(evidence, view, outcomes)
        return
    reader = open_reader(view)
    if not isinstance(reader, DynamicReader):
        return
    sound = sorted(reader.blocks.keys() - damaged_blocks(outcomes))
    then = {b for s in evidence.record.snapshots[-1:] for b in bat_of(s.meta)}
    last = evidence.record.snapshots[-1:]

    def entry(block: int, sector: int) -> View:
        return OverlayView(view, [(reader.bat_offset + 4 * block, sector.to_bytes(4, "big"))])

    if last and last[0].point == "all-closed":
        for block in [b for b in sound if str(b) in then][:1]:
            changed = evidence.with_view(entry(block, UNUSED))
            yield Fault("metadata", "image-entry-gone", changed, at_block("image-bat", block))
        if not _has(outcomes.metadata.findings, "image-footer"):
            changed = evidence.with_view(foreign_footer(view))
            yield Fault("metadata", "swapped-footer", changed, finds("image-footer"))
    footers = not _has(outcomes.structure.findings, "footer")
    if len(sound) >= 5:
        yield from _layout(evidence, view, reader, sound, footers)
    if footers:
        torn = OverlayView(view, [(0, bytes(SECTOR)), (SECTOR + 60, b"?")])
        changed = replace(evidence, view=torn)
        yield Fault("structure", "footer-copy-gone", changed, lambda f: "footer-copy" in f.code)
        yield Fault("structure", "header-torn", changed, lambda f: f.code.startswith("header"))
        foreign, full = _overstated(foreign_footer(view), reader, sound)
        changed = replace(evidence, view=foreign)
        yield Fault("structure", "foreign-footer", changed, lambda f: f.code.startswith("footer"))
        if full is not None:
            yield Fault("structure", "batmap-overstates", changed, at_block(None, full))


def _layout(
    evidence: Evidence, view: View, reader: DynamicReader, sound: list[int], footers: bool
) -> Iterator[Fault]:
    """BAT entries that overlap, or point after the end or at the metadata.

    The same copy has no footer at its end, and a wrong checksum of the batmap, because the strict
    check takes most of the time of a judgement.
    """
    one, far, front, other = sound[0], sound[len(sound) // 2], sound[1], sound[-1]
    entries = (
        (other, reader.blocks[one] + 1), (far, view.size() // SECTOR + 8), (front, 1),
    )  # fmt: skip
    bat = reader.bat_offset
    patches = [(bat + 4 * block, at.to_bytes(4, "big")) for block, at in entries]
    patches.append((view.size() - SECTOR, bytes(SECTOR)))
    batmap = _batmap(view, reader)
    if batmap is not None:
        patches.append((batmap[0] + 24, (batmap[2] ^ 1).to_bytes(4, "big")))
    changed = replace(evidence, view=OverlayView(view, patches))
    yield Fault("structure", "overlap", changed, lambda f: f.block in (one, other))
    yield Fault("structure", "entry-past-end", changed, at_block(None, far))
    yield Fault("structure", "entry-on-metadata", changed, at_block(None, front))
    if footers:
        yield Fault("structure", "footer-gone", changed, lambda f: f.code.startswith("footer"))
    if batmap is not None:
        yield Fault("structure", "batmap-checksum", changed, finds("batmap-checksum"))


def _batmap(view: View, reader: DynamicReader) -> tuple[int, int, int] | None:
    """(offset of the batmap's header, offset of its bits, their checksum); None without one."""
    tables = view.pread(0, min(reader.blocks.values()) * SECTOR)
    at = tables.find(b"tdbatmap")
    total = int.from_bytes(tables[at + 24 : at + 28], "big") if at >= 0 else 0
    return (at, int.from_bytes(tables[at + 8 : at + 16], "big"), total) if total else None


def _overstated(view: View, reader: DynamicReader, sound: list[int]) -> tuple[View, int | None]:
    """(image whose batmap marks a partial block as full, number of the block)."""
    batmap = _batmap(view, reader)
    if batmap is None:
        return view, None
    header, bits, total = batmap
    for block in sound:
        at, bit = bits + block // 8, 0x80 >> block % 8
        byte = view.pread(at, 1)[0]
        if not byte & bit and b"\0" in reader.bitmap(block):
            less = ((total - bit) & 0xFFFFFFFF).to_bytes(4, "big")
            return OverlayView(view, [(at, bytes([byte | bit])), (header + 24, less)]), block
    return view, None


def foreign_footer(view: View) -> View:
    """The image with the footer of another disk: valid, but with another UUID."""
    footer = bytearray(view.pread(0, SECTOR))
    footer[68:84] = bytes(byte ^ 0x5A for byte in footer[68:84])
    footer[64:68] = bytes(4)
    footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
    return OverlayView(view, [(view.size() - SECTOR, bytes(footer))])


def _has(findings: tuple[Finding, ...], prefix: str) -> bool:
    return any(finding.code.startswith(prefix) for finding in findings)
