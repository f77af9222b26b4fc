"""The oracles' reader against libvhdi, QEMU and dissect.hypervisor: the same bytes."""

import struct
from pathlib import Path

import pytest

from tests.support.vhd_peers import dissect_raw, libvhdi_raw, qemu_create, qemu_raw, qemu_write, run
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.oracle.readers.image_view import FileView
from vhdtool.oracle.readers.vhd import SECTOR, DynamicReader, FixedReader, open_reader
from vhdtool.storage import FileStorage

MIB = 1 << 20
WRITES = (
    (0x11, 0, 4096),
    (0x22, 3 * MIB - 512, 1024),
    (0x33, 30 * MIB, 2 * MIB),
    (0x44, 8 * MIB + 7 * 512, 8192),
)


def ours(path: Path) -> bytes:
    """The whole disk as the oracles' reader shows it."""
    with FileView(path) as view:
        reader = open_reader(view)
        disk = bytearray(reader.disk_sectors * SECTOR)
        for sector, data in reader.chunks():
            disk[sector * SECTOR : sector * SECTOR + len(data)] = data
    return bytes(disk)


@pytest.mark.parametrize("size", ["33M", "41943552"])
def test_images_of_qemu(size: str, tmp_path: Path) -> None:
    path = tmp_path / "q.vhd"
    qemu_create(path, size, "force_size=on")
    qemu_write(path, *WRITES)
    data = ours(path)
    assert data == qemu_raw(path, tmp_path / "q.raw")
    assert data == libvhdi_raw(path, tmp_path / "mnt")
    assert data == dissect_raw(path)[: len(data)]


@pytest.mark.parametrize("block", [512 << 10, 2 * MIB])
def test_images_of_the_shim_with_few_present_sectors(block: int, tmp_path: Path) -> None:
    path = tmp_path / "ours.vhd"
    create_dynamic(path, 33 * MIB + 512, block)
    with FileStorage(path, writable=True) as storage:
        disk = DynamicDisk(storage)
        for pattern, offset, length in WRITES:
            disk.write(offset, bytes([pattern]) * length)
        disk.close()
    data = ours(path)
    for pattern, offset, length in WRITES:
        assert data[offset : offset + length] == bytes([pattern]) * length
    assert data == libvhdi_raw(path, tmp_path / "mnt")
    assert data == qemu_raw(path, tmp_path / "ours.raw")
    assert data == dissect_raw(path)


def test_a_clear_bit_reads_as_zeros_as_in_libvhdi(tmp_path: Path) -> None:
    path = tmp_path / "q.vhd"
    qemu_create(path, "33M", "force_size=on")
    qemu_write(path, *WRITES)
    with FileView(path) as view:
        reader = open_reader(view)
        assert isinstance(reader, DynamicReader)
        at = reader.blocks[0] * SECTOR
    with open(path, "r+b") as file:
        file.seek(at)
        # The first eight sectors: libvhdi reads bits byte by byte.
        file.write(b"\0")
    data = ours(path)
    assert data[:4096] == bytes(4096)
    assert data == libvhdi_raw(path, tmp_path / "mnt")
    assert qemu_raw(path, tmp_path / "q.raw")[:4096] == b"\x11" * 4096


def test_blocks_that_share_their_space_read_as_they_lie(tmp_path: Path) -> None:
    """What two hosts leave behind that allocated at one place."""
    path = tmp_path / "q.vhd"
    qemu_create(path, "33M", "force_size=on")
    qemu_write(path, *WRITES)
    with FileView(path) as view:
        reader = open_reader(view)
        assert isinstance(reader, DynamicReader)
        table, first = reader.bat_offset, reader.blocks[0]
    with open(path, "r+b") as file:
        file.seek(table + 4 * 10)
        file.write(struct.pack(">I", first))
    data = ours(path)
    assert data[20 * MIB : 22 * MIB] == data[: 2 * MIB]
    assert data == libvhdi_raw(path, tmp_path / "mnt")


def test_fixed_images(tmp_path: Path) -> None:
    path = tmp_path / "fixed.vhd"
    run("qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size", path, "8M")
    qemu_write(path, (0x55, MIB, 4096), (0x66, 8 * MIB - 512, 512))
    with FileView(path) as view:
        assert isinstance(open_reader(view), FixedReader)
    data = ours(path)
    assert len(data) == 8 * MIB
    assert data == qemu_raw(path, tmp_path / "fixed.raw")
    assert data == libvhdi_raw(path, tmp_path / "mnt")
