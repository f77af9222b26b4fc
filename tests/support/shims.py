"""Shims over one image in memory, each on a host of its own, for tests without root."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tests.support.locked_memory import LockServer
from tests.support.vhd_images import Picture
from vhdtool.image.check.image import CheckReport, check
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.lease import EpochLease, Lease, UnguardedLease
from vhdtool.leases.owner import Owner
from vhdtool.oracle.readers.vhd import open_reader
from vhdtool.storage import MemoryStorage, Storage
from vhdtool.tapdisk.access import Access, Settings
from vhdtool.tapdisk.disk import TapDisk

BLOCK = 8192
SIZE = 2 << 20
"""256 blocks: the BAT has two sectors, so two writers may miss each other's entries."""


def empty_image(batmap: bool = True, size: int = SIZE, block_bytes: int = BLOCK) -> MemoryStorage:
    return Picture(size, block_bytes, batmap).draw()


class _View:
    def __init__(self, storage: Storage) -> None:
        self.name = storage.name
        self.size = storage.size
        self.pread = storage.pread

    def extents(self) -> list[tuple[int, int]]:
        return [(0, self.size())]


def plain_bytes(storage: Storage) -> bytes:
    """What the disk holds by a reader that shares no code with the shim."""
    reader = open_reader(cast(Any, _View(storage)))
    data = bytearray(reader.disk_sectors * 512)
    for sector, part in reader.chunks():
        data[sector * 512 : sector * 512 + len(part)] = part
    return bytes(data)


def verdict(storage: Storage, mode: Any = "strict") -> CheckReport:
    return check(storage, mode)


def owner(host: str, pid: int = 1) -> Owner:
    """A process on another machine: nothing is ever proven about it."""
    return Owner(host, pid, 1, f"boot of {host}")


class DirectDisk(TapDisk):
    """A disk whose requests come by calls instead of NBD."""

    def read(self, offset: int, length: int) -> bytes:
        return self.router.read(offset, length)

    def write(self, offset: int, data: memoryview) -> None:
        self.router.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self.router.write_zeroes(offset, length)

    def trim(self, offset: int, length: int) -> None:
        self.router.trim(offset, length)

    def flush(self) -> None:
        self.router.flush()


class Shim(DirectDisk):
    """A disk on host `name`; its events are in `events`."""

    def __init__(
        self,
        name: str,
        image: Storage,
        folder: Path,
        guard: bool = True,
        wrap: Callable[[Storage], Storage] = lambda storage: storage,
        who: Owner | None = None,
        size: int = SIZE,
        lease: Callable[[Path], Lease] | None = None,
        server: LockServer | None = None,
    ) -> None:
        """`server` keeps the lock of the image, instead of nobody."""

        def open_storage(path: Path, access: Access, kind: str) -> Storage:
            return wrap(image if server is None else server.open(access is Access.ACTIVE))

        self.events: list[dict[str, Any]] = []
        self.image_path = folder / "disk.vhd"
        self.disk_size = size
        kind = EpochLease if guard else UnguardedLease
        super().__init__(
            Settings(
                guard=guard,
                open_storage=open_storage,
                open_lease=lease or (lambda path: kind(EpochRecord(path), who or owner(name))),
                emit=self._emit,
            )
        )

    def _emit(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def attached(self) -> "Shim":
        self.attach(self.image_path, self.disk_size)
        return self

    def activated(self) -> "Shim":
        self.attached().activate()
        return self

    @property
    def requests_inside(self) -> int:
        """Requests in flight."""
        return self._gate.inside

    def put(self, block: int, fill: int, within: int = 0, length: int = 512) -> None:
        self.write(block * BLOCK + within, memoryview(bytes([fill]) * length))

    def emitted(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs `work` in a thread; its result, or the exception it raised, lands in the list."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result
