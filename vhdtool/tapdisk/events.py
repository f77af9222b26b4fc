"""Events of a disk: stamped once, sent to the log and to every listener in one order.

Sending never blocks: a disk must not wait for a reader of its events.
"""

import contextlib
import json
import logging
import os
import select
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TextIO

log = logging.getLogger("events")
MOST_BACKLOG = 4 << 20
"""Bytes that may wait for a reader; with more it is dropped."""


class Reader(Protocol):
    """Receives lines: a socket, or an object with a socket's methods."""

    def send(self, data: bytes, flags: int, /) -> int: ...
    def sendall(self, data: bytes, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...


class Pipe:
    """A pipe or a terminal as a Reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._free = select.poll()
        self._free.register(fd, select.POLLOUT)

    def send(self, data: bytes, flags: int) -> int:
        """Writes as much as fits. Raises BlockingIOError when nothing fits."""
        if not self._free.poll(0):
            raise BlockingIOError
        # A pipe that is ready takes PIPE_BUF bytes without blocking.
        return os.write(self._fd, data[: select.PIPE_BUF])

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def shutdown(self, how: int) -> None:
        """Does nothing: other processes may have the pipe open."""


class Outbox:
    """Lines to one client, in order. `send` never blocks."""

    def __init__(self, client: Reader) -> None:
        self.client = client
        self._lock = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._writer: threading.Thread | None = None
        self._closed = False

    def send(self, line: str) -> None:
        """Sends a line now or later. Raises OSError when the client is gone."""
        data = line.encode() + b"\n"
        with self._lock:
            if self._closed:
                raise ConnectionError("the client is gone")
            if not self._waiting:
                data = data[self._send_now(data) :]
            if not data:
                return
            self._waiting.append(data)
            self._size += len(data)
            if self._size > MOST_BACKLOG:
                self._drop()
                raise ConnectionError("the client does not read")
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="outbox", daemon=True)
                self._writer.start()
            self._lock.notify()

    def _send_now(self, data: bytes) -> int:
        """Returns how many bytes the client's socket took without blocking."""
        try:
            return self.client.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self._drop()
            raise

    def _write(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._closed:
                    self._lock.wait()
                if self._closed:
                    return
                data = self._waiting[0]
            try:
                self.client.sendall(data)
            except OSError:
                self.close()
                return
            with self._lock:
                # Removed only now: until then `send` must queue behind it.
                if self._waiting:
                    self._size -= len(self._waiting.popleft())

    def _drop(self) -> None:
        self._closed = True
        self._waiting.clear()
        with contextlib.suppress(OSError):
            self.client.shutdown(socket.SHUT_RDWR)
        self._lock.notify()

    def close(self) -> None:
        """Sends nothing more and ends the connection."""
        with self._lock:
            self._drop()


class Events:
    """Receives the events of a disk and passes them on."""

    def __init__(self, host: str, out: TextIO) -> None:
        self.host = host
        self._out: TextIO | None = out
        self._lock = threading.Lock()
        self._listeners: list[Callable[[str], None]] = []
        if (fd := _blocking_fd(out)) is not None:
            self._to_pipe = Outbox(Pipe(fd))
            self._out = None
            self._listeners.append(self._send_to_pipe)

    def emit(self, event: str, **fields: Any) -> None:
        """Stamps and sends an event. Never raises: the event has happened, whoever reads it."""
        with self._lock:
            stamp = {"mono": time.monotonic(), "wall": time.time(), "pid": os.getpid()}
            line = json.dumps({"event": event, "host": self.host, **stamp, **fields})
            for listener in list(self._listeners):
                try:
                    listener(line)
                except OSError:
                    self._listeners.remove(listener)
            self._write(line)

    def _send_to_pipe(self, line: str) -> None:
        try:
            self._to_pipe.send(line)
        except OSError as error:
            log.error("events are no longer logged: %s", error)
            raise

    def _write(self, line: str) -> None:
        if self._out is None:
            return
        try:
            self._out.write(line + "\n")
            self._out.flush()
        except (OSError, ValueError) as error:
            # A full or closed log must not fail the guest's write.
            log.error("events are no longer logged: %s", error)
            self._out = None

    @property
    def listeners(self) -> int:
        """How many receive the events, a log that is a pipe included."""
        with self._lock:
            return len(self._listeners)

    def listen(self, listener: Callable[[str], None]) -> None:
        """Calls `listener(line)` for each event from now on, until it raises OSError."""
        with self._lock:
            self._listeners.append(listener)


def _blocking_fd(out: TextIO) -> int | None:
    """Returns the descriptor of a pipe, socket or terminal, which blocks without a reader."""
    try:
        fd = out.fileno()
        mode = os.fstat(fd).st_mode
    except (OSError, ValueError):
        return None
    return fd if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd) else None


def log_status(status: dict[str, Any]) -> None:
    """Writes a disk's status to the log, as USR1 asks for; a full pipe gets none."""
    if sys.stderr is not None and (fd := _blocking_fd(sys.stderr)) is not None:
        free = select.poll()
        free.register(fd, select.POLLOUT)
        if not free.poll(0):
            return
    log.warning("state: %s", json.dumps(status))


def log_event(line: str) -> None:
    """Writes an event to the log, for people: a listener of Events."""
    fields = json.loads(line)
    name = fields.pop("event")
    for stamp in ("host", "mono", "wall", "pid"):
        fields.pop(stamp, None)
    log.info("%s %s", name, " ".join(f"{key}={value}" for key, value in fields.items()))
