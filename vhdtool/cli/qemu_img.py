"""Conversion to and from qcow2 and VHDX: qemu-img accesses the VHD through our NBD server."""

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vhdtool.cli.output import progress_bar
from vhdtool.cli.signals import uninterrupted
from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.image.chain.layers import Reader
from vhdtool.image.create.convert import require_not_a_parent
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.journal.new_file import new_file, new_path
from vhdtool.image.journal.transaction import require_replaceable
from vhdtool.nbd.backend import Backend
from vhdtool.nbd.server import NbdServer
from vhdtool.ranges import DataRange, merge_data
from vhdtool.storage.base import BorrowedStorage


class ChainExport(Backend):
    """NBD back end of a chain, padded with zeros to whole sectors; calls `show` with progress."""

    read_only = True
    can_extents = True

    def __init__(self, reader: Reader, show: Callable[[int], None]) -> None:
        self.reader = reader
        self.show = show

    def export_size(self) -> int:
        return -(-self.reader.size // 512) * 512

    def read(self, offset: int, length: int) -> bytes:
        self.show(offset + length)
        return self.reader.read(offset, length).ljust(length, b"\0")

    def extents(self, offset: int, length: int, most: int) -> list[DataRange]:
        self.show(offset)
        return merge_data(self.reader.data_ranges(offset, offset + length), most)

    def flush(self) -> None:
        """Do nothing: the export is read-only."""


class NewImage(Backend):
    """NBD back end of a new dynamic image to be written; calls `show` with progress."""

    def __init__(self, disk: DynamicDisk, show: Callable[[int], None]) -> None:
        self.disk = disk
        self.show = show

    def export_size(self) -> int:
        return self.disk.size

    def read(self, offset: int, length: int) -> bytes:
        return self.disk.read(offset, length)

    def write(self, offset: int, data: memoryview) -> None:
        self.show(offset + len(data))
        self.disk.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self.show(offset + length)
        self.disk.write_zeroes(offset, length)

    def flush(self) -> None:
        self.disk.flush()


def qemu_img(image: str, *arguments: str) -> str:
    """Run qemu-img and return its standard output.

    Raises VhdtoolError with the name of `image` and the last line of standard error.
    """
    child: subprocess.Popen[str] | None = None
    try:
        with uninterrupted():
            child = subprocess.Popen(
                ["qemu-img", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        out, err = child.communicate()
    except FileNotFoundError:
        raise VhdtoolError("qcow2 and VHDX need qemu-img, which is not installed") from None
    finally:
        # A surviving child would write to a file that the caller removes.
        if child is not None:
            with child:
                child.kill()
    if child.returncode:
        lines = err.strip().splitlines() or [f"exit code {child.returncode}"]
        raise VhdtoolError(f"{image}: {lines[-1]}")
    return out


def virtual_size(path: str, kind: str) -> int:
    """The virtual size in bytes of an image of format `kind`, by qemu-img."""
    data: dict[str, Any] = json.loads(qemu_img(path, "info", "--output=json", "-f", kind, path))
    return int(data["virtual-size"])


def export_through_qemu(reader: Reader, path: str, kind: str, overwrite: bool, quiet: bool) -> int:
    """Convert a chain to a new file of format `kind`; return its virtual size."""
    require_replaceable(path)
    require_not_a_parent([layer.name for layer in reader.layers], path)
    with (
        new_path(path, overwrite) as part,
        tempfile.TemporaryDirectory(prefix="vhdtool-") as folder,
        progress_bar(reader.size, path, quiet) as show,
    ):
        backend = ChainExport(reader, show)
        server = NbdServer(backend, Path(folder) / "nbd")
        try:
            qemu_img(path, "convert", "-f", "raw", "-O", kind, server.uri, part)
        finally:
            server.stop()
    return backend.export_size()


def import_through_qemu(
    source: str,
    kind: str,
    path: str,
    block_bytes: int,
    batmap: bool,
    overwrite: bool,
    quiet: bool,
) -> int:
    """Convert an image of format `kind` to a new dynamic VHD; return its virtual size."""
    from vhdtool.image.create.empty import create_dynamic

    size = virtual_size(source, kind)
    if not size:
        raise UsageError(f"{source}: the image is empty")
    require_replaceable(path)
    with new_file(path, overwrite) as storage:
        create_dynamic(storage, size, block_bytes, batmap)
        disk = DynamicDisk(BorrowedStorage(storage))
        with (
            tempfile.TemporaryDirectory(prefix="vhdtool-") as folder,
            progress_bar(size, path, quiet) as show,
        ):
            server = NbdServer(NewImage(disk, show), Path(folder) / "nbd")
            try:
                same = ("-n", "--target-is-zero")
                qemu_img(source, "convert", *same, "-f", kind, "-O", "raw", source, server.uri)
            finally:
                server.stop()
        disk.close()
    return size
