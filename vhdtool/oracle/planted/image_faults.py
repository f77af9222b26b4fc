"""Faults to plant in a copy of the closed image, where nobody's data is: its tables and its ends.

Its snapshots, its own structure and what `qemu-img check` said contradict them.
"""

from collections.abc import Iterator
from dataclasses import replace

from vhdtool.oracle.evidence.schedule import SECTOR
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Judged
from vhdtool.oracle.planted.faults import Fault, bat_of, damaged_blocks, names_block
from vhdtool.oracle.readers.image_view import OverlayView, View
from vhdtool.oracle.readers.qcow2_disk import Qcow2Reader, entry_bytes
from vhdtool.oracle.readers.vhd import UNUSED, DynamicReader, open_reader


def qcow2_faults(evidence: Evidence, view: View, judged: Judged) -> Iterator[Fault]:
    """A closed qcow2 image that its snapshots, its own tables and qemu-img contradict."""
    reader = Qcow2Reader(view)
    sound = sorted(reader.blocks.keys() - damaged_blocks(judged))
    last = evidence.record.snapshots[-1:]

    def entry(cluster: int, place: int) -> View:
        at = reader.entry(cluster)
        assert at is not None
        return OverlayView(view, [(at, entry_bytes(place))])

    then = {b for s in last for b in bat_of(s.meta)}
    if last and last[0].point == "all-closed":
        for cluster in [c for c in sound if str(c) in then][:1]:
            changed = evidence.with_view(entry(cluster, 0))
            yield Fault("metadata", "image-entry-gone", changed, names_block("image-bat", cluster))
    yield from _qcow2_structure(evidence, view, reader, sound)


def _qcow2_structure(
    evidence: Evidence, view: View, reader: Qcow2Reader, sound: list[int]
) -> Iterator[Fault]:
    """Tables, refcounts and flags that contradict one another, and what qemu-img said."""
    told = evidence.record.checked
    if len(sound) < 6 or told is None or told.get("corruptions"):
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
    record = replace(evidence.record, checked={**told, **counts})
    changed = replace(evidence, view=OverlayView(view, patches), record=record)
    for name, names in (
        ("overlap", lambda f: f.code == "cluster-place" and f.block in (one, other)),
        ("entry-past-end", names_block("cluster-place", far)),
        ("entry-odd", names_block("cluster-place", odd)),
        ("copied-flag", names_block("copied-flag", shared)),
        ("refcount-zero", names_block("refcount-low", alone)),
        ("refcounts-dirty", lambda f: f.code == "refcounts-dirty"),
        ("qemu-img-says-so", lambda f: f.code == "qemu-img-corruptions"),
        ("qemu-img-failed", lambda f: f.code == "qemu-img-check-errors"),
        ("another-image-checked", lambda f: f.code == "other-check"),
    ):
        yield Fault("structure", name, changed, names)
    index = max(reader.tables.l1)
    table = OverlayView(
        view, [(reader.header.l1_offset + 8 * index, entry_bytes(size + 8 * cluster))]
    )
    changed = replace(evidence, view=table, record=replace(record, checked=None))
    yield Fault("structure", "table-place", changed, lambda f: f.code == "table-place")
    yield Fault("structure", "unchecked", changed, lambda f: f.code == "missing")


def image_faults(evidence: Evidence, judged: Judged) -> Iterator[Fault]:
    """A closed image that its snapshots and its own structure contradict."""
    view = evidence.view
    if view is None or evidence.kind == "raw":
        return
    if evidence.kind == "qcow2":
        yield from qcow2_faults(evidence, view, judged)
        return
    reader = open_reader(view)
    if not isinstance(reader, DynamicReader):
        return
    sound = sorted(reader.blocks.keys() - damaged_blocks(judged))
    then = {b for s in evidence.record.snapshots[-1:] for b in bat_of(s.meta)}
    last = evidence.record.snapshots[-1:]

    def entry(block: int, sector: int) -> View:
        return OverlayView(view, [(reader.bat_offset + 4 * block, sector.to_bytes(4, "big"))])

    if last and last[0].point == "all-closed":
        for block in [b for b in sound if str(b) in then][:1]:
            changed = evidence.with_view(entry(block, UNUSED))
            yield Fault("metadata", "image-entry-gone", changed, names_block("image-bat", block))
        if not _has(judged.metadata.findings, "image-footer"):
            changed = evidence.with_view(foreign_footer(view))
            yield Fault("metadata", "swapped-footer", changed, lambda f: f.code == "image-footer")
    footers = not _has(judged.structure.findings, "footer")
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
            yield Fault("structure", "batmap-overstates", changed, names_block(None, full))


def _layout(
    evidence: Evidence, view: View, reader: DynamicReader, sound: list[int], footers: bool
) -> Iterator[Fault]:
    """Entries of the BAT that point at one another, behind the end and at the metadata.

    In the same copy the footer at the end is gone, and the sum of the batmap is wrong: checking an
    image costs most of what a judgement does.
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
    yield Fault("structure", "entry-past-end", changed, names_block(None, far))
    yield Fault("structure", "entry-on-metadata", changed, names_block(None, front))
    if footers:
        yield Fault("structure", "footer-gone", changed, lambda f: f.code.startswith("footer"))
    if batmap is not None:
        yield Fault("structure", "batmap-checksum", changed, lambda f: f.code == "batmap-checksum")


def _batmap(view: View, reader: DynamicReader) -> tuple[int, int, int] | None:
    """(byte of the batmap's header, byte of its bits, their sum), where it has them."""
    tables = view.pread(0, min(reader.blocks.values()) * SECTOR)
    at = tables.find(b"tdbatmap")
    total = int.from_bytes(tables[at + 24 : at + 28], "big") if at >= 0 else 0
    return (at, int.from_bytes(tables[at + 8 : at + 16], "big"), total) if total else None


def _overstated(view: View, reader: DynamicReader, sound: list[int]) -> tuple[View, int | None]:
    """The image with a batmap that says of a block that all of it is there, and its number."""
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
    """The image with another disk's footer at its end: valid, but with another uuid."""
    footer = bytearray(view.pread(0, SECTOR))
    footer[68:84] = bytes(byte ^ 0x5A for byte in footer[68:84])
    footer[64:68] = bytes(4)
    footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
    return OverlayView(view, [(view.size() - SECTOR, bytes(footer))])


def _has(findings: tuple[Finding, ...], prefix: str) -> bool:
    return any(finding.code.startswith(prefix) for finding in findings)
