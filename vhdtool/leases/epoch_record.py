"""The epoch record: a file of 512-byte sectors beside the image, on the shared storage.

Sector 0 has the newest epoch and the holder, if any. Sector n, written once, has the event of epoch
n: an open, an activation or a release. So epochs order the metadata reads and releases of all hosts
without comparing clocks.
"""

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path

from vhdtool.errors import LeaseLost, VhdtoolError
from vhdtool.leases.shared_file import MUTEX as MUTEX
from vhdtool.leases.shared_file import SECTOR, SharedFile

ALIVE = (1 << 40) + 1
"""The byte that the holder has locked."""
_RESERVE = 16 << 10
"""Bytes that are allocated at once: 32 epochs."""
_BLANK = b"\0 \n"
Fields = dict[str, object]
"""A JSON object of the record."""


class EpochRecord(SharedFile):
    """The file. All methods are thread-safe.

    They raise StorageError when the storage fails, LeaseLost when the record is damaged.
    """

    def __init__(self, path: Path, temporary: bool = False) -> None:
        """`temporary`: `close` removes a file that was made here and has no event but ours.

        A record that was there before stays, and so does one that names a holder. Its epochs go
        on, so that no later lease has the epoch that an operator once gave to --force.
        """
        super().__init__(path, "epoch record")
        self._temporary = temporary
        self._written = 0
        """Events that we have written."""

    def _open(self) -> int:
        self._written = 0
        return super()._open()

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
        self.flush()
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
        self.write_raw(number * SECTOR, data.ljust(SECTOR - 1) + b"\n")

    def reserve(self, epoch: int) -> None:
        """Allocates the sectors up to an epoch, so that a full file system cannot stop a release.

        Raises StorageError, with ENOSPC when there is no space now.
        """
        self.reserve_bytes(-(-(epoch + 1) * SECTOR // _RESERVE) * _RESERVE)

    def _remove_own(self) -> None:
        """Removes a record whose events are all ours. Call it with the mutex held.

        A process that waits for the mutex finds the file removed, and makes a new one. A former
        holder that was stopped finds that too, and has lost the lease.
        """
        newest, holder = self.read()
        if self._made and holder is None and newest == self._written:
            self.path.unlink()

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

    def close(self) -> None:
        """Frees what the object holds, and removes a temporary record."""
        if self._temporary and self._made and self._fd >= 0:
            # What cannot be removed is a record without a holder: it excludes nobody.
            with contextlib.suppress(OSError, VhdtoolError), self.mutex():
                self._remove_own()
        super().close()
