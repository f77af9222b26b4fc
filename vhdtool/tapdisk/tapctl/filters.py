"""What tap-ctl puts between requests and an image: a log of changes (-C), a mirror (-2)."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vhdtool.errors import VhdtoolError
from vhdtool.image.disk.open import OpenImage
from vhdtool.nbd.client import NbdStorage
from vhdtool.storage import StorageError
from vhdtool.tapdisk.tapctl.change_log import ChangeLog

log = logging.getLogger("tap-ctl")


class Copy(Protocol):
    """The second image of a mirror. Offsets and lengths are bytes."""

    def write(self, offset: int, data: memoryview) -> None: ...
    def write_zeroes(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class NbdCopy:
    """A second image behind an NBD server on a Unix socket."""

    def __init__(self, place: Path, size: int) -> None:
        """Raises StorageError: EINVAL for another size, else the server is not to be had."""
        self._disk = NbdStorage(place, f"nbd:{place}")
        if self._disk.size() != size:
            self._disk.close()
            raise StorageError(f"nbd:{place}", "mirror a disk of another size", errno.EINVAL)

    def write(self, offset: int, data: memoryview) -> None:
        self._disk.pwrite(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._disk.zero(offset, length)

    def flush(self) -> None:
        self._disk.flush()

    def close(self) -> None:
        self._disk.close()


class Mirror:
    """An image, and a copy that gets every write as well; reads come from the image.

    A copy that fails fails the request; one that `may_fail` is given up instead, and told.
    """

    def __init__(
        self, image: OpenImage, copy: Copy, may_fail: Callable[[], None] | None = None
    ) -> None:
        self.inner = image
        self.size = image.size
        self._copy: Copy | None = copy
        self._may_fail = may_fail

    @property
    def last_metadata(self) -> float | None:
        return self.inner.last_metadata

    @property
    def truncated_to(self) -> int | None:
        return self.inner.truncated_to

    @property
    def parent(self) -> object:
        return getattr(self.inner, "parent", None)

    def _too(self, do: Callable[[Copy], None]) -> None:
        copy = self._copy
        if copy is None:
            return
        try:
            do(copy)
        except (VhdtoolError, OSError) as error:
            if self._may_fail is None:
                raise
            log.error("the mirror is given up: %s", error)
            self._copy = None
            self._may_fail()
            copy.close()

    def read(self, offset: int, length: int) -> bytes:
        return self.inner.read(offset, length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.inner.write(offset, data)
        self._too(lambda copy: copy.write(offset, memoryview(data)))

    def write_zeroes(self, offset: int, length: int) -> None:
        self.inner.write_zeroes(offset, length)
        self._too(lambda copy: copy.write_zeroes(offset, length))

    def trim(self, offset: int, length: int) -> None:
        """What may be read of it afterwards is the same on both sides: zeros."""
        self.write_zeroes(offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        self.inner.prefetch(offset, length)

    def flush(self) -> None:
        self.inner.flush()
        self._too(lambda copy: copy.flush())

    def extents(self, offset: int, length: int, most: int) -> list[tuple[int, bool]]:
        return self.inner.extents(offset, length, most)

    def finish(self) -> bool:
        self._too(lambda copy: copy.flush())
        return self.inner.finish()

    def abandon(self) -> None:
        copy, self._copy = self._copy, None
        try:
            if copy is not None:
                copy.close()
        except (VhdtoolError, OSError) as error:
            log.error("the mirror's image: %s", error)
        finally:
            self.inner.abandon()


class Layers:
    """What stands over the image of one minor, each time that it is opened."""

    def __init__(self, changes: str, secondary: str, open_copy: Callable[[str, int], Copy]) -> None:
        """`open_copy(args, size)` opens any secondary image but an NBD export."""
        self.changes = changes
        self.secondary = secondary
        self.mirror_failed = False
        self._open_copy = open_copy

    def __bool__(self) -> bool:
        return bool(self.changes or self.secondary)

    def over(self, image: OpenImage) -> OpenImage:
        """Raises what keeps the mirror's image, or the log, from being opened."""
        if self.secondary:
            image = self._mirrored(image)
        return ChangeLog(image, self.changes) if self.changes else image

    def _mirrored(self, image: OpenImage) -> OpenImage:
        self.mirror_failed = False
        if not self.secondary.startswith("nbd:"):
            return Mirror(image, self._open_copy(self.secondary, image.size))
        place = Path(self.secondary.removeprefix("nbd:"))
        try:
            return Mirror(image, NbdCopy(place, image.size), self._failed)
        except StorageError as error:
            if error.errno == errno.EINVAL:
                raise
            # As in tapdisk: the disk is more than its mirror; `stats` tells.
            log.error("no mirror: %s", error)
            self._failed()
            return image

    def _failed(self) -> None:
        self.mirror_failed = True
