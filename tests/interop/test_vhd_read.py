"""Images of other programs in ours, and ours in theirs: the same bytes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.real_images import NAMES, real_image
from tests.support.vhd_peers import dissect_raw, libvhdi_raw, qemu_create, qemu_raw, qemu_write, run
from vhdtool.image.chain.info import info
from vhdtool.image.chain.open import open_chain
from vhdtool.image.check.image import check
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage
from vhdtool.vhd.creators import CREATORS, size_for_qemu
from vhdtool.vhd.geometry import NO_GEOMETRY, Geometry

MIB = 1 << 20
WRITES = (
    (0x11, 0, 4096),
    (0x22, 3 * MIB - 512, 1024),
    (0x33, 30 * MIB, 2 * MIB),
    (0x44, 8 * MIB, 8192),
)


def ours(path: Path) -> bytes:
    with open_chain(path) as reader:
        return reader.read(0, reader.size)


def verdict(path: Path) -> int:
    with FileStorage(path) as storage:
        return check(storage).exit_code


@pytest.mark.parametrize("size", ["33M", "40M", "41943552"])
@pytest.mark.parametrize("force", ["on", "off"])
def test_qemus_images_read_the_same_everywhere(tmp_path: Path, size: str, force: str) -> None:
    path = tmp_path / "q.vhd"
    qemu_create(path, size, f"force_size={force}")
    assert verdict(path) == 0
    qemu_write(path, *WRITES)
    assert verdict(path) == 0
    data = ours(path)
    assert data == qemu_raw(path, tmp_path / "q.raw")
    assert data == libvhdi_raw(path, tmp_path / "mnt")
    # dissect takes the size from the geometry's field of a forced size too.
    assert dissect_raw(path)[: len(data)] == data
    assert info(path)["size_for_qemu"] == len(data)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("creator", [*CREATORS, b"wa\0\0", b"tap ", bytes(4)])
def test_qemu_shows_the_size_that_we_say_it_does(
    tmp_path: Path, creator: bytes, fixed: bool
) -> None:
    path = tmp_path / "image.vhd"
    for geometry in (Geometry.for_size(40 * MIB), Geometry(65535, 16, 255), NO_GEOMETRY):
        (create_fixed if fixed else create_dynamic)(path, 40 * MIB, overwrite=True)
        with FileStorage(path, writable=True) as storage:
            footer = read_metadata(storage).footer
            footer = replace(footer, creator=creator, geometry=geometry)
            storage.pwrite(storage.size() - 512, footer.pack())
            if not fixed:
                storage.pwrite(0, footer.pack())
        shown = json.loads(run("qemu-img", "info", "-f", "vpc", "--output=json", path))
        assert shown["virtual-size"] == size_for_qemu(footer)


@pytest.mark.parametrize("size", [33 * MIB, 41943552])
def test_our_images_read_the_same_everywhere(tmp_path: Path, size: int) -> None:
    path = tmp_path / "ours.vhd"
    create_dynamic(path, size)
    with FileStorage(path, writable=True) as storage:
        disk = DynamicDisk(storage)
        for pattern, offset, length in WRITES:
            disk.write(offset, bytes([pattern]) * length)
        disk.close()
    assert verdict(path) == 0
    data = ours(path)
    model = bytearray(size)
    for pattern, offset, length in WRITES:
        model[offset : offset + length] = bytes([pattern]) * length
    assert data == bytes(model)
    assert data == qemu_raw(path, tmp_path / "ours.raw")
    assert data == libvhdi_raw(path, tmp_path / "mnt")
    assert data == dissect_raw(path)


def test_qemu_may_write_to_our_image_without_a_batmap(tmp_path: Path) -> None:
    path = tmp_path / "ours.vhd"
    create_dynamic(path, 40 * MIB, batmap=False)
    qemu_write(path, *WRITES)
    assert verdict(path) == 0
    assert (
        ours(path) == qemu_raw(path, tmp_path / "ours.raw") == libvhdi_raw(path, tmp_path / "mnt")
    )


def test_qemu_over_our_batmap_loses_nothing_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ours.vhd"
    create_dynamic(path, 40 * MIB)
    qemu_write(path, *WRITES)
    with FileStorage(path) as storage:
        report = check(storage)
    assert report.exit_code == 3
    assert "batmap-overwritten" in [finding.code for finding in report.findings]
    assert ours(path) == qemu_raw(path, tmp_path / "ours.raw")


def test_libvhdi_reads_our_chains(tmp_path: Path) -> None:
    paths = [tmp_path / f"{level}.vhd" for level in range(3)]
    create_dynamic(paths[0], 40 * MIB)
    model = bytearray(40 * MIB)
    for level, path in enumerate(paths):
        if level:
            snapshot(paths[level - 1], path)
        below = open_chain(paths[level - 1]) if level else None
        disk = DynamicDisk(FileStorage(path, writable=True), parent=below)
        for place in (level * 4096, 20 * MIB + level * 8192, (10 + level) * MIB):
            data = bytes([65 + level]) * 12288
            disk.write(place, data)
            model[place : place + len(data)] = data
        disk.close()
        if below is not None:
            below.close()
    assert ours(paths[2]) == bytes(model)
    assert libvhdi_raw(paths[2], tmp_path / "mnt") == bytes(model)


@pytest.mark.parametrize("name", NAMES)
def test_real_images_are_consistent_and_keep_their_size(name: str, tmp_path: Path) -> None:
    path = real_image(name)
    with FileStorage(path) as storage:
        report = check(storage)
    assert report.exit_code == 0
    data = info(path)
    apart = data["size_for_qemu"] != data["virtual_size"]
    assert [one.code for one in report.findings] == ["size-disagrees"] * apart
    assert "unknown" not in data["creator"]
    shown = run("qemu-img", "info", "-f", "vpc", path)
    assert f"({data['size_for_qemu']} bytes)" in shown
    with open_chain(path) as reader:
        sample = min(reader.size, 4 * MIB)
        run(
            "qemu-img",
            "dd",
            "-f",
            "vpc",
            "-O",
            "raw",
            f"if={path}",
            f"of={tmp_path / 'raw'}",
            "bs=1M",
            "count=4",
        )
        assert reader.read(0, sample) == (tmp_path / "raw").read_bytes()
