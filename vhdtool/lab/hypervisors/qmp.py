"""QMP of a QEMU on a lab host: commands, and events in the order of their arrival."""

import asyncio
import queue
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host

QMP_TIMEOUT = 20.0
Json = dict[str, Any]


class UnknownCommand(LabError):
    """This QEMU has no such QMP command."""


class Loop:
    """One asyncio loop in a thread: the QMP library is asynchronous, the runner is not."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="qmp", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, Any], timeout: float = QMP_TIMEOUT) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)


class Monitor:
    """The monitor of one QEMU. Every method raises LabError that ends with QEMU's last words."""

    def __init__(self, host: Host, path: str, log: str, on_event: Callable[[Json], None]) -> None:
        self.host = host
        self.events: list[Json] = []
        self.ended = False
        self._path = path
        self._log = log
        self._on_event = on_event
        self._changed = threading.Condition()

    def connect(self, loop: Loop) -> None:
        self._loop = loop
        here, there = socket.socketpair()
        self._out: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        try:
            self._stream = self.host.connect(self._path, self._out.put)
        except LabError as error:
            raise self._error(f"QEMU did not start: {error}") from error
        self._there = there
        threading.Thread(target=self._to_client, daemon=True).start()
        threading.Thread(target=self._from_client, daemon=True).start()
        self._client = QMPClient()
        # An event that came before its listener would be lost.
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        here.setblocking(False)
        try:
            loop.run(self._client.connect(here))
        except (QMPError, TimeoutError) as error:
            raise self._error(f"no QMP: {error}") from error
        asyncio.run_coroutine_threadsafe(self._follow(), loop.loop)

    def _to_client(self) -> None:
        """Apart from the host's reader, which must never wait for a full socket."""
        while data := self._out.get():
            try:
                self._there.sendall(data)
            except OSError:
                break
        self._there.close()

    def _from_client(self) -> None:
        try:
            while data := self._there.recv(1 << 16):
                self.host.send(self._stream, data)
        except (OSError, LabError):
            return

    async def _follow(self) -> None:
        async for event in self._listener:
            with self._changed:
                self.events.append({**event, "mono": time.monotonic()})
                self._changed.notify_all()
            self._on_event(dict(event))

    def end(self) -> None:
        """QEMU has ended: nobody needs to wait for its events any more."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def wait_end(self, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.ended, timeout)

    def execute(self, command: str, **arguments: Any) -> Any:
        """One command; its reply."""
        try:
            return self._loop.run(self._client.execute(command, arguments or None))
        except ExecuteError as error:
            kind = UnknownCommand if error.error_class == "CommandNotFound" else LabError
            raise kind(f"{self.host.name}: QMP {command}: {error}") from error
        except (QMPError, TimeoutError) as error:
            raise self._error(f"QMP {command}: {error or type(error).__name__}") from error

    def wait(self, name: str, timeout: float, start: int = 0) -> Json:
        """The first event of that name at or after index `start`."""
        event = self._first(lambda event: event["event"] == name, timeout, start)
        if event is None:
            why = "QEMU is dead" if self.ended else f"not within {timeout:.0f} s"
            raise self._error(f"no {name}: {why}")
        return event

    def wait_migration(self, state: str, timeout: float, start: int = 0) -> Json:
        """The first MIGRATION event with this state. Raises LabError at once for `failed`."""

        def fits(event: Json) -> bool:
            return event["event"] == "MIGRATION" and event["data"]["status"] in (state, "failed")

        event = self._first(fits, timeout, start)
        if event is None or event["data"]["status"] != state:
            found = "died" if self.ended else "failed" if event else "hangs"
            raise self._error(f"migration {found} (wanted {state})")
        return event

    def _first(self, fits: Callable[[Json], bool], timeout: float, start: int) -> Json | None:
        """The first such event; None when there is none in time, or QEMU has ended without it."""

        def found() -> Json | None:
            return next(filter(fits, self.events[start:]), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self.ended, timeout)
            return found()

    def _error(self, what: str) -> LabError:
        return LabError(f"{self.host.name}: {what}; {self.host.last_line(self._log)}")
