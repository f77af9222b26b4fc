"""One `xl migrate`, whose relay waits when the destination has all memory."""

import contextlib
import json
import queue
import shlex
import signal
import time
from typing import Any, Protocol

from vhdtool.errors import LabError
from vhdtool.lab.hosts.connection import Host
from vhdtool.lab.hypervisors.driver import Outcome, Suspended
from vhdtool.lab.hypervisors.xl import INCOMING, XL_TIMEOUT

STREAM = "vhdtool.lab.hosts.xen_stream"
PATIENCE = 3.0
"""How much longer than the runner's time a migration may take: it copies all memory through two
dom0 kernels, which emulated machines do in half a minute."""


class Domain(Protocol):
    """What a migration needs of the domain at its source, and of that at its destination."""

    host: Host
    log: str
    domain: str

    def find_console(self, domain: str) -> None: ...

    def last_words(self) -> str: ...

    def runs(self) -> bool: ...


class XenTransfer:
    """A migration from `source` to `destination`; `port` is free there."""

    def __init__(self, source: Domain, destination: Domain, port: int) -> None:
        self._source, self._destination = source, destination
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._ready_mono = 0.0
        self._decided = False
        self._exited: int | None = None
        self._pending = b""
        there, here = destination.host, source.host
        address = there.config.address
        env = {"PYTHONPATH": there.config.lib}
        words = [there.config.python, "-m", STREAM, "receive", address, str(port)]
        words += [here.config.address]
        self._receiver = there.call("spawn", argv=words, log=destination.log, env=env)
        control = f"{here.config.private_dir}/run/{source.domain}.relay"
        relay = [here.config.python, "-m", STREAM, "relay", control, address, str(port)]
        words = ["xl", "migrate", "-s", shlex.join(relay), source.domain, there.name]
        env = {"PYTHONPATH": here.config.lib}
        self._xl = here.call("spawn", argv=words, log=source.log, env=env)
        here.on_exit[self._xl] = self._on_exit
        self._stream = here.connect(control, self._on_data, 60.0)

    def _on_data(self, data: bytes) -> None:
        self._pending += data
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            self._events.put(json.loads(line))

    def _on_exit(self, status: int) -> None:
        self._exited = status
        self._events.put({"event": "exited", "status": status})

    def _wait(self, event: str, timeout: float) -> dict[str, Any]:
        """Wait for an event of the relay. Raises LabError when xl ends before."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                found = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                name = self._source.host.name
                raise LabError(
                    f"{name}: xl migrate is not {event} within {timeout:.0f} s; "
                    f"{self._source.last_words()}"
                ) from None
            if found["event"] == event:
                return found
            if found["event"] == "exited":
                raise LabError(
                    f"{self._source.host.name}: xl migrate ended with {found['status']} before "
                    f"{event}: {self._source.last_words()}"
                )

    def wait_suspended(self, timeout: float) -> Suspended:
        offset = self._source.host.clock_offset
        ready = self._wait("ready", timeout * PATIENCE)
        self._ready_mono = ready["mono"] + offset
        return Suspended(ready["stopped"] + offset)

    def resume(self, timeout: float) -> float:
        # The guest's first words go to a console that nobody reads otherwise.
        self._destination.find_console(self._destination.domain + INCOMING)
        self._decide("go")
        status = self._wait("unpaused", timeout)["status"]
        if status:
            raise LabError(f"{self._destination.host.name}: the domain could not be unpaused")
        return self._ready_mono

    def cancel(self, timeout: float) -> None:
        self._decide("refuse")
        self._wait_exit(timeout * PATIENCE)
        deadline = time.monotonic() + timeout
        while not self._source.runs():
            if time.monotonic() > deadline:
                raise LabError(f"{self._source.host.name}: the guest did not go on after a refusal")
            time.sleep(0.1)

    def go_on_at_source(self, timeout: float) -> None:
        self.cancel(timeout)

    def outcome(self) -> Outcome:
        found = []
        for guest in (self._source, self._destination):
            try:
                found.append(guest.runs())
            except LabError:
                found.append(False)
        return Outcome.of(*found)

    def end(self) -> None:
        """Wait until xl has destroyed the domain at its source; or refuse what is under way."""
        if not self._decided:
            self._decide("refuse")
        with contextlib.suppress(LabError):
            self._wait_exit(XL_TIMEOUT)
        if self._exited is None:
            self._source.host.call("kill", pid=self._xl, signal=int(signal.SIGKILL))

    def _decide(self, word: str) -> None:
        if not self._decided:
            self._decided = True
            with contextlib.suppress(LabError):
                self._source.host.send(self._stream, word.encode() + b"\n")

    def _wait_exit(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._exited is None:
            if time.monotonic() > deadline:
                raise LabError(f"{self._source.host.name}: xl migrate does not end")
            time.sleep(0.02)
