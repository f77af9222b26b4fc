"""qcow2 behind the shim: served through qemu-nbd, with the states and the lease of every image."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.test_shim_serve import qemu_io, refused, served
from tests.support.shim_process import MIB, ShimProcess, run
from tests.support.waiting import wait_for
from vhdtool.errors import CorruptImage, UnsupportedImage
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.image.disk.open import kind_of
from vhdtool.image.metadata.dump import dump_qcow2_metadata
from vhdtool.image.metadata.qcow2 import MAGIC, read_header
from vhdtool.storage import FileStorage

SIZE = 64 * MIB


@pytest.fixture(autouse=True)
def own_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shim that is killed leaves its private directory behind."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "d.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", str(path), "64M")
    return path


def sound(path: Path) -> None:
    assert "No errors" in run("qemu-img", "check", str(path))


def children(pid: int) -> list[str]:
    """Command lines of the processes that a shim started."""
    out = run("ps", "-o", "args=", "--ppid", str(pid), check=False)
    return [line for line in out.splitlines() if "qemu-nbd" in line]


def test_a_person_serves_a_qcow2_image(image: Path, tmp_path: Path) -> None:
    with served(image, "--socket", str(tmp_path / "s")) as (uri, process):
        qemu_io(uri, "write -P 5 3M 1M", "write -P 6 63M 1M", "write -z 3M 64k", "flush")
        qemu_io(uri, "read -P 0 3M 64k", "read -P 5 3200k 64k", "read -P 0 0 1M")
        assert "is held by" in refused(str(image), "--socket", str(tmp_path / "t"))
        (child,) = children(process.pid)
        folder = Path(child.split("--socket=")[1].split()[0]).parent
        # Not even while it serves: a kill could not take it away.
        assert not folder.exists()
    assert children(process.pid) == []
    qemu_io_file(image, "read -P 5 3200k 64k", "read -P 6 63M 1M")
    sound(image)


def qemu_io_file(path: Path, *commands: str) -> None:
    words = [part for command in commands for part in ("-c", command)]
    assert "failed" not in run("qemu-io", "-f", "qcow2", str(path), *words)


def test_our_reading_of_the_tables_is_that_of_qemu_img(image: Path) -> None:
    qemu_io_file(image, "write 0 4k", "write 5M 100k", "write 63M 1M", "write -z 10M 1M")
    with FileStorage(image) as storage:
        header = read_header(storage)
        dump = dump_qcow2_metadata(storage)
    assert (header.size, header.cluster) == (SIZE, 4096)
    theirs = {}
    for line in run("qemu-img", "map", str(image)).splitlines()[1:]:
        start, length, at, _ = (int(word, 16) if word[:2] == "0x" else 0 for word in line.split())
        for offset in range(0, int(line.split()[1], 16), 4096):
            theirs[(int(line.split()[0], 16) + offset) // 4096] = at + offset
        assert length is not None
        assert start is not None
    assert dump["bat"] == {str(cluster): offset // 512 for cluster, offset in theirs.items()}


def test_a_dump_of_a_growing_image_covers_its_blocks(image: Path) -> None:
    """QEMU writes a cluster between the first look at the file and the look at its tables."""
    qemu_io_file(image, "write 0 4k")

    first = image.stat().st_size

    class Growing(FileStorage):
        def size(self) -> int:
            found = super().size()
            if found == first:
                qemu_io_file(image, "write 5M 100k")
            return found

    with Growing(image) as storage:
        dump = dump_qcow2_metadata(storage)
    assert image.stat().st_size > first
    assert dump["file_size"] >= 512 * max(dump["bat"].values()) + 4096


def test_what_the_file_is_shows_at_its_end_before_its_beginning(tmp_path: Path) -> None:
    """The first sectors of a fixed VHD, or of a raw disk, are the guest's to write."""
    fixed = tmp_path / "fixed.vhd"
    create_fixed(fixed, 8 * MIB)
    with open(fixed, "r+b") as stream:
        stream.write(b"QFI\xfb\0\0\0\3")
    with FileStorage(fixed) as storage:
        assert storage.pread(0, 4) == MAGIC
    assert kind_of(fixed) == "vhd"
    dynamic = tmp_path / "dynamic.vhd"
    create_dynamic(dynamic, 8 * MIB)
    assert kind_of(dynamic) == "vhd"


