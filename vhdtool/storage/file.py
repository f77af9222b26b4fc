"""A file or block device, with O_DIRECT where it is asked for and possible."""

import contextlib
import errno
import fcntl
import os
import stat
import threading

from vhdtool.errors import ImageExists
from vhdtool.storage.base import Storage, StorageError
from vhdtool.storage.direct import ALIGN, DirectIO
from vhdtool.storage.sparse import punch_hole

_ZEROS = 1 << 20
"""Bytes of zeros that one write stores where no hole can be punched."""


class FileStorage(Storage):
    """The bytes of the file or block device at `path`.

    `direct` bypasses the page cache (on shared storage, so that another host's writes are seen).
    Where the file system cannot do it in units of 512 bytes, access is buffered and `direct` turns
    False. Direct writes must cover whole sectors. Without `follow` a symbolic link is refused.
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
        self._direct_io = DirectIO()
        self._failed_flush = 0
        """The errno of a flush after which page cache and disk differ."""
        self._flushing = threading.Lock()
        flags = os.O_CLOEXEC | (os.O_RDWR if self.writable else os.O_RDONLY)
        if not follow:
            flags |= os.O_NOFOLLOW
        if create:
            flags |= os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL)
        else:
            # Checked before the open, which on a pipe would wait for its other end.
            mode = _mode(self.path)
            self._require_file_or_device(mode)
            if stat.S_ISBLK(mode):
                flags |= device_flags
        self._fd, self.direct = self._open(flags, direct)
        mode = os.fstat(self._fd).st_mode
        self.is_block_device = stat.S_ISBLK(mode)
        try:
            self._require_file_or_device(mode)
        except BaseException:
            self.close()
            raise

    def _require_file_or_device(self, mode: int) -> None:
        if mode and not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise StorageError(self.name, "use it: neither a file nor a block device", number)

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
        try:
            if self.direct:
                try:
                    return self._direct_io.read(self._fd, offset, length)
                except OSError as error:
                    self._leave_direct(error)
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
        if self.direct:
            return super().readinto(offset, view)
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
        """Write all of `data`. Raises ValueError when direct and not in whole sectors."""
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            if self.direct:
                if (offset | size) % ALIGN:
                    raise ValueError(f"{self.name}: a direct write of {size} bytes at {offset}")
                try:
                    return self._direct_io.write(self._fd, offset, view)
                except OSError as error:
                    self._leave_direct(error)
            while view:
                count = os.pwrite(self._fd, view, offset)
                offset += count
                view = view[count:]
        except (OSError, OverflowError) as error:
            raise self._failure(error, f"write {len(data)} bytes at {offset}") from None

    def zero(self, offset: int, length: int) -> None:
        """Punch a hole, and extend the file where the range ends behind it."""
        if length <= 0:
            return
        try:
            end = offset + length
            size = self.size()
            if offset < size and not punch_hole(self._fd, offset, min(end, size) - offset):
                self._write_zeros(offset, min(end, size) - offset)
            # Writes the last sector: a truncate could cut what another thread has just appended.
            if end > size and not self.is_block_device:
                tail = min(length, ALIGN)
                self.pwrite(end - tail, bytes(tail))
        except OSError as error:
            raise self._failure(error, f"zero {length} bytes at {offset}") from None

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole where the file system supports it; elsewhere do nothing."""
        try:
            length = min(length, self.size() - offset)
            if length > 0:
                punch_hole(self._fd, offset, length)
        except OSError as error:
            raise self._failure(error, f"free {length} bytes at {offset}") from None

    def will_need(self, offset: int, length: int) -> None:
        """Start to read the range into the page cache, unless that is bypassed."""
        if not self.direct:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def _write_zeros(self, offset: int, length: int) -> None:
        chunk = memoryview(bytes(min(length, _ZEROS)))
        while length > 0:
            part = chunk[:length]
            self.pwrite(offset, part)
            offset += len(part)
            length -= len(part)

    def truncate(self, size: int) -> None:
        """Set the length; a block device keeps its own."""
        if self.is_block_device:
            return
        try:
            os.ftruncate(self._fd, size)
        except (OSError, OverflowError) as error:
            raise self._failure(error, f"set its length to {size}") from None

    def flush(self) -> None:
        # The kernel reports a lost write to one of several threads, and only once.
        with contextlib.nullcontext() if self.direct else self._flushing:
            if number := self._failed_flush:
                raise StorageError(self.name, "flush it: an earlier flush lost data", number)
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                if not self.direct:
                    # From now on the kernel treats the lost pages as written.
                    self._failed_flush = error.errno or errno.EIO
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
        self._direct_io.clear()
        if fd >= 0:
            os.close(fd)

    def _leave_direct(self, error: OSError) -> None:
        """Switch to buffered access where O_DIRECT needs a larger alignment than a sector."""
        if error.errno != errno.EINVAL:
            raise error
        # Another thread may have switched already; any other cause fails the buffered attempt.
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        self.direct = False

    def _failure(self, error: OSError | OverflowError, doing: str) -> StorageError:
        if isinstance(error, StorageError):
            return error
        number = error.errno if isinstance(error, OSError) else errno.EFBIG
        return StorageError(self.name, doing, number or errno.EIO)


def _mode(path: str) -> int:
    """The file's mode, or 0 where stat fails: the open raises the cause."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0
