"""Packed images: the data of a sparse file in compressed parts, for tools that do not know holes.

A packed image is `image.vhd.packed` in place of `image.vhd`. It has a header, the parts one after
the other, each a zlib stream, and an index: offset, length and packed length of each part. The
parts are the ranges of the file that are not holes, in pieces of at most `PART` bytes, so a packed
image reads as the file did, its holes too.
"""

import bisect
import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from vhdtool.oracle.evidence.files import LARGEST_FILE, LARGEST_IMAGE, open_regular
from vhdtool.oracle.evidence.json_fields import TornRecord
from vhdtool.oracle.evidence.record import PACKED
from vhdtool.oracle.readers.image_view import Extent, FileView, View, merge

PART = 1 << 16
_MAGIC = b"VHDPACK1"
_FIELDS = struct.Struct(">8sQQQQ")
"""Magic, size of the image, offset of the index, its packed length, its length."""
_CRC = struct.Struct(">I")
"""CRC-32 of the fields and the index."""
_DATA = _FIELDS.size + _CRC.size
_ENTRY = struct.Struct(">QII")


class PackedView(View):
    """A packed image, opened for reading. A context manager.

    Raises TornRecord if it is damaged: the constructor reads all of it, so that a view that
    exists can be read.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._fd = open_regular(path, LARGEST_IMAGE)
        try:
            self._size, entries = _index(self._fd)
            self._parts: list[Extent] = []
            self._packed: list[Extent] = []
            position = _DATA
            for offset, length, packed in entries:
                self._parts.append((offset, offset + length))
                self._packed.append((position, position + packed))
                position += packed
            self._unpack = lru_cache(maxsize=64)(self._read_part)
            for number in range(len(self._parts)):
                self._read_part(number)
        except BaseException:
            os.close(self._fd)
            raise

    def pread(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self._size - offset))
        found = bytearray(length)
        first = max(bisect.bisect_right(self._parts, (offset, LARGEST_IMAGE)) - 1, 0)
        for number in range(first, len(self._parts)):
            start, end = self._parts[number]
            if start >= offset + length:
                break
            if end <= offset:
                continue
            low, high = max(offset, start), min(offset + length, end)
            found[low - offset : high - offset] = self._unpack(number)[low - start : high - start]
        return bytes(found)

    def size(self) -> int:
        return self._size

    def extents(self) -> list[Extent]:
        return merge(self._parts)

    def close(self) -> None:
        os.close(self._fd)

    def _read_part(self, number: int) -> bytes:
        start, end = self._packed[number]
        wanted = self._parts[number][1] - self._parts[number][0]
        return _inflate(os.pread(self._fd, end - start, start), wanted, f"part {number}")


def open_view(path: Path) -> FileView | PackedView:
    """The image of a case, packed or not. Raises TornRecord, OSError."""
    return PackedView(path) if path.name.endswith(PACKED) else FileView(path)


def write_packed(view: FileView, fd: int) -> None:
    """Write a packed image to an empty file. Raises OSError, TornRecord for too many parts."""
    entries = bytearray()
    position = _DATA
    for start, end in _pieces(view):
        data = zlib.compress(view.pread(start, end - start))
        entries += _ENTRY.pack(start, end - start, len(data))
        if len(entries) > LARGEST_FILE:
            raise TornRecord(f"more than {LARGEST_FILE // _ENTRY.size} parts hold data")
        position += write_all(fd, data, position)
    index = zlib.compress(bytes(entries))
    write_all(fd, index, position)
    fields = _FIELDS.pack(_MAGIC, view.size(), position, len(index), len(entries))
    write_all(fd, fields + _CRC.pack(zlib.crc32(entries, zlib.crc32(fields))), 0)


def _pieces(view: View) -> Iterator[Extent]:
    for start, end in view.extents():
        for piece in range(start, end, PART):
            yield piece, min(piece + PART, end)


def write_all(fd: int, data: bytes, offset: int) -> int:
    """Write all of `data`; returns its length."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
    return done


def _index(fd: int) -> tuple[int, list[tuple[int, int, int]]]:
    """(size of the image, its parts): rising, disjoint, inside the image, packed without gaps."""
    header = os.pread(fd, _DATA, 0)
    if len(header) < _DATA or not header.startswith(_MAGIC):
        raise TornRecord("not a packed image")
    _, size, position, packed, length = _FIELDS.unpack_from(header)
    (crc,) = _CRC.unpack_from(header, _FIELDS.size)
    end_of_file = os.fstat(fd).st_size
    if size > LARGEST_IMAGE or length > LARGEST_FILE or packed > LARGEST_FILE:
        raise TornRecord("its header has impossible sizes")
    if position + packed != end_of_file:
        raise TornRecord(f"it has {end_of_file} bytes, its header says {position + packed}")
    index = _inflate(os.pread(fd, packed, position), length, "the index")
    if zlib.crc32(index, zlib.crc32(header[: _FIELDS.size])) != crc or length % _ENTRY.size:
        raise TornRecord("its index is damaged")
    entries = list(_ENTRY.iter_unpack(index))
    ends = itertools.accumulate((part[2] for part in entries), initial=_DATA)
    if list(ends)[-1] != position:
        raise TornRecord("its parts do not fill it")
    last = 0
    for offset, part, _ in entries:
        if offset < last or not 0 < part <= PART or offset + part > size:
            raise TornRecord(f"its part at {offset} is out of order or too long")
        last = offset + part
    return size, entries


def _inflate(data: bytes, length: int, what: str) -> bytes:
    """Raises TornRecord unless the data is one zlib stream of exactly `length` bytes."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, length + 1)
    except zlib.error as error:
        raise TornRecord(f"{what} of the packed image is damaged ({error})") from error
    if len(found) != length or not stream.eof or stream.unused_data:
        raise TornRecord(f"{what} of the packed image is damaged (wrong length)")
    return found
