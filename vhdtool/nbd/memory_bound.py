"""A bound on the memory that all clients together take for data on its way.

A client needs a share for more than a small piece at a time. Where no share is left it is served
all the same, in small pieces: nobody waits for the memory of another client.
"""

import threading

SHARED = 256 << 20
"""Bytes of all shares. The fast path has as much again for itself."""
SHARE = 6 << 20
"""Bytes of a share: what one read asks for, and the replies that gather before it."""
LONGEST_WHOLE = 4 << 20
"""Bytes of a read that is in memory as a whole, with a share. A longer one goes in pieces."""
PIECE = 1 << 20
"""Bytes of a large read or write that are in memory at once. Half of what a socket holds, so that
the next piece is read while the client takes this one; a write comes through the inbox."""
SMALL_PIECE = 64 << 10
"""The same without a share."""


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
