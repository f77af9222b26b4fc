"""A file or block device, with O_DIRECT where asked for and possible."""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import threading

from vhdtool.errors import ImageExists
from vhdtool.storage.base import StorageError
from vhdtool.storage.mixins import Closes
from vhdtool.storage.punch import punch_hole

ALIGN = 512
_SMALL = 1 << 20
_LARGEST = 4 << 20
_SPARE_BUFFERS = 8


class FileStorage(Closes):
    """The bytes of the file or block device at `path`.

    `direct` bypasses the page cache (shared storage needs that: another host's writes must be
    seen). Where the file system cannot do it in units of 512 bytes, access is buffered and
    `direct` turns False. Direct writes must cover whole sectors. Without `follow` a path that is a
    symbolic link is refused.

    `device_flags` are added to the flags of open(2) for a block device.

    Safe to share between threads. Raises StorageError, or ImageExists with `create`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        writable: bool = False,
        direct: bool = False,
        create: bool = False,
        overwrite: bool = False,
        follow: bool = True,
        device_flags: int = 0,
    ) -> None:
        self.path = os.fspath(path)
        self.name = self.path
        self.writable = writable or create
        self._spare: list[mmap.mmap] = []
        self._lost = 0
        """The errno of a flush that failed and left the page cache unlike the disk."""
        self._flushing = threading.Lock()
        flags = os.O_CLOEXEC | (os.O_RDWR if self.writable else os.O_RDONLY)
        if not follow:
            flags |= os.O_NOFOLLOW
        if create:
            flags |= os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL)
        else:
            # Before it is opened, which would wait for the other end of a pipe.
            mode = _mode(self.path)
            self._require_known(mode)
            if stat.S_ISBLK(mode):
                flags |= device_flags
        self._fd, self.direct = self._open(flags, direct)
        mode = os.fstat(self._fd).st_mode
        self.is_block_device = stat.S_ISBLK(mode)
        try:
            self._require_known(mode)
        except BaseException:
            self.close()
            raise

    def _require_known(self, mode: int) -> None:
        if mode and not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
            raise StorageError(self.name, "use it: neither a file nor a block device", errno.EINVAL)

    def _open(self, flags: int, direct: bool) -> tuple[int, bool]:
        try:
            if direct:
                try:
                    return os.open(self.path, flags | os.O_DIRECT, 0o644), True
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    if flags & os.O_CREAT:
                        # The failed attempt may have created the file already.
                        flags &= ~os.O_EXCL
            return os.open(self.path, flags, 0o644), False
        except FileExistsError:
            raise ImageExists(f"{self.name}: exists already; it is left as it is") from None
        except OSError as error:
            raise StorageError(self.name, "open it", error.errno or 0) from None

    def fileno(self) -> int:
        return self._fd

    def pread(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`, fewer past the end."""
        if self.direct:
            return self._direct_read(offset, length)
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data
        except (OSError, OverflowError) as error:
            raise self._failure(error, f"read {length} bytes at {offset}") from None

    def readinto(self, offset: int, view: memoryview) -> int:
        """Fills `view` with the bytes at `offset`; returns how many there were."""
        if self.direct:
            data = self._direct_read(offset, len(view))
            view[: len(data)] = data
            return len(data)
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if count == 0:
                    break
                done += count
        except (OSError, OverflowError) as error:
            raise self._failure(error, f"read {len(view)} bytes at {offset}") from None
        return done

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes all of `data` at `offset`. Raises ValueError for odd sizes when direct."""
        try:
            if self.direct:
                self._direct_write(offset, memoryview(data).cast("B"))
            else:
                self._write_all(offset, memoryview(data).cast("B"))
        except (OSError, OverflowError) as error:
            raise self._failure(error, f"write {len(data)} bytes at {offset}") from None

    def zero(self, offset: int, length: int) -> None:
        """Punches a hole, and extends the file where the range ends behind it."""
        if length <= 0:
            return
        try:
            end = offset + length
            size = self.size()
            if offset < size and not punch_hole(self._fd, offset, min(end, size) - offset):
                self._write_zeros(offset, min(end, size) - offset)
            # A write of the last sector, since a truncate could cut what a thread just appended.
            if end > size and not self.is_block_device:
                tail = min(length, ALIGN)
                self.pwrite(end - tail, bytes(tail))
        except OSError as error:
            raise self._failure(error, f"zero {length} bytes at {offset}") from None

    def discard(self, offset: int, length: int) -> None:
        """Punches a hole where the file system can, and does nothing where it cannot."""
        try:
            length = min(length, self.size() - offset)
            if length > 0:
                punch_hole(self._fd, offset, length)
        except OSError as error:
            raise self._failure(error, f"free {length} bytes at {offset}") from None

    def will_need(self, offset: int, length: int) -> None:
        """Starts reading into the page cache, unless it is bypassed."""
        if not self.direct:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def _write_zeros(self, offset: int, length: int) -> None:
        chunk = memoryview(bytes(min(length, _SMALL)))
        while length > 0:
            part = chunk[:length]
            self.pwrite(offset, part)
            offset += len(part)
            length -= len(part)

    def truncate(self, size: int) -> None:
        """Sets the length; a block device keeps its own."""
        if self.is_block_device:
            return
        try:
            os.ftruncate(self._fd, size)
        except (OSError, OverflowError) as error:
            raise self._failure(error, f"set its length to {size}") from None

    def flush(self) -> None:
        # The kernel tells one of several threads that something is lost, and none of the others.
        with contextlib.nullcontext() if self.direct else self._flushing:
            if self._lost:
                raise StorageError(self.name, "flush it: an earlier flush lost data", self._lost)
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                if not self.direct:
                    # It tells once, and then takes what it could not write for written.
                    self._lost = error.errno or errno.EIO
                raise self._failure(error, "flush it") from None

    def size(self) -> int:
        try:
            if self.is_block_device:
                return os.lseek(self._fd, 0, os.SEEK_END)
            return os.fstat(self._fd).st_size
        except OSError as error:
            raise self._failure(error, "find its size") from None

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        self._spare.clear()
        if fd >= 0:
            os.close(fd)

    # -- direct access: aligned buffers, whole sectors

    def _buffer(self, length: int) -> mmap.mmap:
        if length <= _SMALL:
            try:
                return self._spare.pop()
            except IndexError:
                return mmap.mmap(-1, _SMALL)
        return mmap.mmap(-1, length)

    def _give_back(self, buffer: mmap.mmap) -> None:
        if len(buffer) == _SMALL and len(self._spare) < _SPARE_BUFFERS:
            self._spare.append(buffer)

    def _direct_read(self, offset: int, length: int) -> bytes:
        first = offset - offset % ALIGN
        end = -(-(offset + length) // ALIGN) * ALIGN
        parts = []
        try:
            while first < end:
                part = self._direct_chunk(first, min(end - first, _LARGEST))
                parts.append(part)
                first += len(part)
                if not part or len(part) % ALIGN:
                    break
        except (OSError, OverflowError) as error:
            raise self._failure(error, f"read {length} bytes at {offset}") from None
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        skip = offset % ALIGN
        return data if skip == 0 and len(data) <= length else data[skip : skip + length]

    def _direct_chunk(self, offset: int, length: int) -> bytes:
        buffer = self._buffer(length)
        with memoryview(buffer) as whole, whole[:length] as view:
            try:
                count = os.preadv(self._fd, [view], offset)
            except OSError as error:
                self._fall_back(error)
                count = os.preadv(self._fd, [view], offset)
            data = bytes(view[:count])
        self._give_back(buffer)
        return data

    def _direct_write(self, offset: int, data: memoryview) -> None:
        if offset % ALIGN or len(data) % ALIGN:
            raise ValueError(f"{self.name}: a direct write of {len(data)} bytes at {offset}")
        while data and self.direct:
            part = data[:_LARGEST]
            buffer = self._buffer(len(part))
            with memoryview(buffer) as whole, whole[: len(part)] as view:
                view[:] = part
                try:
                    count = os.pwritev(self._fd, [view], offset)
                except OSError as error:
                    self._fall_back(error)
                    count = 0
            self._give_back(buffer)
            offset += count
            data = data[count:]
            if count % ALIGN:
                # Only a full file system ends a write within a sector.
                raise OSError(errno.ENOSPC, "short write")
        self._write_all(offset, data)

    def _write_all(self, offset: int, data: memoryview) -> None:
        while data:
            count = os.pwrite(self._fd, data, offset)
            offset += count
            data = data[count:]

    def _fall_back(self, error: OSError) -> None:
        """Leaves O_DIRECT when it needs a larger alignment than a sector."""
        if error.errno != errno.EINVAL:
            raise error
        # Another thread may have been here first; if that was not why, the next try tells.
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        self.direct = False

    def _failure(self, error: Exception, doing: str) -> StorageError:
        number = getattr(error, "errno", None) or errno.EFBIG
        return StorageError(self.name, doing, number)


def _mode(path: str) -> int:
    """0 where it cannot be told: opening it says why."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0