def test_a_raw_disk_is_never_guessed_and_a_format_can_be_forced(
    image: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(8 * MIB))
    assert "--format raw" in refused(str(raw), "--socket", str(tmp_path / "s"))
    for options in (("--format", "raw"), ("--raw",)):
        with served(raw, "--socket", str(tmp_path / "s"), *options) as (uri, _):
            qemu_io(uri, "write -P 5 0 1M")
    assert "not a VHD" in refused(str(image), "--socket", str(tmp_path / "s"), "--format", "vhd")
    assert "not a qcow2" in refused(str(raw), "--socket", str(tmp_path / "s"), "--format", "qcow2")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["-b", "other.qcow2", "-F", "qcow2"], "a backing file"),
        (["-o", "data_file=other.raw"], "another file"),
        (["-o", "extended_l2=on,cluster_size=64k"], "subclusters"),
    ],
)
def test_an_image_that_names_other_files_is_refused(
    tmp_path: Path, options: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A data file is made where qemu-img runs.
    monkeypatch.chdir(tmp_path)
    run("qemu-img", "create", "-q", "-f", "qcow2", str(tmp_path / "other.qcow2"), "64M")
    path = tmp_path / "d.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "64M")
    assert what in refused(str(path), "--socket", str(tmp_path / "s"))
    with FileStorage(path) as storage, pytest.raises(UnsupportedImage):
        read_header(storage)


def test_a_damaged_header_is_refused(image: Path) -> None:
    qemu_io_file(image, "write 0 4k", "write 5M 4k")
    good = image.read_bytes()
    for damage in (b"\0\0\0\0", good[:4] + b"\0\0\0\x09", good[:40] + b"\xff" * 8):
        image.write_bytes(damage + good[len(damage) :])
        with FileStorage(image) as storage, pytest.raises(CorruptImage):
            read_header(storage)


def test_a_killed_shim_ends_qemu_and_keeps_flushed_data(image: Path, tmp_path: Path) -> None:
    with served_shim(tmp_path, image) as shim:
        shim.do("activate")
        qemu_io(shim.uri, "write -P 5 3M 64k", "flush", "write -P 6 9M 64k")
        (child,) = children(shim.process.pid)
        shim.process.kill()
        shim.process.wait()
        wait_for(lambda: child not in run("ps", "-eo", "args="))
    qemu_io_file(image, "read -P 5 3M 64k")
    sound_or_leaks = subprocess.run(["qemu-img", "check", str(image)], check=False).returncode
    assert sound_or_leaks in (0, 3)


def served_shim(folder: Path, image: Path, *arguments: str) -> ShimProcess:
    """A shim with the image attached, and nothing read."""
    folder.mkdir(exist_ok=True)
    shim = ShimProcess(folder, *arguments)
    shim.do("attach", path=str(image), size=SIZE, format="qcow2")
    return shim


def test_a_qemu_that_knows_no_lease_is_kept_out_and_keeps_us_out(
    image: Path, tmp_path: Path
) -> None:
    place = str(tmp_path / "s")
    with subprocess.Popen(["qemu-io", str(image)], stdin=subprocess.PIPE, text=True) as other:
        wait_for(lambda: "lock" in refused_or_served(image, place))
        other.communicate("q\n")
    with served(image, "--socket", place):
        assert "lock" in run("qemu-io", "-c", "read 0 4k", str(image), check=False)


def refused_or_served(image: Path, place: str) -> str:
    """What `serve` says in its first second; it is ended then."""
    words = [sys.executable, "-m", "vhdtool", "serve", str(image), "--socket", place]
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            return process.communicate(timeout=1)[1]
        except subprocess.TimeoutExpired:
            process.terminate()
            return process.communicate(timeout=20)[1]


def test_a_symbolic_link_is_not_followed_where_that_is_asked_for(
    image: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.qcow2"
    link.symlink_to(image)
    with served(link, "--socket", str(tmp_path / "s")) as (uri, _):
        qemu_io(uri, "write -P 5 3M 64k")
    refused(str(link), "--socket", str(tmp_path / "s"), "--no-follow")
    sound(image)


def test_a_qemu_nbd_that_dies_is_an_error_and_no_hang(image: Path, tmp_path: Path) -> None:
    with served_shim(tmp_path / "a", image) as shim:
        shim.do("activate")
        qemu_io(shim.uri, "write -P 5 3M 64k", "flush")
        out = run("ps", "-o", "pid=", "--ppid", str(shim.process.pid)).split()
        (child,) = [pid for pid in out if "qemu-nbd" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(int(child), signal.SIGKILL)
        said = run("qemu-io", "-f", "raw", "-c", "read 3M 4k", shim.uri, check=False)
        assert "read failed" in said
        with pytest.raises(AssertionError, match="reach the NBD server"):
            shim.do("deactivate")
        with pytest.raises(AssertionError, match="reach the NBD server"):
            shim.do("detach")
        assert shim.do("status")["state"] == "detached"
        shim.do("attach", path=str(image), size=SIZE, format="qcow2")
        shim.do("activate")
        qemu_io(shim.uri, "read -P 5 3M 64k")
        shim.do("detach")
        assert "Traceback" not in shim.log()
    sound(image)


def test_a_standby_serves_nothing_and_leaves_the_file_alone(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    with served_shim(tmp_path / "a", image) as shim:
        assert shim.do("open")["state"] == "standby"
        said = run("qemu-io", "-f", "raw", "-c", "read 0 4k", shim.uri, check=False)
        assert "read failed" in said
        shim.do("detach")
    assert image.read_bytes() == before


def test_pause_and_unpause_hand_the_image_over(image: Path, tmp_path: Path) -> None:
    with served_shim(tmp_path / "a", image) as one, served_shim(tmp_path / "b", image) as other:
        one.do("activate")
        qemu_io(one.uri, "write -P 5 3M 64k")
        with pytest.raises(AssertionError, match="is held by"):
            other.do("activate")
        one.do("pause")
        other.do("activate")
        qemu_io(other.uri, "read -P 5 3M 64k", "write -P 6 9M 64k")
        other.do("deactivate")
        one.do("unpause")
        qemu_io(one.uri, "read -P 6 9M 64k")
        one.do("detach")
        other.do("detach")
    sound(image)


def test_guard_off_two_writers_lose_what_one_of_them_wrote(image: Path, tmp_path: Path) -> None:
    """The bug, in qcow2: an L1 table that was read too early is written back."""
    with (
        served_shim(tmp_path / "a", image, "--faithful") as one,
        served_shim(tmp_path / "b", image, "--faithful") as other,
    ):
        one.do("open")
        other.do("open")
        qemu_io(one.uri, "write -P 5 3M 64k", "flush")
        qemu_io(other.uri, "write -P 6 9M 64k", "flush")
        one.do("detach")
        other.do("detach")
    lost = [
        command
        for command in ("read -P 5 3M 64k", "read -P 6 9M 64k")
        if "failed" in run("qemu-io", "-f", "qcow2", "-c", command, str(image), check=False)
    ]
    assert lost


def test_a_reopen_for_each_request_is_refused(image: Path, tmp_path: Path) -> None:
    with served_shim(tmp_path / "a", image) as shim:
        with pytest.raises(AssertionError, match="a reopen for each request"):
            shim.do("open", mode="each")
        shim.do("detach")


def test_without_qemu_nbd_one_line_says_what_to_install(image: Path, tmp_path: Path) -> None:
    words = ["-m", "vhdtool", "serve", str(image), "--socket", str(tmp_path / "s")]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "qemu-utils" in done.stderr
    assert len(done.stderr.splitlines()) == 1
