"""The footer: 512 bytes at the end of every VHD, and a copy of it at the start of most."""

import struct
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from vhdtool.errors import CorruptImage, damaged
from vhdtool.vhd.geometry import NO_GEOMETRY, Geometry
from vhdtool.vhd.units import NO_OFFSET, SECTOR, checksum

COOKIE = b"conectix"
POISON = b"v_poison"
"""Stands in the cookie's place while a resize of blktap is under way."""
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
TYPES = {FIXED: "fixed", DYNAMIC: "dynamic", DIFFERENCING: "differencing"}
VERSION = 0x00010000
RESERVED_FEATURE = 2
SHORT = 511
"""Length of the footer in files of the oldest Virtual PC."""

_LAYOUT = struct.Struct(">8sIIQI4sI4sQQHBBII16sBB426s")
_CHECKSUM_AT = 64
_HIDDEN_AT = 85
_FIRST_TAP = 0x00000001
_OLD_TAP_VERSIONS = (_FIRST_TAP, 0x00010001)


@dataclass(frozen=True, slots=True)
class Footer:
    """A footer as read or as it shall be written; `dataclasses.replace` changes a field.

    Sizes and offsets are in bytes, `timestamp` in seconds since 2000. `checksum` is what was
    read; `pack` always writes the right one.
    """

    current_size: int
    disk_type: int = DYNAMIC
    geometry: Geometry = NO_GEOMETRY
    uuid: UUID = field(default_factory=uuid4)
    timestamp: int = 0
    creator: bytes = b"tap\0"
    creator_version: int = 0x00010003
    creator_os: bytes = bytes(4)
    original_size: int = 0
    data_offset: int = NO_OFFSET
    cookie: bytes = COOKIE
    features: int = RESERVED_FEATURE
    version: int = VERSION
    saved: int = 0
    hidden: int = 0
    checksum: int = 0
    reserved: bytes = bytes(426)

    @classmethod
    def unpack(cls, raw: bytes) -> "Footer":
        """Reads 512 bytes (or 511, the oldest form). Checks nothing: see `faults`.

        Raises CorruptImage when there are fewer bytes.
        """
        if len(raw) < SHORT:
            raise CorruptImage(f"a footer has 512 bytes, here are {len(raw)}")
        f = _LAYOUT.unpack(bytes(raw[:SECTOR]).ljust(SECTOR, b"\0"))
        return cls(
            cookie=f[0],
            features=f[1],
            version=f[2],
            data_offset=f[3],
            timestamp=f[4],
            creator=f[5],
            creator_version=f[6],
            creator_os=f[7],
            original_size=f[8],
            current_size=f[9],
            geometry=Geometry(f[10], f[11], f[12]),
            disk_type=f[13],
            checksum=f[14],
            uuid=UUID(bytes=f[15]),
            saved=f[16],
            hidden=f[17],
            reserved=f[18],
        )

    def pack(self) -> bytes:
        """The 512 bytes, with the right checksum."""
        raw = self._raw(0)
        return self._raw(checksum(raw))

    def _raw(self, check: int) -> bytes:
        g = self.geometry
        return _LAYOUT.pack(
            self.cookie,
            self.features,
            self.version,
            self.data_offset,
            self.timestamp,
            self.creator,
            self.creator_version,
            self.creator_os,
            self.original_size,
            self.current_size,
            g.cylinders,
            g.heads,
            g.sectors,
            self.disk_type,
            check,
            self.uuid.bytes,
            self.saved,
            self.hidden,
            self.reserved,
        )

    @property
    def checksum_valid(self) -> bool:
        """Whether the checksum fits; the oldest blktap forgot it when it set `hidden`."""
        raw = self._raw(0)
        if checksum(raw) == self.checksum:
            return True
        if self.hidden and self.is_early_tapdisk:
            return checksum(raw, None) + raw[_HIDDEN_AT] == self.checksum
        return False

    @property
    def has_cookie(self) -> bool:
        """Whether the cookie is that of a footer, intact or not."""
        return self.cookie in (COOKIE, POISON)

    @property
    def poisoned(self) -> bool:
        """A resize by blktap was interrupted; its journal must be played back first."""
        return self.cookie == POISON

    @property
    def valid(self) -> bool:
        """Cookie and checksum are right, so that the fields can be believed."""
        return self.has_cookie and self.checksum_valid

    def validate(self, name: str, which: str) -> None:
        """Raises CorruptImage, naming file and footer, unless the footer can be used."""
        if not self.has_cookie:
            raise damaged(name, f"{which} is not a VHD footer (cookie {self.cookie!r})")
        if not self.checksum_valid:
            raise damaged(name, f"the checksum of {which} is wrong")
        if self.poisoned:
            raise CorruptImage(
                f"{name}: a resize was interrupted; finish or revert it with the tool that began it"
            )
        if self.disk_type not in TYPES:
            raise damaged(name, f"{which} has the unknown disk type {self.disk_type}")
        if self.version >> 16 != VERSION >> 16:
            raise damaged(name, f"{which} has the unknown version 0x{self.version:08x}")

    @property
    def is_tapdisk(self) -> bool:
        return self.creator[:3] == b"tap"

    @property
    def is_early_tapdisk(self) -> bool:
        """blktap 0.1 and 1.1 wrote `hidden` into the footer's copy only, and no new checksum.

        Source: vhd_hidden and vhd_validate_footer in blktap's libvhd.c.
        """
        return self.is_tapdisk and self.creator_version in _OLD_TAP_VERSIONS

    @property
    def bitmaps_reversed(self) -> bool:
        """blktap 0.1 counted a bitmap's bits from the least significant one (old_test_bit)."""
        return self.is_tapdisk and self.creator_version == _FIRST_TAP

    @property
    def type_name(self) -> str:
        return TYPES.get(self.disk_type, f"unknown type {self.disk_type}")

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON types: names in words, sizes in bytes."""
        return {
            "cookie": _text(self.cookie),
            "features": self.features,
            "version": self.version,
            "data_offset": self.data_offset,
            "timestamp": self.timestamp,
            "creator": _text(self.creator),
            "creator_version": self.creator_version,
            "creator_os": _text(self.creator_os),
            "original_size": self.original_size,
            "current_size": self.current_size,
            "geometry": [
                self.geometry.cylinders,
                self.geometry.heads,
                self.geometry.sectors,
            ],
            "type": self.type_name,
            "checksum": self.checksum,
            "uuid": str(self.uuid),
            "saved": self.saved,
            "hidden": self.hidden,
        }


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("latin-1")
