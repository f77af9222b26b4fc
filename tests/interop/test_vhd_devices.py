"""Images on block devices, as storage managers keep them in volumes: the footer is at the end."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vhdtool
from tests.support.vhd_peers import run as tool
from vhdtool.cli.main import run
from vhdtool.cli.vhd_util.main import run as vhd_util
from vhdtool.storage import FileStorage
from vhdtool.storage.image_lock import ImageInUse
from vhdtool.vhd.footer import Footer

MIB = 1 << 20
Device = Callable[[str, int], str]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made: list[str] = []

    def make(name: str, size: int) -> str:
        (tmp_path / name).write_bytes(b"")
        os.truncate(tmp_path / name, size)
        made.append(tool("losetup", "--find", "--show", tmp_path / name).strip())
        return made[-1]

    yield make
    for one in made:
        tool("losetup", "--detach", one)
        Path(f"{one}.lease").unlink(missing_ok=True)


def sound(path: str, size: int) -> None:
    """Consistent, and both footers say the same."""
    report = vhdtool.check(path)
    assert [one.message for each in report.reports for one in each.findings] == []
    with open(path, "rb") as file:
        first = file.read(512)
        file.seek(-512, os.SEEK_END)
        assert file.read(512) == first
    assert Footer.unpack(first).current_size == size


def test_a_loop_device_is_a_second_name_of_its_file(device: Device, tmp_path: Path) -> None:
    name = device("base", 8 * MIB)
    assert vhd_util(["create", "-n", name, "-s", "4"]) == 0
    with vhdtool.open(name, writable=True):
        assert run(["fill", str(tmp_path / "base")]) == 1
    # Nor is the file written while the kernel has a device over it that could write.
    with pytest.raises(ImageInUse, match="losetup -d"):
        vhdtool.open(tmp_path / "base", writable=True)
    assert vhd_util(["fill", "-n", name]) == 0


def test_zeros_go_anywhere_on_a_device(device: Device) -> None:
    name = device("base", MIB)
    with FileStorage(name, writable=True) as storage:
        storage.pwrite(0, b"x" * 8192)
        storage.zero(443, 512)
        storage.zero(4096, 512)
        assert storage.pread(0, 8192).count(b"x") == 8192 - 1024


def test_a_life_in_volumes(device: Device) -> None:
    base, journal = device("base", 64 * MIB), device("journal", 16 * MIB)
    assert vhd_util(["create", "-n", base, "-s", "40"]) == 0
    sound(base, 40 * MIB)
    data = os.urandom(3 * MIB)
    with vhdtool.open(base, writable=True) as image:
        image.write(5 * MIB, data)
    sound(base, 40 * MIB)
    # Larger tables: the block in their way moves.
    assert vhd_util(["resize", "-n", base, "-s", "4000", "-j", journal]) == 0
    with vhdtool.open(base) as image:
        assert image.read(5 * MIB, 3 * MIB) == data
    with open(base, "rb") as file:
        file.seek(-512, os.SEEK_END)
        assert Footer.unpack(file.read()).current_size == 4000 * MIB
    assert vhd_util(["modify", "-n", base, "-z"]) == 0
    sound(base, 4000 * MIB)


def test_a_child_and_its_parent(device: Device) -> None:
    base, child = device("base", 32 * MIB), device("child", 32 * MIB)
    assert run(["create", "--force", base, "20m"]) == 0
    assert vhd_util(["snapshot", "-n", child, "-p", base]) == 0
    with vhdtool.open(child, writable=True) as image:
        image.write(MIB, b"c" * 70_000)
    assert vhd_util(["coalesce", "-n", child]) == 0
    sound(base, 20 * MIB)
    assert vhd_util(["set", "-n", child, "-f", "hidden", "-v", "1"]) == 0
    with vhdtool.open(base) as image:
        assert image.read(MIB, 70_000) == b"c" * 70_000


def test_a_volume_that_is_full_keeps_its_footer(device: Device) -> None:
    small = device("small", 5 * MIB)
    assert run(["create", "--force", small, "20m"]) == 0
    image = vhdtool.open(small, writable=True)
    image.write(0, b"x" * 2 * MIB)
    with pytest.raises(vhdtool.VhdtoolError):
        image.write(4 * MIB, b"y" * 4 * MIB)
    image.close()
    assert vhdtool.check(small, "unclean").exit_code in (0, 3)
    # There is no room to move the block that is in the way of larger tables.
    assert vhd_util(["resize", "-n", small, "-s", "200000", "-j", f"{small}.j"]) != 0
    with vhdtool.open(small) as image:
        assert image.read(0, 4096) == b"x" * 4096


def test_conversion_to_a_device_that_held_other_data(device: Device, tmp_path: Path) -> None:
    target, raw = device("target", 16 * MIB), tmp_path / "raw"
    raw.write_bytes(bytes(MIB) + os.urandom(65_536) + bytes(7 * MIB - 65_536))
    for words, back in (["-O", "vhd"], "vpc"), (["-O", "raw"], "raw"):
        with open(target, "r+b") as file:
            file.write(b"old!" * 4 * MIB)
        assert run(["convert", "--force", str(raw), target, *words]) == 0
        if back == "vpc":
            sound(target, 8 * MIB)
            with vhdtool.open(target) as image:
                assert image.read(0, 9 * MIB) == raw.read_bytes()
        else:
            with open(target, "rb") as file:
                assert file.read(8 * MIB) == raw.read_bytes()


def test_a_volume_too_small_for_the_child_stays_as_it_is(device: Device) -> None:
    base, child = device("base", 6 * MIB), device("child", 32 * MIB)
    assert run(["create", "--force", base, "20m"]) == 0
    assert vhd_util(["snapshot", "-n", child, "-p", base]) == 0
    with vhdtool.open(child, writable=True) as image:
        image.write(0, b"c" * 8 * MIB)
    with open(base, "rb") as file:
        before = file.read()
    assert vhd_util(["coalesce", "-n", child]) == errno.ENOSPC
    with open(base, "rb") as file:
        assert file.read() == before
    assert vhd_util(["fill", "-n", base]) != 0
    sound(base, 20 * MIB)


def test_a_volume_that_is_filled_has_its_footer_at_its_end(device: Device) -> None:
    base = device("base", 32 * MIB)
    assert run(["create", "--force", base, "20m"]) == 0
    with vhdtool.open(base, writable=True) as image:
        image.write(MIB, b"x" * 1000)
    assert vhd_util(["fill", "-n", base]) == 0
    sound(base, 20 * MIB)
    with open(base, "rb") as file:
        footers = file.read().count(b"conectix")
    assert footers == 2, "one at the start, one at the end of the device"
