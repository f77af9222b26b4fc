"""How an open image is written: by the rules of docs/strategies.md, or by another policy."""

from typing import Protocol

from vhdtool.errors import SplitBrain, UncleanImage
from vhdtool.image.check.admission import require_servable
from vhdtool.image.check.regions import first_free_sector
from vhdtool.image.disk.allocator import Allocator
from vhdtool.image.disk.base import Hooks
from vhdtool.image.metadata.read import BlockTables
from vhdtool.storage import Storage


class WritePolicy(Protocol):
    """What a dynamic disk leaves to its policy. The lock of the block map is held by callers."""

    pads_short: bool
    """A block that the file's end cuts off reads as zeros there, and is no error."""
    trims: bool
    """A trim frees space."""

    def hooks(self, hooks: Hooks) -> Hooks:
        """The hooks that the disk calls, from those of its owner."""

    def data_end(self, storage: Storage, tables: BlockTables) -> int:
        """The sector behind which new blocks go."""

    def begin(self, allocator: Allocator, tables: BlockTables, unclean: bool) -> bool:
        """Accept an image or raise; return whether it must be finished even if not written."""

    def allocate(self, allocator: Allocator, block: int, first: int, data: memoryview) -> bool:
        """Allocate a block for `data` from sector `first` on; True: it has written the data too."""

    def finish(self, allocator: Allocator) -> None:
        """End the file with its footer."""


class Guarded:
    """Asks before each metadata write, and compares what is on the disk with memory.

    So a host that has lost its lease, or that shares the image with another writer, stops.
    """

    pads_short = False
    trims = True

    def hooks(self, hooks: Hooks) -> Hooks:
        return hooks

    def data_end(self, storage: Storage, tables: BlockTables) -> int:
        return first_free_sector(storage, tables.ends, tables.layout, tables.bat, tables.end)

    def begin(self, allocator: Allocator, tables: BlockTables, unclean: bool) -> bool:
        """Raise CorruptImage, or UncleanImage where another writer may have the image."""
        storage = allocator.storage
        require_servable(storage, tables)
        if tables.closed(allocator.end):
            # A kill between the batmap and its checksum leaves the footer of the close before.
            return not tables.batmap_believed and storage.writable
        if not unclean:
            raise UncleanImage(
                f"{storage.name}: no footer at the end: a writer has it open, or has crashed; "
                "see `vhdtool check --unclean`, or repair it with `vhdtool repair`"
            )
        # A crashed image must be finished, or the next opener would refuse it.
        return True

    def allocate(self, allocator: Allocator, block: int, first: int, data: memoryview) -> bool:
        allocator.allocate(block)
        return False

    def finish(self, allocator: Allocator) -> None:
        """Rule 3: cuts the end of the file only after it has read the BAT again."""
        storage, writer, blocks = allocator.storage, allocator.writer, allocator.blocks
        allocator.settle()
        writer.hooks.may_write_metadata()
        storage.flush()
        if not blocks.same_bat(writer.read_bat()):
            raise SplitBrain(
                f"{storage.name}: at close the BAT on disk differs from memory: another host "
                "has written this image; it is left as it is"
            )
        allocator.require_same_size()
        writer.hooks.reached("close-begun")
        try:
            writer.write_batmap(blocks)
            writer.hooks.reached("batmap-written")
            storage.flush()
            writer.write_footer(allocator.footer_offset())
        finally:
            allocator.forget()
