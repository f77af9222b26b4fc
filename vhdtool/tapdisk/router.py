"""The requests of a disk: each goes through the gate to the open image."""

import errno
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from vhdtool.errors import LeaseLost, SplitBrain
from vhdtool.image.disk.base import OpenDisk
from vhdtool.nbd.backend import Backend, FastPathGate, Grant
from vhdtool.nbd.metrics import Counters, Latency, new_counters
from vhdtool.storage import StorageError
from vhdtool.tapdisk.access import Settings
from vhdtool.tapdisk.claim import DiskClaim
from vhdtool.tapdisk.gate import Gate
from vhdtool.tapdisk.session import ImageSession
from vhdtool.tapdisk.states import GateMode, ReopenMode

T = TypeVar("T")
_PLAIN = ReopenMode.PLAIN
"""As gate._HOLD."""
REQUESTS = ("read", "write", "other")
"""As `status` names the counters."""


class RequestRouter(Backend):
    """What the NBD server sees of a disk. Offsets and lengths in bytes."""

    def __init__(
        self, settings: Settings, session: ImageSession, claim: DiskClaim, gate: Gate
    ) -> None:
        self._settings, self._session = settings, session
        self._claim, self._gate = claim, gate
        self.reopen_mode = ReopenMode.PLAIN
        self._reopening = threading.Lock()
        self._counters: list[Counters] = []
        self._disconnected = [0] * 5
        self._counting = threading.Lock()
        self.latency: Latency = Latency()

    # what the server announces

    def export_size(self) -> int:
        return self._session.size

    @property
    def read_only(self) -> bool:
        return self._settings.read_only and not self._settings.overlay

    @property
    def can_trim(self) -> bool:
        """Whether a trim may free space: with the guard off it does not, as in tapdisk2."""
        return self._settings.guard

    @property
    def can_prefetch(self) -> bool:
        return True

    @property
    def can_extents(self) -> bool:
        return True

    @property
    def can_fast_zero(self) -> bool:
        """Whether zeroing costs less than writing: not where a parent shows through holes."""
        image = self._session.image
        return image is None or image.parent is None

    def waits(self) -> bool:
        """Returns whether a request would wait now."""
        return self._gate.mode is GateMode.HOLD

    # counters

    def connected(self) -> Counters:
        """Returns counters for a new client."""
        mine = new_counters()
        with self._counting:
            self._counters.append(mine)
        return mine

    def disconnected(self, counters: Counters) -> None:
        """Adds the counters of a disconnected client to the totals."""
        with self._counting:
            self._counters = [one for one in self._counters if one is not counters]
            self._disconnected = [
                old + new for old, new in zip(self._disconnected, counters, strict=True)
            ]

    def _totals(self) -> list[int]:
        with self._counting:
            return [sum(counts) for counts in zip(self._disconnected, *self._counters, strict=True)]

    def counters(self) -> dict[str, Any]:
        """Returns what `status` says of the requests of all clients."""
        read, written, *requests = self._totals()
        return {
            "read_bytes": read,
            "written_bytes": written,
            "requests": dict(zip(REQUESTS, requests, strict=True)),
        }

    def sectors(self) -> tuple[int, int]:
        """Returns (read, written) by all clients, in sectors."""
        read, written, *_ = self._totals()
        return read // 512, written // 512

    @property
    def clients(self) -> int:
        """Number of connected clients."""
        return len(self._counters)

    # requests

    def read(self, offset: int, length: int) -> bytes:
        return self._request("read", lambda image: image.read(offset, length))

    def write(self, offset: int, data: memoryview) -> None:
        self._request("write", lambda image: image.write(offset, data))

    def write_zeroes(self, offset: int, length: int) -> None:
        self._request("write", lambda image: image.write_zeroes(offset, length))

    def trim(self, offset: int, length: int) -> None:
        self._request("write", lambda image: image.trim(offset, length))

    def prefetch(self, offset: int, length: int) -> None:
        self._request("read", lambda image: image.prefetch(offset, length))

    def flush(self) -> None:
        self._request("flush", lambda image: image.flush())

    def extents(self, offset: int, length: int, most: int) -> list[tuple[int, bool]]:
        return self._request("read", lambda image: image.extents(offset, length, most))

    def _request(self, kind: str, serve: Callable[[OpenDisk], T]) -> T:
        self._gate.enter()
        try:
            if self.reopen_mode is _PLAIN:
                return serve(self._session.ready(kind))
            with self._reopening:
                self._reopen()
                return serve(self._session.ready(kind))
        except (LeaseLost, SplitBrain) as error:
            self._claim.fence(error)
            raise OSError(errno.EIO, str(error)) from error
        except StorageError as error:
            self._claim.fence_if_lock_lost(error)
            raise
        finally:
            self._gate.leave()

    def _reopen(self) -> None:
        if self.reopen_mode is not ReopenMode.PLAIN:
            self._session.reopen(self.reopen_mode)
        if self.reopen_mode is ReopenMode.FIRST:
            self.reopen_mode = ReopenMode.PLAIN

    # the fast path

    @property
    def fast_path_gate(self) -> FastPathGate:
        """The gate that fast-path requests pass."""
        return self._gate.fast_path

    def grant(self) -> Grant | None:
        """Returns what the fast path may serve of a client; None while Python serves it.

        The first read and the first write since the metadata was read emit an event in Python.
        """
        # In this order: what is read later is at least as new.
        generation = self._gate.fast_path.generation
        if self.reopen_mode is not ReopenMode.PLAIN:
            return None
        image, reported = self._session.image, self._session.reported
        if image is None or not reported & {"read", "write"}:
            return None
        writable = "write" in reported and not self.read_only
        layout = image.fast_path_layout(writable)
        return None if layout is None else Grant(layout, generation, writable)

    def allocate(self, block: int, generation: int, inside: bool) -> None:
        """Allocates a block that a client is going to write to.

        `generation`: that of the grant that showed the block unallocated; nothing is allocated in
        another image. `inside`: other requests of that client are in flight, so the gate has
        admitted it. Raises OSError or VhdtoolError when the block cannot be allocated.
        """
        if not inside:
            self._request("write", lambda image: self._allocate(image, block, generation))
            return
        try:
            self._allocate(self._session.ready("write"), block, generation)
        except (LeaseLost, SplitBrain) as error:
            self._claim.fence(error)
            raise OSError(errno.EIO, str(error)) from error

    def _allocate(self, image: OpenDisk, block: int, generation: int) -> None:
        # The request may have waited at the gate while the disk changed to another image.
        if self._gate.fast_path.generation == generation:
            image.allocate(block)
