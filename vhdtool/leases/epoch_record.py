"""The epoch record: a file of 512-byte sectors beside the image, on the shared storage.

Sector 0 has the newest epoch and the holder, if any. Sector n, written once, has the event of epoch
n: an open, an activation or a release. So epochs order the metadata reads and releases of all hosts
without comparing clocks.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vhdtool.errors import ActivationRefused, LeaseLost, VhdtoolError
from vhdtool.storage import StorageError
from vhdtool.storage.sparse import preallocate

SECTOR = 512
MUTEX = 1 << 40
"""The byte that is locked while the record changes."""
ALIVE = (1 << 40) + 1
"""The byte that the holder has locked."""
MUTEX_PATIENCE = 5.0
"""Seconds. The mutex is held for microseconds, so a longer wait means a stopped process."""
_FLOCK = "hhqqi4x"
_RESERVE = 16 << 10
"""Bytes that are allocated at once: 32 epochs."""
_BLANK = b"\0 \n"
Fields = dict[str, object]
"""A JSON object of the record."""


class EpochRecord:
    """The file. All methods are thread-safe.

    They raise StorageError when the storage fails, LeaseLost when the record is damaged.
    """

    def __init__(self, path: Path, temporary: bool = False) -> None:
        """`temporary`: `close` removes a file that was made here and has no event but ours.

        A record that was there before stays, and so does one that names a holder. Its epochs go
        on, so that no later lease has the epoch that an operator once gave to --force.
        """
        self.path = path
        self._temporary = temporary
        self._made = False
        """Whether the file was absent when we opened it."""
        self._written = 0
        """Events that we have written."""
        # One aligned sector for O_DIRECT, guarded by the lock.
        self._buffer = mmap.mmap(-1, 4096)
        self._view = memoryview(self._buffer)[:SECTOR]
        self._lock = threading.Lock()
        self._fd = -1
        """Opened when needed, so that a refused activation leaves no empty record."""
        self._file: os.stat_result | None = None
        self._reserved = 0
        """Bytes that the file system has allocated for this file."""
        if not path.parent.is_dir():
            raise StorageError(str(path), "open the epoch record", errno.ENOENT)

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
        self._made, self._written = not os.path.lexists(self.path), 0
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
        return StorageError(str(self.path), f"{doing} the epoch record", error.errno or errno.EIO)

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

    def raw(self) -> bytes:
        """Returns sector 0 as it is in the file; shorter in a new file, empty without a file."""
        if not self._open_once(create=False):
            return b""
        with self._lock:
            try:
                got = self._transfer(os.preadv, 0)
            except OSError as error:
                raise self._failure("read", error) from None
            return bytes(self._view[:got])

    def read(self) -> tuple[int, Fields | None]:
        """Returns (newest epoch, holder as written or None); (0, None) for a new file."""
        raw = self.raw()
        if self._fd >= 0 and not raw.strip(_BLANK) and os.fstat(self._fd).st_size > _RESERVE:
            raise LeaseLost(
                f"{self.path}: is no epoch record: it begins with nothing, and is too large for a "
                "new one; name another file with --record"
            )
        return self.parse(raw)

    def parse(self, raw: bytes) -> tuple[int, Fields | None]:
        """Parses sector 0: (newest epoch, holder or None)."""
        text = raw.rstrip(_BLANK)
        if not text:
            return 0, None
        try:
            state = json.loads(text)
            epoch, holder = state["epoch"], state["holder"]
            if type(epoch) is not int or epoch < 1 or not (holder is None or type(holder) is dict):
                raise ValueError(text)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise LeaseLost(
                f"{self.path}: is no epoch record, or a damaged one ({text[:40]!r}); if it is "
                "nothing else, stop all users of the image, then remove the file"
            ) from None
        return epoch, holder

    def write(self, epoch: int, holder: Fields | None, entry: Fields) -> None:
        """Writes the sector of `epoch`, then sector 0, which so never names an absent one."""
        self._write_sector(epoch, {"epoch": epoch, **entry, "time": time.time()})
        self._write_sector(0, {"epoch": epoch, "holder": holder})
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failure("flush", error) from None
        self._written += 1

    def append(self, entry: Fields) -> int:
        """Writes an event at a new epoch, with the holder unchanged; returns the epoch."""
        with self.mutex():
            newest, held = self.read()
            self.write(newest + 1, held, entry)
            return newest + 1

    def _write_sector(self, number: int, value: Fields) -> None:
        data = json.dumps(value).encode()
        if len(data) >= SECTOR:
            raise VhdtoolError(f"{self.path}: host name too long for the epoch record")
        with self._lock:
            self._view[:] = data.ljust(SECTOR - 1) + b"\n"
            try:
                written = self._transfer(os.pwritev, number * SECTOR)
            except OSError as error:
                raise self._failure("write", error) from None
        if written != SECTOR:
            raise StorageError(str(self.path), "write the epoch record", errno.ENOSPC)

    def _transfer(self, move: Callable[[int, list[memoryview], int], int], offset: int) -> int:
        """Turns O_DIRECT off where it takes no single sector, which an empty file does not show."""
        try:
            return move(self._fd, [self._view], offset)
        except OSError as error:
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return move(self._fd, [self._view], offset)

    @contextlib.contextmanager
    def mutex(self) -> Iterator[None]:
        """Excludes every other process while the record is read and changed.

        Raises ActivationRefused when another process does not release it.
        """
        self._open_once(create=True)
        deadline = time.monotonic() + MUTEX_PATIENCE
        while not self._lock_current(MUTEX):
            if time.monotonic() > deadline:
                raise ActivationRefused(
                    f"{self.path}: another process has held the record's lock for "
                    f"{MUTEX_PATIENCE:.0f} s; find it with `lslocks`, it may be stopped"
                )
            time.sleep(0.001)
        try:
            yield
        finally:
            self.unlock(MUTEX)

    def _remove_own(self) -> None:
        """Removes a record whose events are all ours. Call it with the mutex held.

        A process that waits for the mutex finds the file removed, and makes a new one. A former
        holder that was stopped finds that too, and has lost the lease.
        """
        newest, holder = self.read()
        if self._made and holder is None and newest == self._written:
            self.path.unlink()

    def remove_empty(self) -> None:
        """Removes an empty record. Call it with the mutex held, and no lock of another process.

        A process that waits for the mutex finds the file removed, and makes a new one.
        """
        with contextlib.suppress(OSError, StorageError):
            if os.fstat(self._fd).st_size == 0 and self.is_current():
                self.path.unlink()

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

    def reserve(self, epoch: int) -> None:
        """Allocates the sectors up to an epoch, so that a full file system cannot stop a release.

        Raises StorageError, with ENOSPC when there is no space now.
        """
        end = (epoch + 1) * SECTOR
        if end <= self._reserved:
            return
        end = -(-end // _RESERVE) * _RESERVE
        try:
            if not preallocate(self._fd, end):
                # Blanks instead of zeros: no file system turns them into a hole again.
                size = os.fstat(self._fd).st_size
                for number in range(-(-size // SECTOR), end // SECTOR):
                    self._write_blank(number)
        except OSError as error:
            raise self._failure("reserve space in", error) from None
        self._reserved = end

    def _write_blank(self, number: int) -> None:
        with self._lock:
            self._view[:] = b" " * (SECTOR - 1) + b"\n"
            if self._transfer(os.pwritev, number * SECTOR) != SECTOR:
                raise OSError(errno.ENOSPC, "short write")

    def lost(self, byte: int) -> bool:
        """Returns whether another owner has locked our byte; False where that cannot be known."""
        query = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, byte, 1, 0)
        try:
            found = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, query)
        except OSError:
            return False
        return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)

    def renew(self, epoch: int, holder: Fields) -> None:
        """Replaces the file by a copy in which both bytes are locked by us.

        The locks of a process that may be stopped for ever stay with the old file, and its next
        check finds the lease lost. The old file names the new holder too: on NFS the path may be
        served from a cache, but an open file is not. Call it with the mutex held.
        """
        self._write_sector(0, {"epoch": epoch, "holder": holder})
        with contextlib.suppress(OSError):
            os.fdatasync(self._fd)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            part.unlink(missing_ok=True)
            part.write_bytes(self.path.read_bytes())
            fd = os.open(part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            os.fchmod(fd, 0o600)
            os.fsync(fd)
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
            for byte in (MUTEX, ALIVE):
                self._ofd(fcntl.F_WRLCK, byte, fd)
            os.close(self._swap(fd, part))
        except OSError as error:
            raise self._failure("renew", error) from None

    def _swap(self, fd: int, part: Path) -> int:
        with self._lock:
            os.replace(part, self.path)
            old, self._fd = self._fd, fd
            self._file = os.fstat(fd)
            self._reserved = 0
        return old

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
        lock = struct.pack(_FLOCK, kind, 0, byte, 1, 0)
        fcntl.fcntl(self._fd if fd is None else fd, fcntl.F_OFD_SETLK, lock)

    def close(self) -> None:
        """Frees what the object holds, and removes a temporary record."""
        if self._temporary and self._made and self._fd >= 0:
            # What cannot be removed is a record without a holder: it excludes nobody.
            with contextlib.suppress(OSError, VhdtoolError), self.mutex():
                self._remove_own()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
