"""The library's other promises: close and threads, trim, reports, repair, salvage, resize."""

import io
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import vhdtool
from tests.support.image_tools import clean
from tests.support.waiting import wait_for
from vhdtool.errors import UsageError
from vhdtool.image.journal.transaction import change_journal_path
from vhdtool.image.journal.undo import Change, write_journal
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage

MIB = 1 << 20


def made(path: Path, *writes: tuple[int, bytes], size: int = 8 * MIB) -> Path:
    vhdtool.create(path, size)
    with vhdtool.open(path, writable=True) as image:
        for offset, data in writes:
            image.write(offset, data)
    return path


# an image that is closed


@pytest.mark.parametrize("writable", [False, True])
def test_a_request_after_close_is_a_closed_error(tmp_path: Path, writable: bool) -> None:
    image = vhdtool.open(made(tmp_path / "a.vhd", (0, b"data")), writable)
    assert not image.closed
    image.close()
    image.close()
    assert image.closed
    requests: list[Callable[[], object]] = [
        lambda: image.read(0, 1),
        lambda: image.readinto(0, bytearray(1)),
        lambda: image.write(0, b"x"),
        lambda: image.write_zeroes(0, 1),
        lambda: image.trim(0, 1),
        lambda: list(image.extents()),
        lambda: list(image.allocated()),
        image.as_file,
        image.flush,
    ]
    for request in requests:
        with pytest.raises(vhdtool.ClosedError, match=r"a\.vhd: is closed"):
            request()


