"""The accept loop of every listening socket: NBD, control, tap-ctl and metrics.

Each client is served in a thread of its own. The loop limits their number, disconnects those that
choose no export in time, and survives a shortage of descriptors or memory.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from time import monotonic

from vhdtool.errors import VhdtoolError

log = logging.getLogger("accept")
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds to wait after a failed accept; doubled while it goes on failing."""
SPARE = 8
"""Descriptors in the reserve: one for a connection, the others to serve its requests."""
FIRST_REQUEST = 0.5
"""Seconds in which a new client may ask for something before another takes its descriptor."""
LEAST_IDLE = 1.0
"""Seconds without a request after which a connection counts as idle."""
LEAST_STALLED = 60.0
"""Seconds in the middle of a request or of a reply after which a client counts as stalled."""
LOG_EVERY = 10.0
"""Seconds between two warnings of one loop: a flood of clients must not fill the log."""


class Peer:
    """A connected client, and what decides whether a new client may replace it."""

    def __init__(self, client: socket.socket, patience: float | None) -> None:
        self.socket = client
        self.settled = False
        """Whether the handshake is over; until then the client has a deadline."""
        self.ended = False
        """Whether the loop has disconnected the client."""
        self.since = monotonic()
        self.deadline = None if patience is None else monotonic() + patience
        self.idle_since: Callable[[], float] = lambda: 0.0
        """Returns time.monotonic() since when the client is idle; 0 while it is not."""
        self.stalled_since: Callable[[], float] = lambda: 0.0
        """Returns time.monotonic() since when a request or reply has stopped half way; or 0."""

    def end(self) -> None:
        """Disconnects the client; its thread notices."""
        self.ended = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def is_quiet(self) -> bool:
        """Returns whether the socket has nothing to receive."""
        readable = select.poll()
        try:
            readable.register(self.socket, select.POLLIN)
        except ValueError:
            # It has just been closed.
            return True
        return not readable.poll(0)


