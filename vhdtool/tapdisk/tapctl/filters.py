"""Filters between the requests of a disk and its image: a mirror (`-2`); the change log's base."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vhdtool.errors import VhdtoolError
from vhdtool.image.disk.base import OpenDisk
from vhdtool.nbd.client import NbdStorage
from vhdtool.storage import StorageError

log = logging.getLogger("tap-ctl")


class ImageFilter(OpenDisk):
    """An open disk that passes everything on to `inner`."""

    def __init__(self, inner: OpenDisk) -> None:
        self.inner = inner
        self.size = inner.size
        self.parent = inner.parent

    @property
    def last_metadata(self) -> float | None:
        return self.inner.last_metadata

    @property
    def truncated_to(self) -> int | None:
        return self.inner.truncated_to

    def read(self, offset: int, length: int) -> bytes:
        return self.inner.read(offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.inner.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self.inner.write_zeroes(offset, length)

    def trim(self, offset: int, length: int) -> None:
        self.inner.trim(offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        self.inner.prefetch(offset, length)

    def flush(self) -> None:
        self.inner.flush()

    def extents(self, offset: int, length: int, most: int) -> list[tuple[int, bool]]:
        return self.inner.extents(offset, length, most)

    def finish(self) -> bool:
        return self.inner.finish()

    def abandon(self) -> None:
        self.inner.abandon()


class MirrorTarget(Protocol):
    """The second image of a mirror. Offsets and lengths are bytes."""

    def write(self, offset: int, data: memoryview) -> None: ...
    def write_zeroes(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class NbdTarget:
    """A second image behind an NBD server on a Unix socket."""

    def __init__(self, socket: Path, size: int) -> None:
        """Raises StorageError: EINVAL for another size, else the server cannot be reached."""
        self._disk = NbdStorage(socket, f"nbd:{socket}")
        if self._disk.size() != size:
            self._disk.close()
            raise StorageError(f"nbd:{socket}", "mirror a disk of another size", errno.EINVAL)

    def write(self, offset: int, data: memoryview) -> None:
        self._disk.pwrite(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._disk.zero(offset, length)

    def flush(self) -> None:
        self._disk.flush()

    def close(self) -> None:
        self._disk.close()


class Mirror(ImageFilter):
    """Sends every write to a second image too; reads come from the image."""

    def __init__(
        self, image: OpenDisk, target: MirrorTarget, on_failure: Callable[[], None] | None = None
    ) -> None:
        """Where the target fails: with `on_failure` it is given up, else the request fails."""
        super().__init__(image)
        self._target: MirrorTarget | None = target
        self._on_failure = on_failure

    def _mirror(self, operation: Callable[[MirrorTarget], None]) -> None:
        target = self._target
        if target is None:
            return
        try:
            operation(target)
        except (VhdtoolError, OSError) as error:
            if self._on_failure is None:
                raise
            log.error("the mirror is given up: %s", error)
            self._target = None
            self._on_failure()
            target.close()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.inner.write(offset, data)
        self._mirror(lambda target: target.write(offset, memoryview(data)))

    def write_zeroes(self, offset: int, length: int) -> None:
        self.inner.write_zeroes(offset, length)
        self._mirror(lambda target: target.write_zeroes(offset, length))

    def trim(self, offset: int, length: int) -> None:
        """Zeroes the range, so that both sides read the same afterwards."""
        self.write_zeroes(offset, length)

    def flush(self) -> None:
        self.inner.flush()
        self._mirror(lambda target: target.flush())

    def finish(self) -> bool:
        self._mirror(lambda target: target.flush())
        return self.inner.finish()

    def abandon(self) -> None:
        target, self._target = self._target, None
        try:
            if target is not None:
                target.close()
        except (VhdtoolError, OSError) as error:
            log.error("the mirror's image: %s", error)
        finally:
            self.inner.abandon()
