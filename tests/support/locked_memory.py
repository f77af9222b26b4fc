"""A file in memory whose lock a server can give away, as an NFSv4 server does.

Facts, measured on NFS 4.2: once a client's lock is given to another, the kernel answers EIO to
each further request of the descriptor that had it, reads and those under way included.
"""

import errno
import threading
from typing import Self

from vhdtool.errors import LeaseLost
from vhdtool.storage.base import Storage, StorageError
from vhdtool.storage.image_lock import ImageInUse


class LockServer:
    """One file, and who has its lock: at most one `LockedMemory` at a time."""

    def __init__(self, file: Storage) -> None:
        self.file = file
        self.holder: LockedMemory | None = None
        self._cut: LockedMemory | None = None
        self._mended = threading.Event()
        self._change = threading.Lock()

    def open(self, locked: bool) -> "LockedMemory":
        """A descriptor. Raises ImageInUse when it shall be `locked` and another one is."""
        one = LockedMemory(self, locked)
        with self._change:
            if locked and self.holder is not None:
                raise ImageInUse(f"{self.file.name}: is in use by a process of another host")
            if locked:
                self.holder = one
        return one

    def expire(self) -> None:
        """The holder's client is taken for dead: the lock is free, and its descriptor fenced."""
        with self._change:
            self.holder = None

    def cut(self) -> None:
        """The network of the holder is cut: its requests wait for `mend`."""
        self._cut = self.holder
        self._mended.clear()

    def mend(self) -> None:
        self._mended.set()

    def wait_for_network(self, one: "LockedMemory") -> None:
        if one is self._cut:
            self._mended.wait()

    def replace(self, old: "LockedMemory", new: "LockedMemory") -> None:
        """Raises LeaseLost when `old` has lost the lock that `new` is to have."""
        with self._change:
            if self.holder is not old:
                raise LeaseLost(f"{self.file.name}: the lock on the image is lost")
            self.holder = new


class LockedMemory(Storage):
    """A descriptor of a LockServer's file."""

    holds_lock = True

    def __init__(self, server: LockServer, locked: bool) -> None:
        self.server = server
        self.name = server.file.name
        self.writable = locked
        self._locked = locked

    def _pass(self, doing: str) -> Storage:
        """Waits for the network; then the lock decides."""
        self.server.wait_for_network(self)
        if self._locked and self.server.holder is not self:
            raise StorageError(self.name, doing, errno.EIO)
        return self.server.file

    def lock_is_lost(self) -> bool:
        return self._locked and self.server.holder is not self

    def check_identity(self) -> None:
        """A file in memory keeps its name."""

    def reopened(self) -> Self:
        new = type(self)(self.server, True)
        self.server.replace(self, new)
        return new

    def pread(self, offset: int, length: int) -> bytes:
        return self._pass("read").pread(offset, length)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._pass("write").pwrite(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._pass("zero").zero(offset, length)

    def truncate(self, size: int) -> None:
        self._pass("truncate").truncate(size)

    def flush(self) -> None:
        self._pass("flush").flush()

    def size(self) -> int:
        return self._pass("find the size").size()

    def close(self) -> None:
        server = self.server
        if server.holder is self:
            server.expire()
