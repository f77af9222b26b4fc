"""The requests of a disk: which image serves them, and what a lost lease does to them."""

import errno
import threading
from collections.abc import Callable
from time import monotonic
from typing import Concatenate, ParamSpec, TypeVar

from vhdtool.errors import ActivationRefused, LeaseLost, SplitBrain, StateError, UncleanImage
from vhdtool.image.disk.open import OpenImage
from vhdtool.nbd.backend import FastPathGate, FastPathLayout, Grant
from vhdtool.nbd.metrics import Latency, Tally, new_tally
from vhdtool.storage import Storage, StorageError
from vhdtool.tapdisk import session as reading
from vhdtool.tapdisk.session import Reading, Settings

P = ParamSpec("P")
T = TypeVar("T")


class Serving(Reading):
    """What the NBD server sees of a disk. Offsets and lengths in bytes."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._reopening = threading.Lock()
        self._mode = "plain"
        self._tallies: list[Tally] = []
        self._gone = [0] * 5
        self.latency = Latency()

    def export_size(self) -> int:
        return self.size

    @property
    def read_only(self) -> bool:
        return self.settings.read_only

    @property
    def can_trim(self) -> bool:
        """Whether a trim may free something: tapdisk2, which is the guard off, frees nothing."""
        return self.settings.guard

    @property
    def fast_zero(self) -> bool:
        """Whether zeroing costs less than writing: not where a parent shows through holes."""
        return getattr(self._image, "parent", None) is None

    def tally(self) -> Tally:
        """What one client has moved, for it to count in."""
        mine = new_tally()
        with self._telling:
            self._tallies.append(mine)
        return mine

    def counted(self, mine: Tally) -> None:
        """The client has gone; what it counted stays."""
        with self._telling:
            self._tallies = [one for one in self._tallies if one is not mine]
            self._gone = [old + new for old, new in zip(self._gone, mine, strict=True)]

    def _moved(self, way: int) -> int:
        with self._telling:
            return sum(one[way] for one in (*self._tallies, self._gone))

    def sectors(self) -> tuple[int, int]:
        """(read, written) by all clients, in sectors."""
        return self._moved(0) // 512, self._moved(1) // 512

    def parents(self) -> list[tuple[str, bool]]:
        """(path, whether it is raw) of each parent of the open image, nearest first."""
        layers = getattr(getattr(self._image, "parent", None), "layers", [])
        return [(layer.storage.name, layer.metadata is None) for layer in layers]

    def waits(self) -> bool:
        """Whether a request would wait now."""
        return self._gate.mode == "hold"

    def read(self, offset: int, length: int) -> bytes:
        return self._request("read", _read, offset, length)

    def write(self, offset: int, data: memoryview) -> None:
        self._request("write", _write, offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._request("write", _write_zeroes, offset, length)

    def trim(self, offset: int, length: int) -> None:
        self._request("write", _trim, offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        self._request("read", _prefetch, offset, length)

    def flush(self) -> None:
        self._request("flush", _flush)

    def extents(self, offset: int, length: int, most: int) -> list[tuple[int, bool]]:
        return self._request("read", _extents, offset, length, most)

    @property
    def fast_path_gate(self) -> FastPathGate:
        """The gate that fast-path requests pass."""
        return self._gate.fast_path

    def grant(self) -> Grant | None:
        """What a client may do without asking again; None while each request has to ask.

        The first read and the first write of each metadata read are told, so they do ask.
        """
        # In this order: what is read later is at least as new.
        generation = self._gate.fast_path.generation
        if self._mode != "plain":
            return None
        image, told = self._image, self._told
        if image is None or not told & {"read", "write"}:
            return None
        writable = "write" in told and not self.read_only
        export = getattr(image, "fast_path_layout", lambda _: None)
        layout: FastPathLayout | None = export(writable)
        return None if layout is None else Grant(layout, generation, writable)

    def allocate(self, block: int, generation: int, inside: bool) -> None:
        """Allocates a block that a client is going to write to.

        `generation`: of the grant that showed the block as absent; in another image nothing is
        allocated. `inside`: the client has requests in flight, so it has passed the gate already.
        Raises OSError or VhdtoolError when that fails.
        """
        if not inside:
            self._request("write", self._allocate, block, generation)
            return
        try:
            self._allocate(self._ready("write"), block, generation)
        except (LeaseLost, SplitBrain) as error:
            self._fence(error)
            raise OSError(errno.EIO, str(error)) from error

    def _allocate(self, image: OpenImage, block: int, generation: int) -> None:
        # It may have waited at the gate, and the disk gone on with another file.
        if self._gate.fast_path.generation == generation:
            image.make_place(block)  # type: ignore[attr-defined]

    def _request(
        self,
        kind: str,
        serve: Callable[Concatenate[OpenImage, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        self._gate.enter()
        try:
            if self._mode == "plain":
                return serve(self._ready(kind), *args, **kwargs)
            with self._reopening:
                if self._mode != "plain":
                    self._reopen()
                return serve(self._ready(kind), *args, **kwargs)
        except (LeaseLost, SplitBrain) as error:
            self._fence(error)
            raise OSError(errno.EIO, str(error)) from error
        except StorageError as error:
            if self._lock_is_lost(error):
                self._fence(
                    LeaseLost(
                        f"{self.path}: the lock on the image is another's now, so each request "
                        "fails; nothing more is written"
                    )
                )
            raise
        finally:
            self._gate.leave()

    def _ready(self, kind: str) -> OpenImage:
        """The image that serves a request now. Raises LeaseLost, or OSError when there is none."""
        image = self._image
        if image is None or self.state == "fenced":
            raise OSError(errno.EIO, "the disk is not open")
        now = monotonic()
        if now - self._looked > reading.LEASE_CHECK:
            if self._holds_lease:
                self._check_lease()
            self._has_looked(now)
        if kind not in self._told:
            self._first(kind)
        return image

    def _reopen(self) -> None:
        """Cure C: close and open before the request. The first one is an event of its own."""
        try:
            if self.settings.guard and not self._holds_lease:
                self._drop_read("reopen")
                self._take("request", "activated", None, implicit=True)
                self.state = "active"
            elif self._reopens == 0 and not self.settings.guard:
                self._close_for_reopen()
                self._read("reopen", "opened", implicit=True, mode=self._mode)
            else:
                # Later cycles keep epoch and lease: the record would be nothing but them.
                epoch, told, stamp = self._read_epoch, self._told, self._since_read
                assert epoch is not None
                storage = self._reopened()
                guard = self.settings.guard
                self._load(storage, epoch, unclean=True, kill_footer=False, exclusive=guard)
                self._told, self._since_read = told, stamp
        except (ActivationRefused, StateError, UncleanImage) as error:
            raise OSError(errno.EIO, str(error)) from error
        self._reopens += 1
        if self._mode == "first":
            self._mode = "plain"

    def _reopened(self) -> Storage:
        """The image's file, closed and open anew; the lock on it is held all the time."""
        old = self._storage
        if old is None or not (self.settings.guard and old.holds_lock) or self.read_only:
            self._close_for_reopen()
            access = self.settings.access(self._holds_lease)
            return self.settings.open_storage(self.path, access, self.kind)
        if self._image is not None:
            self._image.finish()
        storage = old.reopened()
        image, self._image = self._image, None
        if image is not None:
            image.abandon()
        return storage

    def _close_for_reopen(self) -> None:
        image = self._image
        if image is not None:
            image.finish()
            self._image = None
            image.abandon()


def _read(image: OpenImage, offset: int, length: int) -> bytes:
    return image.read(offset, length)


def _write(image: OpenImage, offset: int, data: memoryview) -> None:
    image.write(offset, data)


def _write_zeroes(image: OpenImage, offset: int, length: int) -> None:
    image.write_zeroes(offset, length)


def _trim(image: OpenImage, offset: int, length: int) -> None:
    image.trim(offset, length)


def _prefetch(image: OpenImage, offset: int, length: int) -> None:
    image.prefetch(offset, length)


def _flush(image: OpenImage) -> None:
    image.flush()


def _extents(image: OpenImage, offset: int, length: int, most: int) -> list[tuple[int, bool]]:
    return image.extents(offset, length, most)
