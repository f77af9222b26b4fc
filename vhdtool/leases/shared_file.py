"""A small file on the shared storage that hosts change in turn: fresh reads, locks on its bytes."""

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vhdtool.errors import ActivationRefused
from vhdtool.storage import StorageError
from vhdtool.storage.sparse import preallocate

SECTOR = 512
MUTEX = 1 << 40
"""The byte that is locked while the file changes."""
MUTEX_PATIENCE = 5.0
"""Seconds. The mutex is held for microseconds, so a longer wait means a stopped process."""
FLOCK = "hhqqi4x"
"""struct flock of fcntl(2)."""


class SharedFile:
    """The file, read and written in units. All methods are thread-safe.

    They raise StorageError when the storage fails.
    """

    def __init__(self, path: Path, what: str, unit: int = SECTOR) -> None:
        """`what` the file is, for messages; `unit`: bytes, a multiple of SECTOR."""
        self.path = path
        self._what, self._unit = what, unit
        self._made = False
        """Whether the file was absent when we opened it."""
        # One aligned unit for O_DIRECT, guarded by the lock.
        self._buffer = mmap.mmap(-1, max(unit, 4096))
        self._view = memoryview(self._buffer)[:unit]
        self._lock = threading.Lock()
        self._fd = -1
        """Opened when needed, so that a refused activation leaves no empty file."""
        self._file: os.stat_result | None = None
        self._reserved = 0
        """Bytes that the file system has allocated for this file."""
        if not path.parent.is_dir():
            raise StorageError(str(path), f"open the {what}", errno.ENOENT)

    def _open_once(self, create: bool) -> bool:
        """Opens the file unless it is open; False where there is none and `create` is not set."""
        with self._lock:
            if self._fd < 0:
                if not create and not os.path.lexists(self.path):
                    return False
                self._fd = self._open()
                self._file = os.fstat(self._fd)
        return True

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._made = not os.path.lexists(self.path)
        for direct in (os.O_DIRECT, 0):
            # NFS may serve a buffered read from its cache; O_DIRECT asks the server.
            try:
                fd = os.open(self.path, flags | direct, 0o600)
            except OSError as error:
                if direct and error.errno == errno.EINVAL:
                    continue
                raise self._failure("open", error) from None
            return fd
        raise AssertionError("a buffered open cannot fail with EINVAL")

    def _failure(self, doing: str, error: OSError) -> StorageError:
        return StorageError(str(self.path), f"{doing} the {self._what}", error.errno or errno.EIO)

    def is_current(self) -> bool:
        """Returns whether the file at our path is still the one that we have open."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._failure("stat", error) from None
        ours = self._file
        return ours is not None and (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)

    # reading and writing

    def raw(self, offset: int = 0) -> bytes:
        """Returns the unit at `offset`; shorter in a new file, empty without a file."""
        if not self._open_once(create=False):
            return b""
        with self._lock:
            try:
                got = self._transfer(os.preadv, offset)
            except OSError as error:
                raise self._failure("read", error) from None
            return bytes(self._view[:got])

    def write_raw(self, offset: int, data: bytes) -> None:
        """Writes a whole unit."""
        with self._lock:
            self._view[:] = data
            try:
                written = self._transfer(os.pwritev, offset)
            except OSError as error:
                raise self._failure("write", error) from None
        if written != self._unit:
            raise StorageError(str(self.path), f"write the {self._what}", errno.ENOSPC)

    def flush(self) -> None:
        """Makes what was written durable."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failure("flush", error) from None

    def _transfer(self, move: Callable[[int, list[memoryview], int], int], offset: int) -> int:
        """Turns O_DIRECT off where it takes no single unit, which an empty file does not show."""
        try:
            return move(self._fd, [self._view], offset)
        except OSError as error:
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return move(self._fd, [self._view], offset)

    def reserve_bytes(self, end: int) -> None:
        """Allocates the file up to byte `end`, a multiple of the unit.

        Raises StorageError, with ENOSPC when there is no space now.
        """
        if end <= self._reserved:
            return
        try:
            if not preallocate(self._fd, end):
                # Blanks instead of zeros: no file system turns them into a hole again.
                size = os.fstat(self._fd).st_size
                for number in range(-(-size // self._unit), end // self._unit):
                    self._write_blank(number)
        except OSError as error:
            raise self._failure("reserve space in", error) from None
        self._reserved = end

    def _write_blank(self, number: int) -> None:
        with self._lock:
            self._view[:] = b" " * (self._unit - 1) + b"\n"
            if self._transfer(os.pwritev, number * self._unit) != self._unit:
                raise OSError(errno.ENOSPC, "short write")

    def remove_empty(self) -> None:
        """Removes an empty file. Call it with the mutex held, and no lock of another process.

        A process that waits for the mutex finds the file removed, and makes a new one.
        """
        with contextlib.suppress(OSError, StorageError):
            if os.fstat(self._fd).st_size == 0 and self.is_current():
                self.path.unlink()

    # locks

    @contextlib.contextmanager
    def mutex(self) -> Iterator[None]:
        """Excludes every other process while the file is read and changed.

        Raises ActivationRefused when another process does not release it.
        """
        self._open_once(create=True)
        deadline = time.monotonic() + MUTEX_PATIENCE
        while not self._lock_current(MUTEX):
            if time.monotonic() > deadline:
                raise ActivationRefused(
                    f"{self.path}: another process has held the lock of this {self._what} for "
                    f"{MUTEX_PATIENCE:.0f} s; find it with `lslocks`, it may be stopped"
                )
            time.sleep(0.001)
        try:
            yield
        finally:
            self.unlock(MUTEX)

    def _lock_current(self, byte: int) -> bool:
        """Locks a byte of the file that is at the path now, which may have been replaced."""
        if not self.try_lock(byte):
            return False
        if self.is_current():
            return True
        self.unlock(byte)
        with self._lock:
            old, self._fd = self._fd, self._open()
            self._file = os.fstat(self._fd)
            self._reserved = 0
        os.close(old)
        return False

    def lost(self, byte: int) -> bool:
        """Returns whether another owner has locked our byte; False where that cannot be known."""
        query = struct.pack(FLOCK, fcntl.F_WRLCK, 0, byte, 1, 0)
        try:
            found = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, query)
        except OSError:
            return False
        return bool(struct.unpack(FLOCK, found)[0] != fcntl.F_UNLCK)

    def try_lock(self, byte: int) -> bool:
        """Locks a byte; False when another process has it."""
        self._open_once(create=True)
        try:
            self._ofd(fcntl.F_WRLCK, byte)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise self._failure("lock", error) from None
        return True

    def unlock(self, byte: int) -> None:
        """Unlocks a byte, locked or not."""
        with contextlib.suppress(OSError):
            self._ofd(fcntl.F_UNLCK, byte)

    def _ofd(self, kind: int, byte: int, fd: int | None = None) -> None:
        lock = struct.pack(FLOCK, kind, 0, byte, 1, 0)
        fcntl.fcntl(self._fd if fd is None else fd, fcntl.F_OFD_SETLK, lock)

    def close(self) -> None:
        """Frees what the object holds."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
