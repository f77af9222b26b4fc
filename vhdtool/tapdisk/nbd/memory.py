"""A bound on the memory that all clients together take for data on its way.

A client needs a share for more than a small piece at a time. Where no share is left it is served
all the same, in small pieces: nobody waits for the memory of another client.
"""

import threading

SHARED = 256 << 20
"""Bytes of all shares. The fast path has as much again for itself."""
SHARE = 6 << 20
"""Bytes of a share: what one read asks for, and the replies that gather before it."""
LARGE_PIECE = 4 << 20
"""Bytes of a read that are in memory at once, with a share."""
SMALL_PIECE = 64 << 10
"""The same without a share."""
WRITE_PIECE = 1 << 20
"""Bytes of a large write that are written at once; they come through the inbox of the client."""


class Shares:
    """Counts the shares of all clients."""

    def __init__(self, size: int = SHARED) -> None:
        self._left = size // SHARE
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Takes a share; False where none is left."""
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True

    def give_back(self) -> None:
        with self._lock:
            self._left += 1


shares = Shares()
"""Of this process."""
