"""What clients do, in numbers: counters, and a histogram of latencies.

Python measures each request. The fast path measures the first one after each wait for the client,
so that requests that arrive together do not pay for a clock each.
"""

import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import TypeAlias

BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0)
"""Upper bounds in seconds."""


Counters: TypeAlias = "array[int]"
"""One client's bytes read and written, then its requests: reads, writes, others."""


def new_counters() -> Counters:
    """Returns counters for a client, which the fast path counts in too."""
    return array("Q", [0] * 5)


class Latency:
    """A histogram of sampled requests."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Counts one request."""
        with self._lock:
            self._counts[bisect_left(BUCKETS, seconds)] += 1
            self._sum += seconds

    def add_many(self, counts: list[int], seconds: float) -> None:
        """Counts what the fast path measured: requests in each bucket, and their sum."""
        with self._lock:
            self._counts = [old + new for old, new in zip(self._counts, counts, strict=True)]
            self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        """Yields the histogram in Prometheus' text format."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        seen = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), counts, strict=True):
            seen += count
            yield f'{name}_bucket{{le="{bound}"}} {seen}'
        yield f"{name}_sum {total:.6f}"
        yield f"{name}_count {seen}"
