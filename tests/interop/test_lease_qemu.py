"""QEMU's tools and ours keep one another out of an image that is open for writing."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vhdtool
from tests.support.shim_process import ShimProcess, run, serving
from tests.support.waiting import wait_for
from vhdtool.image.create.empty import create_dynamic
from vhdtool.leases.claim import claimed
from vhdtool.storage import StorageError
from vhdtool.storage.image_lock import ImageInUse

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.vhd"
    create_dynamic(path, 64 * MIB, batmap=False)
    return path


@contextmanager
def qemu_nbd(image: Path, *options: str) -> Iterator[int]:
    place = image.with_name("qemu.sock")
    words = ["qemu-nbd", "-f", "vpc", "--persistent", "--shared=0", f"--socket={place}", *options]
    with subprocess.Popen([*words, str(image)]) as process:
        try:
            wait_for(place.exists, 20, process=process)
            # It listens before it has the image.
            run("nbdinfo", "--size", f"nbd+unix:///?socket={place}")
            yield process.pid
        finally:
            process.terminate()


@pytest.mark.parametrize(
    "words",
    [
        ("qemu-img", "convert", "-f", "vpc", "-O", "raw", "{image}", "{image}.raw"),
        ("qemu-io", "-f", "vpc", "-c", "write 0 512", "{image}"),
        ("qemu-img", "resize", "-f", "raw", "{image}", "70M"),
        ("qemu-nbd", "-f", "raw", "--socket={image}.sock", "{image}"),
    ],
)
def test_qemu_is_kept_out_of_a_served_image(image: Path, words: tuple[str, ...]) -> None:
    with ShimProcess(image.parent) as shim:
        shim.activate()
        before = image.read_bytes()
        said = run(*(word.format(image=image) for word in words), check=False)
        assert "lock" in said
        assert image.read_bytes() == before
        assert "file format: vpc" in run("qemu-img", "info", "-U", "-f", "vpc", str(image))
        assert shim.terminate() == 0


def test_we_are_kept_out_of_an_image_that_qemu_writes(image: Path) -> None:
    with qemu_nbd(image) as pid:
        with pytest.raises(ImageInUse, match=rf"qemu-nbd \(pid {pid}\)"):
            vhdtool.open(image, writable=True)
        with ShimProcess(image.parent) as shim:
            shim.do("attach", path=str(image), size=64 * MIB)
            with pytest.raises(AssertionError, match=f"pid {pid}"):
                shim.do("activate")
    with claimed(image):
        pass


def test_a_parent_of_a_served_child_is_not_for_qemu_to_write(image: Path) -> None:
    child = image.with_name("child.vhd")
    vhdtool.snapshot(image, child)
    with serving(child, "--socket", str(image.with_name("s"))):
        said = run("qemu-io", "-f", "vpc", "-c", "write 0 512", str(image), check=False)
        assert 'Failed to get "write" lock' in said
        run("qemu-img", "convert", "-f", "vpc", "-O", "raw", str(image), f"{image}.raw")


def test_many_read_only_servers_and_no_writer(image: Path) -> None:
    first, second = image.with_name("1"), image.with_name("2")
    with (
        serving(image, "--read-only", "--socket", str(first)) as one,
        serving(image, "--read-only", "--socket", str(second), errors=image.with_name("e")) as two,
    ):
        for served in (one, two):
            assert "is_read_only: true" in run("nbdinfo", served.uri)
        said = run("qemu-io", "-f", "vpc", "-c", "write 0 512", str(image), check=False)
        assert 'Failed to get "write" lock' in said
        with pytest.raises(ImageInUse):
            vhdtool.open(image, writable=True)
    assert not Path(f"{image}.lease").exists()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB. Needs root."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder))
    try:
        yield folder
    finally:
        run("umount", str(folder))


def fill(path: Path) -> None:
    """Leaves no space for even one page."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_lease_is_released_on_a_full_file_system(small: Path) -> None:
    create_dynamic(small / "disk.vhd", 64 * MIB)
    with ShimProcess(small) as shim:
        shim.activate()
        fill(small / "filler")
        shim.do("deactivate")
        for _ in range(5):
            shim.do("activate")
            shim.do("deactivate")
        assert shim.terminate() == 0
    with vhdtool.open(small / "disk.vhd", writable=True):
        pass


def test_an_activation_that_could_not_be_released_is_refused(small: Path) -> None:
    create_dynamic(small / "disk.vhd", 64 * MIB)
    with ShimProcess(small) as shim:
        fill(small / "filler")
        shim.do("attach", path=str(small / "disk.vhd"), size=64 * MIB)
        with pytest.raises(AssertionError, match="No space left"):
            shim.do("activate")
        (small / "filler").unlink()
        shim.do("activate")
        assert shim.terminate() == 0


def test_a_block_device_is_opened_exclusively(tmp_path: Path) -> None:
    """So that nobody mounts it meanwhile."""
    if os.geteuid():
        pytest.skip("loop devices need root")
    file = tmp_path / "file"
    file.write_bytes(bytes(16 * MIB))
    try:
        device = run("losetup", "--find", "--show", str(file)).strip()
    except AssertionError:
        pytest.skip("no loop devices here")
    try:
        with claimed(device):
            with pytest.raises(OSError, match="busy"):
                os.open(device, os.O_RDWR | os.O_EXCL)
            with pytest.raises((ImageInUse, StorageError)), claimed(device):
                pass
    finally:
        run("losetup", "--detach", device)
