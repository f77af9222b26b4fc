"""The blocks that the shims allocated, as the events report them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vhdtool.oracle.evidence.case import Case, image_format
from vhdtool.oracle.evidence.events import Event, Events
from vhdtool.oracle.evidence.snapshots import Snapshot

Meta = Mapping[str, Any]


@dataclass(frozen=True)
class Units:
    """What one block of an `allocated` event is in a snapshot, and in the write load.

    A block of qcow2 is what one L2 table maps. QEMU places the clusters, so that no event says
    where they are.
    """

    entries: int = 1
    """Entries of a snapshot's BAT that make one block."""
    have_sectors: bool = True
    """Whether the events give the sector of a block."""
    of_load: bool = True
    """Whether the blocks are those of the write load."""

    def blocks_in(self, meta: Meta) -> dict[int, int]:
        """Block -> sector, of each block that a snapshot shows."""
        return {int(key) // self.entries: sector for key, sector in meta["bat"].items()}


@dataclass(frozen=True)
class Allocations:
    """Each block with the first event that reports it, and pairs of events that report the same."""

    by_block: dict[int, Event]
    repeated: tuple[tuple[Event, Event], ...]
    units: Units


def allocations_in(events: Events, units: Units) -> Allocations:
    by_block: dict[int, Event] = {}
    repeated = []
    for event in events.named("allocated"):
        block = event.integer("block")
        assert block is not None
        if block in by_block:
            repeated.append((by_block[block], event))
        by_block.setdefault(block, event)
    return Allocations(by_block, tuple(repeated), units)


def units_of(case: Case | None, snapshots: tuple[Snapshot, ...]) -> Units:
    if case is None or image_format(case.image) != "qcow2":
        return Units()
    metas: list[Meta] = [snapshot.meta for snapshot in snapshots]
    sizes = (meta["header"].get("block_bytes") for meta in metas if meta["header"])
    cluster = next((size for size in sizes if isinstance(size, int) and size > 0), 1 << 16)
    entries = max(cluster // 8, 1)
    return Units(entries, have_sectors=False, of_load=entries * cluster == case.block_bytes)
