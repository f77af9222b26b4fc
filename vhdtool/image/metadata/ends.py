"""Both ends of a VHD file: the footer at its end and the copy at its start."""

from dataclasses import dataclass, replace

from vhdtool.errors import NotAVhd
from vhdtool.storage import Storage
from vhdtool.vhd.footer import FIXED, SHORT, Footer
from vhdtool.vhd.header import COOKIE as HEADER_COOKIE
from vhdtool.vhd.header import SIZE as HEADER_SIZE
from vhdtool.vhd.units import KILLED, SECTOR

HEADER_OFFSET = SECTOR
"""Byte offset of the header in the images of every known creator."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The footer at the end of a file and the copy at its start, unchecked.

    A footer is None where there is no cookie; it may be invalid. `footer_offset` is the byte where
    the footer at the end begins (the last 512 bytes when there is none).
    """

    file_size: int
    footer: Footer | None
    copy: Footer | None
    footer_offset: int
    killed: bool
    header_seen: bool

    @property
    def best(self) -> Footer | None:
        """The valid footer at the end, else the valid copy, else None."""
        end, copy = self.footer, self.copy
        if end is None or not end.valid:
            return copy if copy is not None and copy.valid else None
        if end.is_early_tapdisk and copy is not None and copy.valid and copy.hidden != end.hidden:
            # blktap 0.1 sets the hidden flag in the copy only.
            return Footer.unpack(replace(end, hidden=copy.hidden).pack())
        return end

    @property
    def agreed(self) -> Footer | None:
        """The footer of a dynamic image whose two footers are equal and have a stale checksum.

        Another tool changed a field in both and did not update the checksum. The returned footer
        has the right checksum.
        """
        end, copy = self.footer, self.copy
        if end is None or copy is None or end.valid or end.poisoned or end.disk_type == FIXED:
            return None
        same = end.pack() == copy.pack() and end.checksum == copy.checksum
        return Footer.unpack(end.pack()) if same else None


def read_ends(storage: Storage) -> Ends:
    """Read both ends of a file. Raises NotAVhd when neither shows a VHD."""
    size = storage.size()
    if size < SHORT:
        raise NotAVhd(f"{storage.name}: {size} bytes are too few for a VHD")
    start = storage.pread(0, HEADER_OFFSET + HEADER_SIZE)
    tail_offset = max(0, size - SECTOR)
    tail = storage.pread(tail_offset, SECTOR)
    end = _footer(tail)
    end_offset = tail_offset
    if end is None and size % SECTOR == SHORT:
        end = _footer(tail[-SHORT:])
        end_offset = size - SHORT if end is not None else tail_offset
    copy = _footer(start) if end_offset > 0 else None
    # A fixed disk starts with guest data, and a guest may store a VHD there.
    if end is not None and end.valid and end.disk_type == FIXED:
        copy = None
    if copy is not None and copy.valid and copy.disk_type == FIXED:
        copy = None
    header_seen = start[HEADER_OFFSET : HEADER_OFFSET + 8] == HEADER_COOKIE
    if end is None and copy is None and not header_seen:
        # Imported late: only a refusal needs it, and every server start passes here.
        from vhdtool.image.metadata.signatures import no_vhd

        raise NotAVhd(no_vhd(storage))
    return Ends(size, end, copy, end_offset, tail == KILLED, header_seen)


def _footer(raw: bytes) -> Footer | None:
    if len(raw) < SHORT:
        return None
    footer = Footer.unpack(raw)
    return footer if footer.has_cookie else None
