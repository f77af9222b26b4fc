"""Who may have an image: a server's disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.shims import DirectDisk, owner
from vhdtool.image.disk.open import VHD, disk_size
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.lease import EpochLease
from vhdtool.tapdisk.access import ImageOpener, Settings


@contextmanager
def served(image: Path, guard: bool = True, size: int = 0) -> Iterator[DirectDisk]:
    """A server's disk, active, in this process: for the kernel it is as good as another one."""
    disk = DirectDisk(
        Settings(
            guard=guard,
            open_storage=ImageOpener(),
            open_lease=lambda path: EpochLease(EpochRecord(path), owner("alpha", os.getpid())),
            emit=lambda *_, **__: None,
        )
    )
    disk.attach(image, size or disk_size(image, VHD))
    if guard:
        disk.activate()
    else:
        disk.open()
    try:
        yield disk
    finally:
        disk.detach()
