"""Several reads and writes of one file at once, by Linux's native asynchronous I/O.

Threads would do as well, but each costs a switch of Python's lock, and there are tens of requests
in a fraction of a millisecond. One call submits all, one waits for all. Only O_DIRECT gains:
buffered I/O is done within the submitting call. Source: io_submit(2), linux/aio_abi.h.
"""

import ctypes
import errno
import mmap
import os
import struct
import threading
from dataclasses import dataclass

_CALLS = {
    # machine -> io_setup, io_destroy, io_getevents, io_submit
    "x86_64": (206, 207, 208, 209),
    "aarch64": (0, 1, 4, 2),
}
_IOCB = struct.Struct("<QIIHhIQQqQII")
_EVENT = struct.Struct("<QQqq")
_PREAD, _PWRITE = 0, 1
DEPTH = 64


@dataclass(slots=True)
class Transfer:
    """One read into, or write of, `view`, which lies in aligned memory. Offsets in bytes."""

    write: bool
    offset: int
    view: memoryview
    done: int = 0
    """Bytes moved, or a negative errno, once it has been run."""


class Many:
    """A queue to the kernel. Not for several threads at once."""

    def __init__(self) -> None:
        """Raises OSError where the kernel has no such queue for us."""
        machine = os.uname().machine
        if machine not in _CALLS:
            raise OSError(errno.ENOSYS, f"no native asynchronous I/O on {machine}")
        self._setup, self._destroy, self._getevents, self._submit = _CALLS[machine]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._context = ctypes.c_ulong(0)
        self._blocks = bytearray(DEPTH * _IOCB.size)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._blocks))
        self._pointers = (ctypes.c_ulong * DEPTH)(*(base + n * _IOCB.size for n in range(DEPTH)))
        self._events = bytearray(DEPTH * _EVENT.size)
        self._events_at = ctypes.addressof(ctypes.c_char.from_buffer(self._events))
        self._call(self._setup, DEPTH, ctypes.byref(self._context))

    def _call(self, number: int, *arguments: object) -> int:
        got = int(self._libc.syscall(ctypes.c_long(number), *arguments))
        if got < 0:
            raise OSError(ctypes.get_errno(), "asynchronous I/O")
        return got

    def run(self, fd: int, transfers: list[Transfer]) -> None:
        """Runs all and returns when all have ended; each one's `done` tells how."""
        for start in range(0, len(transfers), DEPTH):
            self._run(fd, transfers[start : start + DEPTH])

    def _run(self, fd: int, transfers: list[Transfer]) -> None:
        for number, one in enumerate(transfers):
            address = ctypes.addressof(ctypes.c_char.from_buffer(one.view))
            code = _PWRITE if one.write else _PREAD
            size = len(one.view)
            _IOCB.pack_into(
                self._blocks, number * _IOCB.size,
                number, 0, 0, code, 0, fd, address, size, one.offset, 0, 0, 0,
            )  # fmt: skip
        submitted = 0
        while submitted < len(transfers):
            place = ctypes.byref(self._pointers, submitted * ctypes.sizeof(ctypes.c_ulong))
            try:
                taken = self._call(
                    self._submit,
                    self._context,
                    ctypes.c_long(len(transfers) - submitted),
                    place,
                )
            except OSError as error:
                # The kernel says so of the first one; the others may be fine.
                transfers[submitted].done = -(error.errno or errno.EIO)
                submitted += 1
                continue
            submitted += taken
            self._wait(transfers, taken)

    def _wait(self, transfers: list[Transfer], count: int) -> None:
        while count:
            try:
                got = self._call(
                    self._getevents,
                    self._context,
                    ctypes.c_long(count),
                    ctypes.c_long(DEPTH),
                    ctypes.c_void_p(self._events_at),
                    None,
                )
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                raise
            for number in range(got):
                which, _, result, _ = _EVENT.unpack_from(self._events, number * _EVENT.size)
                transfers[which].done = result
            count -= got

    def close(self) -> None:
        """Gives the queue back."""
        if self._context.value:
            self._call(self._destroy, self._context)
            self._context.value = 0


class Arena:
    """Aligned memory, handed out piece by piece until `clear`."""

    def __init__(self, size: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, size))
        self._used = 0

    def take(self, length: int) -> memoryview | None:
        """Aligned memory of that length; None when there is no more."""
        start = self._used
        if start + length > len(self._memory):
            return None
        self._used = -(-(start + length) // 4096) * 4096
        return self._memory[start : start + length]

    def has(self, length: int) -> bool:
        """Whether `take` would give so many bytes."""
        return self._used + length <= len(self._memory)

    def clear(self) -> None:
        """All pieces may be handed out anew."""
        self._used = 0


class Together:
    """Small pieces of a file that are written at once. For any threads, of any files.

    One for the whole process: the kernel takes tens of milliseconds to end a queue, which no
    hand-over has.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: Many | None = None
        self._arena = Arena(1 << 20)

    def write(self, fd: int, parts: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Writes (offset, data) pieces of `fd`; returns those that are not there now.

        Raises OSError where the kernel has no queue for us.
        """
        with self._lock:
            if self._queue is None:
                self._queue = Many()
            left, transfers = [], []
            self._arena.clear()
            for offset, data in parts:
                view = self._arena.take(len(data))
                if view is None:
                    left.append((offset, data))
                    continue
                view[:] = data
                transfers.append(Transfer(True, offset, view))
            self._queue.run(fd, transfers)
            failed = [one for one in transfers if one.done != len(one.view)]
            return left + [(one.offset, bytes(one.view)) for one in failed]


together = Together()
