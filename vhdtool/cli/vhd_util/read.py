"""`vhd-util read`: headers, offsets, bitmaps and data of an image."""

import errno
import sys
from array import array

from vhdtool.cli.vhd_util.conventions import (
    CommandFailed,
    Options,
    SilentExit,
    errno_of,
    explain,
    parse_number,
    require,
)
from vhdtool.cli.vhd_util.metadata_text import Number, decimal, dump, hexadecimal, print_headers
from vhdtool.errors import VhdtoolError
from vhdtool.image.chain.export import stream
from vhdtool.image.chain.layers import Layer
from vhdtool.image.chain.open import open_chain
from vhdtool.image.check.admission import readable
from vhdtool.image.metadata.read import Metadata, read_batmap, read_metadata
from vhdtool.ranges import merge
from vhdtool.storage import FileStorage
from vhdtool.vhd.bits import set_bits, test_bit
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.units import SECTOR, UNUSED


def read(options: Options) -> int:
    require(options, "n")
    name = options["n"]
    show = hexadecimal if "x" in options else decimal
    try:
        storage = FileStorage(name)
        meta = read_metadata(storage)
    except VhdtoolError as error:
        explain(error)
        print(f"Failed to open {name}: {-errno_of(error)}")
        dump(name, f"\n{name} appears invalid; dumping headers\n", show)
        return errno_of(error)
    with storage:
        if meta.layout is None:
            print(f"Failed to get bat for {name}: {-errno.EINVAL}")
            return errno.EINVAL
        if "p" in options:
            print_headers(storage, meta, show)
        given = set(options) & set("tbBmieajdrR")
        if given & set("edrR"):
            # The other options are for damaged images; data is shown only if it can be trusted.
            readable(storage)
        if given:
            view = _View(
                name, storage, meta, meta.layout, show, parse_number(options.get("c", "1"))
            )
            for letter in "tbBmieajdrR":
                if letter in given:
                    view.print_option(letter, parse_number(options[letter]))
    return 0


class _View:
    """An open image; checks the sector and block numbers of the command line."""

    def __init__(
        self,
        name: str,
        storage: FileStorage,
        meta: Metadata,
        layout: BlockLayout,
        show: Number,
        count: int,
    ) -> None:
        self.name, self.storage, self.meta, self.layout = name, storage, meta, layout
        self.show, self.count = show, count
        self.bat: array[int] = meta.bat

    def print_option(self, letter: str, first: int) -> None:
        """Print what option `letter` shows. Raises SilentExit (ERANGE), or VhdtoolError."""
        if letter in "bmjd" and first + self.count > len(self.bat):
            print(f"block {self.show(first + self.count)} past end of file", file=sys.stderr)
            raise SilentExit(errno.ERANGE)
        if letter in "tier" and (first + self.count) * SECTOR > self.meta.size:
            output = sys.stderr if letter == "t" else sys.stdout
            print(f"sector {self.show(first + self.count)} past end of file", file=output)
            raise SilentExit(errno.ERANGE)
        if letter == "R" and first + self.count > self.meta.size:
            raise SilentExit(errno.ERANGE)
        {
            "t": self._offsets,
            "b": self._bat_entries,
            "B": self._table,
            "m": self._bitmaps,
            "i": self._bits,
            "e": self._extents,
            "a": self._batmap,
            "j": self._batmap_bits,
            "d": self._blocks,
            "r": self._sectors,
            "R": self._bytes,
        }[letter](first)

    def _offsets(self, first: int) -> None:
        for sector in range(first, first + self.count):
            block, within = divmod(sector, self.layout.sectors)
            entry = self.bat[block]
            offset = "not allocated"
            if entry != UNUSED:
                offset = self.show(self.layout.data_offset(entry) + within * SECTOR)
            print(
                f"logical sector {self.show(sector)}: block number: {self.show(block)}, "
                f"sector offset: {self.show(within)}, file offset: {offset}"
            )

    def _bat_entries(self, first: int) -> None:
        for block in range(first, first + self.count):
            entry = self.bat[block]
            offset = "not allocated" if entry == UNUSED else self.show(entry * SECTOR)
            print(f"block: {self.show(block)}: offset: {offset}")

    def _table(self, first: int) -> None:
        blocks = self.meta.size // self.layout.block_bytes
        bits = bytearray(-(-blocks // 8))
        for block in range(blocks):
            if self.bat[block] != UNUSED:
                set_bits(bits, block, 1)
        _write(bytes(bits))

    def _bitmap(self, block: int) -> bytes:
        length = self.layout.bitmap_sectors * SECTOR
        return self.storage.pread(self.bat[block] * SECTOR, length).ljust(length, b"\0")

    def _bitmaps(self, first: int) -> None:
        for block in range(first, first + self.count):
            if self.bat[block] == UNUSED:
                print(f"block {self.show(block)} not allocated")
            else:
                _write(self._bitmap(block))

    def _bits(self, first: int) -> None:
        bitmap: tuple[int, bytes] = (-1, b"")
        for sector in range(first, first + self.count):
            block, within = divmod(sector, self.layout.sectors)
            if bitmap[0] != block:
                bitmap = (block, b"" if self.bat[block] == UNUSED else self._bitmap(block))
            bit = int(test_bit(bitmap[1], within))
            print(f"block {self.show(block)}: sec: {self.show(within)}: {bit}")

    def _extents(self, first: int) -> None:
        layer = Layer(self.storage, self.meta)
        end = (first + self.count) * SECTOR
        ranges = layer.ranges(first * SECTOR, end)
        present = [(start, start + size) for start, size, offset in ranges if offset is not None]
        for start, stop in merge(present):
            print(self.show(start // SECTOR), self.show((stop - start) // SECTOR))

    def _read_batmap(self) -> bytes:
        header, batmap = self.meta.header, self.meta.batmap
        bits = None
        if header is not None and batmap is not None:
            bits = read_batmap(self.storage, batmap, header)
        if bits is None:
            raise CommandFailed(f"failed to read batmap: {-errno.EINVAL}", errno.EINVAL)
        return bits

    def _batmap(self, first: int) -> None:
        bits = self._read_batmap()
        batmap = self.meta.batmap
        _write(bits.ljust(batmap.sectors * SECTOR if batmap is not None else 0, b"\0"))

    def _batmap_bits(self, first: int) -> None:
        bits = self._read_batmap()
        for block in range(first, first + self.count):
            text = f"batmap for block {self.show(block)}: {int(test_bit(bits, block))}"
            print(text, file=sys.stderr)

    def _blocks(self, first: int) -> None:
        for block in range(first, first + self.count):
            if self.bat[block] == UNUSED:
                print(f"block {self.show(block)} not allocated")
                continue
            size = self.layout.block_bytes
            data = self.storage.pread(self.layout.data_offset(self.bat[block]), size)
            _write(data.ljust(size, b"\0"))

    def _sectors(self, first: int) -> None:
        self._guest(first * SECTOR, self.count * SECTOR)

    def _bytes(self, first: int) -> None:
        self._guest(first, self.count)

    def _guest(self, start: int, length: int) -> None:
        sys.stdout.flush()
        with open_chain(self.name) as reader:
            stream(reader, sys.stdout.buffer, start, start + length)
        sys.stdout.buffer.flush()


def _write(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
