"""Events of a disk, stamped once, told to the log and to all who listen, in one order.

Telling never waits: a disk must not stand still because somebody does not read its events.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

log = logging.getLogger("events")
MOST_BACKLOG = 4 << 20
"""Bytes that wait for a reader; who lets more gather is dropped."""


class Outbox:
    """Lines to one client, in order. `send` returns at once, whatever the client does."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self._lock = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._writer: threading.Thread | None = None
        self._closed = False

    def send(self, line: str) -> None:
        """Sends a line, or keeps it for later. Raises OSError when the client is gone."""
        data = line.encode() + b"\n"
        with self._lock:
            if self._closed:
                raise ConnectionError("the client is gone")
            if not self._waiting:
                data = data[self._now(data) :]
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

    def _now(self, data: bytes) -> int:
        """Bytes that the client's socket takes without waiting."""
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
                # Taken away only now: until then `send` has to queue behind it.
                if self._waiting:
                    self._size -= len(self._waiting.popleft())

    def _drop(self) -> None:
        self._closed = True
        self._waiting.clear()
        with contextlib.suppress(OSError):
            self.client.shutdown(socket.SHUT_RDWR)
        self._lock.notify()

    def close(self) -> None:
        """Nothing more is sent, and the connection ends."""
        with self._lock:
            self._drop()


class Events:
    """Where a disk tells what happens to it."""

    def __init__(self, host: str, out: TextIO) -> None:
        self.host = host
        self._out: TextIO | None = out
        self._lock = threading.Lock()
        self._listeners: list[Callable[[str], None]] = []

    def emit(self, event: str, **fields: Any) -> None:
        """Stamps and tells an event. Never raises: what happened to the disk has happened."""
        with self._lock:
            stamp = {"mono": time.monotonic(), "wall": time.time(), "pid": os.getpid()}
            line = json.dumps({"event": event, "host": self.host, **stamp, **fields})
            for listener in list(self._listeners):
                try:
                    listener(line)
                except OSError:
                    self._listeners.remove(listener)
            self._write(line)

    def _write(self, line: str) -> None:
        if self._out is None:
            return
        try:
            self._out.write(line + "\n")
            self._out.flush()
        except (OSError, ValueError) as error:
            # A full or closed log is no reason to fail the guest's write.
            log.error("events are no longer logged: %s", error)
            self._out = None

    def listen(self, listener: Callable[[str], None]) -> None:
        """Calls `listener(line)` for each event from now on, until it raises OSError."""
        with self._lock:
            self._listeners.append(listener)
