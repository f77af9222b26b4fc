"""The fast path in C (csrc/): plain reads and writes of NBD clients, served without Python."""

from array import array
from collections.abc import Sequence
from typing import Any

DISCONNECTED: int
"""Reason: the client has disconnected."""
PLAIN_PATH: int
"""Reason: the next request is for Python."""
RETRY: int
"""Reason: a request failed (`failed_request`); Python serves it again and reports why."""
ALLOCATE: int
"""Reason: the next request writes to an absent block (`absent_block`), to be allocated first."""
LONGEST: int
"""Bytes of the longest request that the fast path serves."""

def set_memory_limit(limit: int, /) -> None:
    """Bytes that requests of all clients may use together."""

class Gate:
    """A disk's gate, as fast-path requests pass it; see nbd.backend.FastPathGate."""

    @property
    def generation(self) -> int: ...
    def set(self, serves: bool, /) -> None: ...
    def inside(self) -> int: ...
    def extend(self, seconds: float, /) -> None: ...

class Session:
    """One client's connection in the fast path. For one thread at a time, but for the times."""

    def __new__(
        cls,
        sock: int,
        inbox: Any,
        counters: array[int],
        gate: Gate,
        structured: bool,
        bounds: Sequence[float],
    ) -> Session:
        """Holds the buffers until `close`. `bounds`: upper ends of latency buckets, in seconds.

        Raises MemoryError.
        """

    def use(
        self,
        *,
        fd: int,
        size: int,
        generation: int,
        direct: bool,
        writable: bool,
        block_bytes: int,
        bitmap_bytes: int,
        bat: Any,
        full: Any,
        zeros: bool,
        whole: bool,
    ) -> None:
        """Serves by this layout from now on. Raises ValueError where BAT or flags are too short."""

    def serve(self, start: int, end: int, /) -> tuple[int, int, int]:
        """Serves what is in the inbox and what arrives: (reason to stop, new bounds of the inbox).

        Releases Python's lock.
        """

    def drain(self) -> int:
        """Ends and replies to what is in flight; returns a reason as `serve`."""

    def failed_request(self) -> tuple[int, int, int, int, memoryview]:
        """(command, cookie, offset, length, data) of the request that RETRY is about.

        `data` is valid until `replied`.
        """

    def replied(self) -> None:
        """Python has replied to the failed request."""

    def take_latencies(self) -> tuple[list[int], float] | None:
        """(requests in each bucket, sum in seconds) since the last call; None for no request."""

    def close(self) -> None:
        """Ends what is in flight, without replies, and frees everything."""

    @property
    def idle_since(self) -> float:
        """time.monotonic() since when the client asks for nothing; 0 while it does."""

    @property
    def stalled_since(self) -> float:
        """time.monotonic() since when it sends no more of a request or takes no more of a reply."""

    @property
    def in_flight(self) -> bool:
        """Requests are with the kernel: the gate counts them, so the image stays open."""

    @property
    def absent_block(self) -> int:
        """The block that ALLOCATE is about."""