def test_a_closed_salvage_loses_nothing_silently(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", (0, b"data"))
    with vhdtool.salvage(path) as broken:
        assert broken.read(0, 4) == b"data"
    for request in (lambda: broken.read(0, 4), broken.lost, lambda: broken.as_file().read(1)):
        with pytest.raises(vhdtool.ClosedError):
            request()


class Slow(io.BytesIO):
    """Its reads wait for `go` once `begun` is asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.begun, self.go = threading.Event(), threading.Event()
        self.slow = False

    def read(self, size: int | None = -1, /) -> bytes:
        if self.slow:
            self.begun.set()
            assert self.go.wait(10)
        return super().read(size)


def test_close_waits_for_a_request_of_another_thread(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", (0, b"data"))
    file = Slow(path.read_bytes())
    image = vhdtool.open(file)
    file.slow = True
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(image.read, 0, 4)
        assert file.begun.wait(10)
        closing = pool.submit(image.close)

        def refused() -> bool:
            try:
                image.flush()
            except vhdtool.ClosedError:
                return True
            return False

        wait_for(refused, failure="requests still begin")
        assert not closing.done()
        file.go.set()
        assert reading.result() == b"data"
        closing.result()
    assert image.closed


def test_an_image_that_was_not_closed_warns_and_is_closed(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd")

    def leave_open() -> None:
        vhdtool.open(path, writable=True).write(5 * MIB, b"kept")

    with pytest.warns(ResourceWarning, match=r"a\.vhd: an image was never closed"):
        leave_open()
    clean(path)
    with vhdtool.open(path, writable=True) as image:
        assert image.read(5 * MIB, 4) == b"kept"


def test_an_image_that_cannot_be_opened_leaves_nothing(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError, match="has no parent"), vhdtool.open(path) as other:
        vhdtool.open(path, writable=True, parent=other)
    assert set(os.listdir("/proc/self/fd")) == before
    assert os.listdir(tmp_path) == ["a.vhd"]


# threads and processes


def test_threads_read_and_write_one_image(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", size=64 * MIB)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    with vhdtool.open(path, writable=True) as image:

        def work(number: int) -> bytes:
            """Write and read one stripe of each block, and return the stripe of the last."""
            chance, data = random.Random(seed + number), b""
            for block in range(32):
                data = chance.randbytes(4096)
                at = block * 2 * MIB + number * 4096
                image.write(at, data)
                assert image.read(at, 4096) == data
            return data

        with ThreadPoolExecutor(8) as pool:
            stripes = list(pool.map(work, range(8)))
        image.flush()
    clean(path)
    with vhdtool.open(path) as image, ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda number: image.read(62 * MIB + number * 4096, 4096), range(8))
        assert list(found) == stripes


def test_a_forked_child_reads_what_is_not_being_written(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", (0, b"data"))
    code = f"""
import os, vhdtool
def child(image):
    pid = os.fork()
    if not pid:
        try:
            ok = image.read(0, 4) == b"data"
        except vhdtool.UsageError as error:
            ok = "only the process that opened it" not in str(error)
        image.close()
        os._exit(int(ok))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
with vhdtool.open({str(path)!r}) as image:
    print(child(image))
with vhdtool.open({str(path)!r}, writable=True) as image:
    print(child(image))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


def test_an_open_image_is_not_pickled(tmp_path: Path) -> None:
    with vhdtool.open(made(tmp_path / "a.vhd")) as image, pytest.raises(TypeError, match="pickled"):
        pickle.dumps(image)


# writing


@pytest.mark.parametrize("kind", ["dynamic", "fixed", "child"])
def test_zeroes_and_trim_read_as_zeros(tmp_path: Path, kind: str) -> None:
    path, data = tmp_path / "a.vhd", b"\xaa" * (4 * MIB)
    if kind == "child":
        made(tmp_path / "base.vhd", (0, b"\xbb" * (8 * MIB)))
        vhdtool.snapshot(tmp_path / "base.vhd", path)
    else:
        vhdtool.create(path, 8 * MIB, kind)  # type: ignore[arg-type]
    with vhdtool.open(path, writable=True) as image:
        image.write(0, data)
        used = path.stat().st_blocks
        image.write_zeroes(100, MIB)
        image.trim(2 * MIB, 2 * MIB)
        wanted = bytearray(data)
        wanted[100 : 100 + MIB] = bytes(MIB)
        wanted[2 * MIB :] = bytes(2 * MIB)
        assert image.read(0, len(data)) == wanted
        assert path.stat().st_blocks < used
        for call in (image.write_zeroes, image.trim):
            with pytest.raises(UsageError, match="exceed the end of the disk"):
                call(8 * MIB - 1, 2)
            with pytest.raises(UsageError):
                call(0, -1)
    clean(path)


def test_what_a_reader_may_not_do_is_named(tmp_path: Path) -> None:
    with vhdtool.open(made(tmp_path / "a.vhd")) as image:
        for call in (image.write_zeroes, image.trim):
            with pytest.raises(UsageError, match="open for reading only"):
                call(0, 512)
        with pytest.raises(UsageError):
            image.readinto(-1, bytearray(1))


def test_a_range_is_read_into_any_buffer(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", (MIB, b"0123456789"))
    for writable in (False, True):
        with vhdtool.open(path, writable) as image:
            numbers = memoryview(bytearray(16)).cast("I")
            assert image.readinto(MIB, numbers) == 16
            assert numbers.tobytes() == b"0123456789".ljust(16, b"\0")
            tail = bytearray(b"x" * 10)
            assert image.readinto(image.size - 4, tail) == 4
            assert tail == bytes(4) + b"x" * 6
            assert image.readinto(image.size + 4, tail) == 0


def test_the_extents_of_an_image_being_written_are_those_of_now(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd")
    with vhdtool.open(path, writable=True) as image:
        assert [one.offset for one in image.extents()] == [None]
        image.write(4 * MIB, b"x" * 512)
        found = [(one.start, one.length) for one in image.allocated()]
        assert found == [(4 * MIB, 512)]
    assert [(one.start, one.length) for one in vhdtool.map(path) if one.offset is not None] == found
    with pytest.raises(UsageError):
        vhdtool.map(path, -1)


# reports


def test_a_report_has_no_truth_value(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", (0, b"x"))
    report = vhdtool.check(path)
    assert (report.consistent, report.verdict, report.exit_code) == (True, "consistent", 0)
    results = [report, report.reports[0], vhdtool.damage(path), vhdtool.repair(path)]
    for result in results:
        with pytest.raises(TypeError, match="has no truth value"):
            bool(result)
    os.truncate(path, path.stat().st_size - 512)
    report = vhdtool.check(path)
    assert (report.consistent, report.verdict, report.exit_code) == (False, "unclean", 3)
    assert report.as_dict()["verdict"] == "unclean"
    assert {one.severity for one in report.findings} == {"unclean"}


# changes


def test_a_repair_is_previewed_done_and_undone(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", (0, b"x" * MIB))
    os.truncate(path, path.stat().st_size - 512)
    broken = path.read_bytes()
    preview = vhdtool.repair(path, dry_run=True)
    assert (len(preview.changes), preview.journal, preview.report.verdict) == (1, None, "unclean")
    assert path.read_bytes() == broken
    done = vhdtool.repair(path)
    assert (done.changes, done.journal) == (preview.changes, f"{path}.undo")
    assert done.report.consistent
    assert vhdtool.repair(path).changes == []
    vhdtool.undo_repair(path)
    assert path.read_bytes() == broken
    with pytest.raises(vhdtool.ImageExists, match="earlier repair"):
        vhdtool.repair(path)
    assert vhdtool.repair(path, journal=tmp_path / "other").journal == str(tmp_path / "other")


def test_a_lost_header_is_rebuilt(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", (0, b"x" * 2 * MIB), (4 * MIB, b"y" * 4096))
    with pytest.raises(UsageError, match="its header is not damaged"):
        vhdtool.repair(path, rebuild_header=True)
    sound = path.read_bytes()
    path.write_bytes(sound[:512] + bytes(1024) + sound[1536:])
    with pytest.raises(vhdtool.CorruptImage, match="cannot be repaired"):
        vhdtool.repair(path)
    assert vhdtool.repair(path, rebuild_header=True, dry_run=True).journal is None
    assert vhdtool.repair(path, rebuild_header=True).report.consistent
    assert path.read_bytes() == sound


def test_a_repair_undoes_an_interrupted_change_first(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", (0, b"x"))
    before = path.read_bytes()
    with FileStorage(path, writable=True) as storage:
        change = Change("write a byte", 600, b"z")
        write_journal(change_journal_path(path), storage, [change])
        storage.pwrite(600, b"z")
    with pytest.raises(vhdtool.UncleanImage, match="was interrupted"):
        vhdtool.open(path, writable=True)
    assert vhdtool.repair(path, dry_run=True).changes == ["undo an interrupted change"]
    assert vhdtool.repair(path).changes == ["undo an interrupted change"]
    assert path.read_bytes() == before


def test_a_repair_that_cannot_help_raises(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", (0, b"x" * 2 * MIB))
    os.truncate(path, path.stat().st_size - MIB)
    before = path.read_bytes()
    for dry_run in (True, False):
        with pytest.raises(vhdtool.CorruptImage, match="cannot be repaired"):
            vhdtool.repair(path, dry_run=dry_run)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.vhd"]


def test_an_image_in_use_is_not_changed(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd")
    with vhdtool.open(path, writable=True):
        for call in (vhdtool.repair, lambda one: vhdtool.resize(one, 16 * MIB)):
            with pytest.raises(vhdtool.LockedError, match="is in use by"):
                call(path)


def test_what_can_be_trusted_is_salvaged(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", (0, b"a" * 2 * MIB), (4 * MIB, b"b" * 2 * MIB))
    os.truncate(path, path.stat().st_size - MIB)
    with pytest.raises(vhdtool.DamageError):
        vhdtool.open(path)
    with vhdtool.salvage(path) as broken:
        copied, lost = broken.convert(tmp_path / "rescued.vhd")
        assert [type(one) for one in lost] == [vhdtool.Lost]
        assert broken.as_file().read(3) == b"aaa"
        with broken.as_file() as disk:
            assert disk.seek(0, io.SEEK_END) == broken.size
            assert not disk.writable()
    assert copied == 4 * MIB - lost[0].length
    clean(tmp_path / "rescued.vhd")
    result = vhdtool.damage(path)
    assert (result.exit_code, result.lost) == (2, lost)
    assert result.as_dict()["partitions"][0]["damaged"] == lost[0].length
    assert vhdtool.damage(tmp_path / "rescued.vhd").exit_code == 0


def test_an_orphan_is_read_only_on_request(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", *((at * 2 * MIB, bytes([at + 1]) * 2 * MIB) for at in range(4)))
    with FileStorage(path, writable=True) as storage:
        header = read_metadata(storage).header
        assert header is not None
        storage.pwrite(header.bat_offset + 4, b"\xff" * 4)
    with vhdtool.salvage(path) as broken:
        assert len(broken.orphans) == 1
        assert broken.read(2 * MIB, 1) == b"\0"
    with vhdtool.salvage(path, place_orphans=True) as broken:
        assert broken.read(2 * MIB, 1) == b"\2"


@pytest.mark.parametrize("kind", ["dynamic", "fixed", "raw"])
def test_a_disk_is_converted_with_its_progress(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path / "a.vhd", (0, b"a" * 512), (6 * MIB, b"b" * 512))
    seen: list[int] = []
    target = tmp_path / "b"
    size = vhdtool.convert(path, target, kind, progress=seen.append)  # type: ignore[arg-type]
    assert (size, seen == sorted(seen), bool(seen)) == (8 * MIB, True, True)
    with pytest.raises(FileExistsError):
        vhdtool.convert(path, target)
    back = tmp_path / "c.vhd"
    assert vhdtool.convert(target, back, raw_source=kind == "raw") == 8 * MIB
    with vhdtool.open(path) as one, vhdtool.open(back) as other:
        assert one.read(0, one.size) == other.read(0, other.size)


def test_a_new_size_is_returned_and_seen(tmp_path: Path) -> None:
    path = made(tmp_path / "a.vhd", (0, b"a"))
    assert vhdtool.resize(path, 64 * MIB - 1) == 64 * MIB
    assert vhdtool.info(path)["virtual_size"] == 64 * MIB
    with vhdtool.open(path, writable=True) as image:
        image.write(63 * MIB, b"z")
    with pytest.raises(UsageError, match="is in use; shrink the file system first"):
        vhdtool.resize(path, 8 * MIB)
