"""A LUN: a block device that needs no kernel module."""

import errno
import struct

from vhdtool.errors import UnsupportedImage
from vhdtool.storage.base import Storage, StorageError
from vhdtool.storage.scsi import Lun, ScsiError, Session

BLOCK = 512
_MOST = 256 << 10
"""Bytes of one command."""
_MOST_ZEROS = 16 << 20
_LONG = struct.Struct(">BBQIBB")
"""A 16-byte command: code, flags, block, count, group, control."""
_READ, _WRITE, _SYNC, _SAME, _CAPACITY = 0x88, 0x8A, 0x91, 0x93, 0x9E


class IscsiStorage(Storage):
    """The bytes of a LUN with sectors of 512 bytes. Writes cover whole sectors.

    Raises StorageError, with EBUSY where another initiator has the LUN reserved, and
    UnsupportedImage for sectors of another size.
    """

    is_block_device = True
    direct = True

    def __init__(self, lun: Lun) -> None:
        self.name = str(lun)
        self._session: Session | None = Session.of(lun)
        self._write_same = True
        """Whether the target supports WRITE SAME."""
        try:
            raw = self._command("find its size", _CAPACITY, 0, 32, receive=32, flags=0x10)
            last, block = struct.unpack_from(">QI", raw)
            if block != BLOCK:
                raise UnsupportedImage(f"{self.name}: has blocks of {block} bytes, not {BLOCK}")
        except BaseException:
            self.close()
            raise
        self._size: int = (last + 1) * BLOCK

    def _command(
        self,
        doing: str,
        code: int,
        at: int,
        count: int,
        receive: int = 0,
        send: bytes | bytearray | memoryview | None = None,
        flags: int = 0,
    ) -> bytes:
        if self._session is None:
            raise StorageError(self.name, doing, errno.EBADF)
        cdb = _LONG.pack(code, flags, at, count, 0, 0)
        return self._session.command(doing, cdb, receive, send, writes=send is not None)

    def pread(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        if offset >= end:
            return b""
        first, parts = offset - offset % BLOCK, []
        for at in range(first, end, _MOST):
            count = -(-min(_MOST, end - at) // BLOCK)
            doing = f"read {length} bytes at {offset}"
            parts.append(self._command(doing, _READ, at // BLOCK, count, receive=count * BLOCK))
        return b"".join(parts)[offset - first : end - first]

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        if offset % BLOCK or len(view) % BLOCK:
            raise ValueError(f"{self.name}: a write of {len(view)} bytes at {offset}")
        doing = f"write {len(view)} bytes at {offset}"
        if offset + len(view) > self._size:
            raise StorageError(self.name, doing, errno.ENOSPC)
        for at in range(0, len(view), _MOST):
            part = view[at : at + _MOST]
            self._command(doing, _WRITE, (offset + at) // BLOCK, len(part) // BLOCK, send=part)

    def zero(self, offset: int, length: int) -> None:
        if offset + length > self._size or offset % BLOCK or length % BLOCK:
            raise StorageError(self.name, f"zero {length} bytes at {offset}", errno.EINVAL)
        while length > 0 and self._write_same:
            part = min(length, _MOST_ZEROS)
            doing = f"zero {part} bytes at {offset}"
            try:
                self._command(doing, _SAME, offset // BLOCK, part // BLOCK, send=bytes(BLOCK))
            except ScsiError as error:
                if error.conflict or (self._session is not None and self._session.lost):
                    raise
                self._write_same = False
                break
            offset += part
            length -= part
        while length > 0:
            part = min(length, _MOST)
            self.pwrite(offset, bytes(part))
            offset += part
            length -= part

    def truncate(self, size: int) -> None:
        """A LUN keeps its length."""

    def flush(self) -> None:
        # From block 0 to the end. It has no data, but a reservation refuses it like a write.
        self._command("flush it", _SYNC, 0, 0)

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
