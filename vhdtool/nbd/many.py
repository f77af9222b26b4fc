"""Several requests of one disk at once, on storage that bypasses the page cache.

The data of all goes to the kernel together; what needs the BAT or a bitmap is put in order before
or after. A request that the kernel did not do in full is done again on its own, which tells why.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vhdtool.errors import VhdtoolError
from vhdtool.storage import FileStorage, Storage, StorageError
from vhdtool.storage.aio import DEPTH, Arena, Many, Transfer

ARENA = 8 << 20
"""Bytes of requests under way at once; touched only as far as it is used."""
Put = Callable[[list[tuple[int, bytes]]], None]
"""Writes (offset, data) pieces. Raises StorageError."""


@dataclass(slots=True)
class Piece:
    """One request within a block: `view` is what to write, or where to read to."""

    write: bool
    offset: int
    view: memoryview
    cookie: int = 0
    error: Exception | None = None


class Located(Protocol):
    """A disk that knows where data lies."""

    storage: Storage

    def locate(self, offset: int, length: int, write: bool) -> int | None: ...
    def written(self, ranges: list[tuple[int, int]], put: Put) -> None: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes | memoryview) -> None: ...


class ManyRequests:
    """A queue for one client. Not for several threads at once."""

    def __init__(self, disk: Located, storage: FileStorage, queue: Many) -> None:
        self._disk = disk
        self._storage = storage
        self._queue = queue
        self._arena = Arena(ARENA)
        self._pieces: list[Piece] = []

    def room(self, length: int) -> memoryview | None:
        """Memory for the next request; None when it is time to `finish`."""
        if len(self._pieces) >= DEPTH:
            return None
        return self._arena.take(length)

    def full(self, length: int) -> bool:
        """Whether there is no room for another request of that length."""
        return len(self._pieces) >= DEPTH or not self._arena.has(length)

    def add(self, piece: Piece) -> None:
        """One more request; its view came from `room`."""
        self._pieces.append(piece)

    def finish(self) -> list[Piece]:
        """Serves all that was added, in any order; each one's `error` tells how it went."""
        pieces, self._pieces = self._pieces, []
        transfers: list[tuple[Piece, Transfer]] = []
        for piece in pieces:
            try:
                at = self._disk.locate(piece.offset, len(piece.view), piece.write)
            except (VhdtoolError, OSError) as error:
                # Its bitmap could not be read; the others do not need that one.
                piece.error = error
                continue
            if at is None:
                # A write of a new block: the next one finds that block in its place.
                _alone(self._disk, piece)
            else:
                transfers.append((piece, Transfer(piece.write, at, piece.view)))
        self._run([transfer for _, transfer in transfers])
        for piece, transfer in transfers:
            if transfer.done != len(piece.view):
                _alone(self._disk, piece)
        done = [piece for piece, _ in transfers if piece.write and piece.error is None]
        if done:
            self._note(done)
        return pieces

    def clear(self) -> None:
        """The views of the last `finish` are no longer needed."""
        self._arena.clear()

    def _run(self, transfers: list[Transfer]) -> None:
        fd = self._storage.fileno()
        if len(transfers) > 1:
            self._queue.run(fd, transfers)
            return
        for one in transfers:
            move = os.pwritev if one.write else os.preadv
            try:
                one.done = move(fd, [one.view], one.offset)
            except OSError as error:
                one.done = -(error.errno or 1)

    def _note(self, done: list[Piece]) -> None:
        """Bits of what is written now; without them none of it counts."""
        try:
            self._disk.written([(piece.offset, len(piece.view)) for piece in done], self._put)
        except (VhdtoolError, OSError) as error:
            for piece in done:
                piece.error = error

    def _put(self, parts: list[tuple[int, bytes]]) -> None:
        transfers = []
        for offset, data in parts:
            view = self._arena.take(len(data))
            if view is None:
                self._storage.pwrite(offset, data)
                continue
            view[:] = data
            transfers.append(Transfer(True, offset, view))
        self._run(transfers)
        for one in transfers:
            if one.done < 0:
                raise StorageError(self._storage.name, "write a bitmap", -one.done)
            if one.done != len(one.view):
                self._storage.pwrite(one.offset, one.view)


def _alone(disk: Located, piece: Piece) -> None:
    try:
        if piece.write:
            disk.write(piece.offset, piece.view)
        else:
            piece.view[:] = disk.read(piece.offset, len(piece.view))
    except Exception as error:  # noqa: BLE001 - told to the client that asked
        piece.error = error


class ManyOpener:
    """Queues where they pay: for disks on a file that is open with O_DIRECT.

    All share one of the kernel's, which takes tens of milliseconds to end.
    """

    def __init__(self) -> None:
        self._queue: Many | None = None
        self._unable = False

    def open(self, disk: Located) -> ManyRequests | None:
        storage = disk.storage
        if self._unable or not isinstance(storage, FileStorage) or not storage.direct:
            return None
        try:
            self._queue = self._queue or Many()
        except OSError:
            # The kernel offers no asynchronous I/O.
            self._unable = True
            return None
        return ManyRequests(disk, storage, self._queue)

    def close(self) -> None:
        if self._queue is not None:
            self._queue.close()
