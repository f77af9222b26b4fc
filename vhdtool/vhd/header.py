"""The dynamic disk header, and the eight parent locators inside it."""

import struct
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from vhdtool.errors import CorruptImage, damaged
from vhdtool.vhd.units import (
    DEFAULT_BLOCK,
    NO_OFFSET,
    SECTOR,
    checksum,
    is_power_of_two,
    pad,
)

COOKIE = b"cxsparse"
SIZE = 1024
VERSION = 0x00010000
LOCATORS = 8
NO_UUID = UUID(int=0)
"""The parent uuid of a disk without a parent, or with a raw one."""
_LAYOUT = struct.Struct(">8sQQIIII16sII512s192s256s")
_LOCATOR = struct.Struct(">4sIIIQ")


@dataclass(frozen=True, slots=True)
class Locator:
    """Where a path to the parent is stored: `length` bytes at byte `offset` of the file."""

    code: bytes = bytes(4)
    space: int = 0
    length: int = 0
    reserved: int = 0
    offset: int = 0

    @property
    def used(self) -> bool:
        return self.code != bytes(4)

    @property
    def capacity(self) -> int | None:
        """Bytes reserved in the file, or None where the field is invalid.

        The spec counts sectors, Microsoft's own writers and blktap count bytes.
        """
        if self.space < SECTOR:
            return self.space * SECTOR
        return self.space if self.space % SECTOR == 0 else None

    @classmethod
    def unpack(cls, raw: bytes) -> "Locator":
        return cls(*_LOCATOR.unpack(raw))

    def pack(self) -> bytes:
        return _LOCATOR.pack(self.code, self.space, self.length, self.reserved, self.offset)

    def as_dict(self) -> dict[str, Any]:
        return {
            "code": self.code.rstrip(b"\0").decode("latin-1"),
            "space": self.space,
            "length": self.length,
            "offset": self.offset,
        }


_NO_LOCATORS = (Locator(),) * LOCATORS


@dataclass(frozen=True, slots=True)
class Header:
    """A header as read or as it shall be written. Offsets and `block_bytes` are in bytes.

    `checksum` is what was read; `pack` always writes the right one. `parent_name` is the raw
    512-byte UTF-16BE field.
    """

    max_entries: int
    block_bytes: int = DEFAULT_BLOCK
    bat_offset: int = 3 * SECTOR
    parent_uuid: UUID = NO_UUID
    parent_timestamp: int = 0
    parent_name: bytes = bytes(512)
    locators: tuple[Locator, ...] = _NO_LOCATORS
    cookie: bytes = COOKIE
    next_offset: int = NO_OFFSET
    version: int = VERSION
    checksum: int = 0
    reserved1: int = 0
    reserved2: bytes = bytes(256)

    @classmethod
    def unpack(cls, raw: bytes) -> "Header":
        """Reads 1024 bytes and checks nothing. Raises CorruptImage when there are fewer."""
        if len(raw) < SIZE:
            raise CorruptImage(f"a header has 1024 bytes, here are {len(raw)}")
        f = _LAYOUT.unpack(bytes(raw[:SIZE]))
        table = f[11]
        size = _LOCATOR.size
        return cls(
            cookie=f[0],
            next_offset=f[1],
            bat_offset=f[2],
            version=f[3],
            max_entries=f[4],
            block_bytes=f[5],
            checksum=f[6],
            parent_uuid=UUID(bytes=f[7]),
            parent_timestamp=f[8],
            reserved1=f[9],
            parent_name=f[10],
            locators=tuple(
                Locator.unpack(table[i * size : (i + 1) * size]) for i in range(LOCATORS)
            ),
            reserved2=f[12],
        )

    def pack(self) -> bytes:
        """The 1024 bytes, with the right checksum."""
        return self._raw(checksum(self._raw(0)))

    def _raw(self, check: int) -> bytes:
        return _LAYOUT.pack(
            self.cookie,
            self.next_offset,
            self.bat_offset,
            self.version,
            self.max_entries,
            self.block_bytes,
            check,
            self.parent_uuid.bytes,
            self.parent_timestamp,
            self.reserved1,
            self.parent_name,
            b"".join(locator.pack() for locator in self.locators),
            self.reserved2,
        )

    @property
    def checksum_valid(self) -> bool:
        return checksum(self._raw(0)) == self.checksum

    @property
    def has_cookie(self) -> bool:
        return self.cookie == COOKIE

    @property
    def valid(self) -> bool:
        """Cookie and checksum are right, so that the fields can be believed."""
        return self.has_cookie and self.checksum_valid

    def validate(self, name: str) -> None:
        """Raises CorruptImage unless the header can be used."""
        if not self.has_cookie:
            raise damaged(name, f"no dynamic disk header (cookie {self.cookie!r})")
        if not self.checksum_valid:
            raise damaged(name, "the checksum of the dynamic disk header is wrong")
        if self.version >> 16 != VERSION >> 16:
            raise damaged(name, f"unknown header version 0x{self.version:08x}")
        if not self.block_size_valid:
            raise damaged(
                name, f"block size {self.block_bytes} is not a power of two of at least a sector"
            )

    @property
    def block_size_valid(self) -> bool:
        return self.block_bytes >= SECTOR and is_power_of_two(self.block_bytes)

    @property
    def bat_bytes(self) -> int:
        """Bytes of the BAT in the file, padded to a sector."""
        return pad(4 * self.max_entries)

    @property
    def bat_end(self) -> int:
        """Byte behind the BAT; where blktap keeps its batmap header."""
        return self.bat_offset + self.bat_bytes

    @property
    def parent_names(self) -> list[str]:
        """What the name may be, the likelier first; blktap writes the base name, Windows the path.

        The specification wants big-endian UTF-16. Some writers (blktap 0.1 among them) used their
        machine's order instead, which the zero bytes of ASCII characters give away.
        """
        raw = self.parent_name
        orders = ["utf-16-be", "utf-16-le"]
        if raw[1::2].count(0) > raw[0::2].count(0):
            orders.reverse()
        names = [raw.decode(order, "replace").split("\0", 1)[0] for order in orders]
        if names[0].isascii():
            # Then the other order gives characters that nobody wrote.
            del names[1:]
        return [name.removeprefix("\ufeff") for name in names if name]

    @property
    def parent_name_text(self) -> str:
        """The likeliest name; empty where there is none."""
        return next(iter(self.parent_names), "")

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON types; unused locators are left out."""
        return {
            "cookie": self.cookie.rstrip(b"\0").decode("latin-1"),
            "next_offset": self.next_offset,
            "bat_offset": self.bat_offset,
            "version": self.version,
            "max_entries": self.max_entries,
            "block_bytes": self.block_bytes,
            "checksum": self.checksum,
            "parent_uuid": str(self.parent_uuid),
            "parent_timestamp": self.parent_timestamp,
            "parent_name": self.parent_name_text,
            "locators": [locator.as_dict() for locator in self.locators if locator.used],
        }
