"""What the agent does with images: makes them, looks at them, sends them home."""

import base64
import json
import os
import subprocess
import zlib
from pathlib import Path
from typing import Any

from vhdtool.errors import VhdtoolError
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.metadata import qcow2
from vhdtool.image.metadata.dump import dump_metadata
from vhdtool.storage import FileStorage
from vhdtool.storage.open import open_anywhere


class Images:
    """Operations of the agent; standard library only, as there."""

    def __init__(self) -> None:
        self._snapshots: list[dict[str, Any]] = []

    def op_create(
        self, path: str, size: int, block: int, kind: str = "vhd", lun: bool = False
    ) -> None:
        """A new image; one of the same name from an earlier run goes, with its lease.

        `lun`: laid out as on a device that has room for the full image, its footer at the end.
        """
        for old in (path, path + ".lease"):
            Path(old).unlink(missing_ok=True)
        if kind == "qcow2":
            cluster = cluster_for(block)
            options = ["-f", "qcow2", "-o", f"cluster_size={cluster}", path, str(size)]
            _qemu_img("create", "-q", *options)
        elif lun:
            with FileStorage(path, create=True) as storage:
                storage.truncate(size + (size // block + 1) * 8192 + (4 << 20))
                storage.is_block_device = True
                create_dynamic(storage, size, block_bytes=block, overwrite=True)
        else:
            create_dynamic(path, size, block_bytes=block)

    def op_peek(self, path: str) -> int:
        """Reads the first sector of a file or LUN; how many bytes there were."""
        with open_anywhere(path, direct=True) as storage:
            return len(storage.pread(0, 512))

    def op_check(self, path: str) -> dict[str, Any]:
        """What `qemu-img check` reports; it exits with 2 or 3 where it found something.

        An image that it cannot check is no fault of the lab: the report says so then.
        """
        try:
            told = _qemu_img("check", "--output=json", "-f", "qcow2", path, most=3)
            report: dict[str, Any] = json.loads(told)
        except (VhdtoolError, ValueError) as error:
            return {"filename": path, "check-errors": 1, "why": str(error)}
        return report

    def op_metadata(self, path: str, kind: str = "vhd") -> int:
        """Takes a snapshot of the image's metadata as it is on the disk now, and keeps it.

        Returns its number for `snapshots`: sending it takes longer than taking it, and a guest
        may stand still meanwhile.
        """
        with FileStorage(path, direct=True) as storage:
            self._snapshots.append(
                (qcow2.dump_metadata if kind == "qcow2" else dump_metadata)(storage)
            )
            return len(self._snapshots) - 1

    def op_snapshots(self, numbers: list[int]) -> list[dict[str, Any]]:
        """The snapshots of these numbers, which are forgotten with it."""
        taken = [self._snapshots[number] for number in numbers]
        for number in numbers:
            self._snapshots[number] = {}
        return taken

    def op_fetch(self, path: str) -> dict[str, Any]:
        """The data of a sparse file: its size and [(offset, base64 of zlib)] of each extent."""
        extents = []
        with open(path, "rb") as stream:
            fd = stream.fileno()
            size = os.fstat(fd).st_size
            at = 0
            while at < size:
                try:
                    at = os.lseek(fd, at, os.SEEK_DATA)
                except OSError:
                    break
                end = os.lseek(fd, at, os.SEEK_HOLE)
                data = os.pread(fd, end - at, at)
                extents.append([at, base64.b64encode(zlib.compress(data, 1)).decode()])
                at += len(data)
        return {"size": size, "extents": extents}


def cluster_for(block: int) -> int:
    """Bytes of a qcow2 cluster such that one L2 table maps a block of the load, or less.

    Then each new block changes the L1 table, which is read at the opening, as a VHD's BAT is.
    """
    cluster = 512
    while (cluster * 2) ** 2 // 8 <= block and cluster < 64 << 10:
        cluster *= 2
    return cluster


def _qemu_img(*words: str, most: int = 0) -> str:
    """Its standard output. Raises VhdtoolError when its exit code is more than `most`."""
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False)
    if done.returncode > most:
        raise VhdtoolError(f"qemu-img {words[0]}: {' '.join(done.stderr.split())}")
    return done.stdout