class Acceptor:
    """Accepts the clients of one listening socket until `stop`."""

    def __init__(
        self,
        listener: socket.socket,
        serve: Callable[[Peer], None],
        name: str,
        most: int,
        patience: float | None = None,
        reserve: bool = False,
        end_idle: bool = True,
    ) -> None:
        """`serve(peer)` serves one client; OSError and EOFError mean that it has gone.

        `most`: clients at once. `patience`: seconds until a client must be settled. `reserve`:
        hold descriptors back for a client that connects when the process has no others. `end_idle`:
        whether a new client may replace an idle one when there are `most`.
        """
        self._listener, self._serve, self._name = listener, serve, name
        self._most, self._patience, self._end_idle = most, patience, end_idle
        self._peers: list[Peer] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._warned = -LOG_EVERY
        self._spare: list[int] = []
        self._reserve = reserve
        # Wakes the loop. A shutdown of the listener would, too, but not only for this process.
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._hold_back()
        listener.setblocking(False)
        self._readable = select.poll()
        self._readable.register(listener, select.POLLIN)
        self._readable.register(self._wake, select.POLLIN)
        self._thread = threading.Thread(target=self._loop, name=f"{name}-accept", daemon=True)
        self._thread.start()

    @property
    def clients(self) -> int:
        """How many are connected."""
        with self._lock:
            return len(self._peers)

    @property
    def idle_clients(self) -> int:
        """How many of them ask for nothing now."""
        with self._lock:
            return sum(one.idle_since() > 0 for one in self._peers)

    def stop(self) -> None:
        """Accepts no more clients, and disconnects all."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._listener.close()
        os.close(self._wake)
        with self._lock:
            peers = list(self._peers)
            self._give_back()
        for peer in peers:
            peer.end()

    # the loop

    def _loop(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopped.is_set():
            try:
                self._readable.poll(self._end_late())
                if self._stopped.is_set():
                    # A client that waits may be for the next server on this socket.
                    return
                client, _ = self._listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                if self._stopped.is_set():
                    return
                if error.errno == errno.ECONNABORTED or self._find_descriptor(error):
                    continue
                self._warn("cannot accept a client: %s", error)
                self._stopped.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            self._admit(client)

    def _end_late(self) -> float | None:
        """Disconnects clients that are late; returns milliseconds until the next deadline."""
        now = monotonic()
        due = [one for one in self._unsettled() if one.deadline is not None]
        for peer in due:
            assert peer.deadline is not None
            if peer.deadline > now:
                # They are in the order of their connects.
                return (peer.deadline - now) * 1000 + 1
            self._warn("%s: a client timed out after %.0f s", self._name, self._patience)
            self._dismiss(peer)
        return None

    def _admit(self, client: socket.socket) -> None:
        peer = Peer(client, self._patience)
        if self.clients >= self._most and not self._replace_one():
            self._warn("%s: all %d connections are in use", self._name, self._most)
            client.close()
            return
        with self._lock:
            if self._stopped.is_set():
                client.close()
                return
            self._peers.append(peer)
        try:
            threading.Thread(target=self._run, args=(peer,), name=self._name, daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            self._warn("cannot serve a client: %s", error)
            self._forget(peer)

    def _run(self, peer: Peer) -> None:
        try:
            self._serve(peer)
        except Exception as error:
            # An OSError of Python's: the client has gone; its requests have been served.
            gone = isinstance(error, OSError | EOFError) and not isinstance(error, VhdtoolError)
            if not gone:
                log.exception("defect; a client of %s was dropped", self._name)
        finally:
            self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        with self._lock:
            if peer in self._peers:
                self._peers.remove(peer)
        peer.socket.close()
        self._hold_back()

    def _warn(self, message: str, *arguments: object) -> None:
        if (now := monotonic()) - self._warned >= LOG_EVERY:
            self._warned = now
            log.warning(message, *arguments)

    # which client is replaced

    def _unsettled(self) -> list[Peer]:
        with self._lock:
            return [one for one in self._peers if not one.settled]

    def _replace_one(self) -> bool:
        """Disconnects the client that needs it least; returns False where each is busy."""
        peer = (
            next(iter(self._unsettled()), None) or self._longest_idle() or self._longest_stalled()
        )
        if peer is not None:
            self._dismiss(peer)
        return peer is not None

    def _longest_idle(self) -> Peer | None:
        if not self._end_idle:
            return None
        with self._lock:
            since = [(one.idle_since(), one) for one in self._peers]
        latest = monotonic() - LEAST_IDLE
        idle = sorted((pair for pair in since if 0 < pair[0] <= latest), key=lambda pair: pair[0])
        # A request that has not been received yet counts as in flight.
        return next((peer for _, peer in idle if peer.is_quiet()), None)

    def _longest_stalled(self) -> Peer | None:
        with self._lock:
            since = [(one.stalled_since(), one) for one in self._peers]
        latest = monotonic() - LEAST_STALLED
        stalled = [pair for pair in since if 0 < pair[0] <= latest]
        return min(stalled, key=lambda pair: pair[0])[1] if stalled else None

    def _dismiss(self, peer: Peer) -> None:
        with self._lock:
            if peer in self._peers:
                self._peers.remove(peer)
        peer.end()

    # descriptors

    def _find_descriptor(self, error: OSError) -> bool:
        """Frees a descriptor for an accept that failed with `error`; returns whether it did."""
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            return False
        with self._lock:
            if self._spare:
                self._give_back()
                return True
        # A client that has just sent its request is about to get its reply. An idle one stays: the
        # descriptor that it frees may go to whatever took the others.
        before = monotonic() - FIRST_REQUEST
        if late := [one for one in self._unsettled() if one.since <= before]:
            # Its thread closes it in a moment.
            self._dismiss(late[0])
        return False

    def _hold_back(self) -> None:
        """Fills the reserve as far as descriptors are free."""
        with self._lock, contextlib.suppress(OSError):
            while self._reserve and len(self._spare) < SPARE and not self._stopped.is_set():
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _give_back(self) -> None:
        while self._spare:
            os.close(self._spare.pop())
