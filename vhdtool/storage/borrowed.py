"""A storage that its user may close while its owner still needs it."""

from vhdtool.storage.base import Storage


class KeptOpen:
    """Passes everything on to `inner`, except `close`."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.name = inner.name
        self.pread = inner.pread
        self.pwrite = inner.pwrite
        self.zero = inner.zero
        self.truncate = inner.truncate
        self.flush = inner.flush
        self.size = inner.size
        self.is_block_device = bool(getattr(inner, "is_block_device", False))

    def close(self) -> None:
        """The owner closes."""
