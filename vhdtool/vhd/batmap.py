"""blktap's batmap: one bit a block, set when every sector of the block is present."""

import struct
from dataclasses import dataclass
from typing import Any

from vhdtool.errors import CorruptImage
from vhdtool.vhd.footer import Footer
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import DEFAULT_BLOCK, SECTOR, checksum, pad

COOKIE = b"tdbatmap"
VERSION = 0x00010002
SIGNED_VERSION = 0x00010001
"""In this version the checksum summed signed bytes."""
_LAYOUT = struct.Struct(">8sQIIIBB32s32s418s")


@dataclass(frozen=True, slots=True)
class BatmapHeader:
    """One sector directly behind the BAT. `offset` in bytes, `sectors` in sectors."""

    offset: int
    sectors: int
    version: int = VERSION
    checksum: int = 0
    marker: int = 0
    key_set: int = 0
    key_nonce: bytes = bytes(32)
    key_hash: bytes = bytes(32)
    cookie: bytes = COOKIE
    reserved: bytes = bytes(418)

    @classmethod
    def unpack(cls, raw: bytes) -> "BatmapHeader":
        """Reads 512 bytes and checks nothing. Raises CorruptImage when there are fewer."""
        if len(raw) < SECTOR:
            raise CorruptImage(f"a batmap header has 512 bytes, here are {len(raw)}")
        f = _LAYOUT.unpack(bytes(raw[:SECTOR]))
        return cls(
            cookie=f[0],
            offset=f[1],
            sectors=f[2],
            version=f[3],
            checksum=f[4],
            marker=f[5],
            key_set=f[6],
            key_nonce=f[7],
            key_hash=f[8],
            reserved=f[9],
        )

    def pack(self) -> bytes:
        """The 512 bytes; `checksum` covers the map, so it is written as it stands."""
        return _LAYOUT.pack(
            self.cookie,
            self.offset,
            self.sectors,
            self.version,
            self.checksum,
            self.marker,
            self.key_set,
            self.key_nonce,
            self.key_hash,
            self.reserved,
        )

    @property
    def has_cookie(self) -> bool:
        return self.cookie == COOKIE

    def as_dict(self) -> dict[str, Any]:
        return {
            "offset": self.offset,
            "sectors": self.sectors,
            "version": self.version,
            "checksum": self.checksum,
            "marker": self.marker,
            "encrypted": bool(self.key_set),
        }


def batmap_expected(footer: Footer) -> bool:
    """Whether the creator and its version promise a batmap (1.1: only if the cookie is there)."""
    return footer.is_tapdisk and footer.creator_version >= 0x00010002


def batmap_possible(footer: Footer) -> bool:
    """Whether a batmap may be there at all."""
    return footer.is_tapdisk and footer.creator_version > 0x00000001


def batmap_bytes(max_entries: int) -> int:
    """Bytes of a map for so many blocks, padded to a sector and never zero."""
    return max(SECTOR, pad(-(-max_entries // 8)))


def batmap_header_for(header: Header) -> BatmapHeader:
    """The header of a new batmap: behind the BAT, the map right behind its header."""
    return BatmapHeader(
        offset=header.bat_end + SECTOR,
        sectors=batmap_bytes(header.max_entries) // SECTOR,
    )


def summed_bytes(current_size: int) -> int:
    """How many bytes of the map the checksum covers.

    blktap counts 2-MiB blocks of the size, eight a byte and rounded down, then pads to a sector.
    """
    return max(SECTOR, pad(current_size // (8 * DEFAULT_BLOCK)))


def batmap_checksum(bits: bytes, current_size: int, version: int = VERSION) -> int:
    """The checksum over a map for a disk of `current_size` bytes."""
    data = bits[: summed_bytes(current_size)]
    if version == SIGNED_VERSION:
        negative = sum(1 for byte in data if byte > 127)
        return (checksum(data) + 256 * negative) & 0xFFFFFFFF
    return checksum(data)
