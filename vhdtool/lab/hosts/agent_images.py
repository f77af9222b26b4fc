"""What the agent does with images: creates them, reads their metadata, sends them."""

import base64
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vhdtool.errors import VhdtoolError
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.metadata.dump import dump_metadata, dump_qcow2_metadata
from vhdtool.lab.commands import run_command
from vhdtool.storage import FileStorage
from vhdtool.storage.paths import open_storage


class ImageOperations:
    """Operations of the agent; standard library only, as there."""

    def __init__(self) -> None:
        self._snapshots: list[dict[str, Any]] = []
        self.operations: dict[str, Callable[..., Any]] = {
            "create": self.create,
            "peek": self.peek,
            "check": self.check,
            "metadata": self.metadata,
            "snapshots": self.snapshots,
            "fetch": self.fetch,
        }

    def create(
        self, path: str, size: int, block: int, kind: str = "vhd", lun: bool = False
    ) -> None:
        """Create an image; remove one of the same name from an earlier run, with its lease.

        `lun`: laid out as on a device that is large enough for the full image, its footer at the
        device's end.
        """
        for old in (path, path + ".lease"):
            Path(old).unlink(missing_ok=True)
        if kind == "qcow2":
            cluster = cluster_for(block)
            options = ["-f", "qcow2", "-o", f"cluster_size={cluster}", path, str(size)]
            run_command(["qemu-img", "create", "-q", *options])
        elif lun:
            with FileStorage(path, create=True) as storage:
                storage.truncate(size + (size // block + 1) * 8192 + (4 << 20))
                storage.is_block_device = True
                create_dynamic(storage, size, block_bytes=block, overwrite=True)
        else:
            create_dynamic(path, size, block_bytes=block)

    def peek(self, path: str) -> int:
        """Read the first sector of a file or LUN; the number of bytes read."""
        with open_storage(path, direct=True) as storage:
            return len(storage.pread(0, 512))

    def check(self, path: str) -> dict[str, Any]:
        """The report of `qemu-img check`, which exits with 2 or 3 where it found something.

        Where it cannot check the image, the report has the reason.
        """
        try:
            command = ["qemu-img", "check", "--output=json", "-f", "qcow2", path]
            report: dict[str, Any] = json.loads(run_command(command, highest_status=3))
        except (VhdtoolError, ValueError) as error:
            return {"filename": path, "check-errors": 1, "why": str(error)}
        return report

    def metadata(self, path: str, kind: str = "vhd") -> int:
        """Take a snapshot of the image's metadata as it is on the disk now; return its number.

        `snapshots` sends it later, which takes longer: a guest may be suspended now.
        """
        with FileStorage(path, direct=True) as storage:
            dump = dump_qcow2_metadata if kind == "qcow2" else dump_metadata
            self._snapshots.append(dump(storage))
            return len(self._snapshots) - 1

    def snapshots(self, numbers: list[int]) -> list[dict[str, Any]]:
        """The snapshots with these numbers, which are dropped here."""
        taken = [self._snapshots[number] for number in numbers]
        for number in numbers:
            self._snapshots[number] = {}
        return taken

    def fetch(self, path: str) -> dict[str, Any]:
        """The data of a sparse file: its size and [(offset, base64 of zlib)] of each extent."""
        extents = []
        with open(path, "rb") as stream:
            fd = stream.fileno()
            size = os.fstat(fd).st_size
            offset = 0
            while offset < size:
                try:
                    offset = os.lseek(fd, offset, os.SEEK_DATA)
                except OSError:
                    break
                end = os.lseek(fd, offset, os.SEEK_HOLE)
                data = os.pread(fd, end - offset, offset)
                extents.append([offset, base64.b64encode(zlib.compress(data, 1)).decode()])
                offset += len(data)
        return {"size": size, "extents": extents}


def cluster_for(block: int) -> int:
    """Bytes of a qcow2 cluster such that one L2 table maps a block of the load, or less.

    Then each new block changes the L1 table, which is read at opening, as a VHD's BAT is.
    """
    cluster = 512
    while (cluster * 2) ** 2 // 8 <= block and cluster < 64 << 10:
        cluster *= 2
    return cluster
