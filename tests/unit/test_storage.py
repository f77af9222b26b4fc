"""The same promises from every storage, and the faults that tests order."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.faulty_storage import FaultyStorage, fail_after
from tests.support.recording_storage import RecordingStorage, replay
from tests.support.shims import in_thread
from vhdtool.errors import ImageExists, StateError
from vhdtool.storage import FileStorage, MemoryStorage, Storage, StorageError
from vhdtool.storage.base import BorrowedStorage, ReadOnlyStorage


@pytest.fixture(params=["file", "direct", "memory", "recording"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made: Storage = MemoryStorage()
    if request.param == "recording":
        made = RecordingStorage(made)
    elif request.param != "memory":
        made = FileStorage(tmp_path / "disk", create=True, direct=request.param == "direct")
    yield made
    made.close()


def test_a_gap_reads_as_zeros_and_the_end_is_short(storage: Storage) -> None:
    storage.pwrite(1024, b"x" * 512)
    assert storage.size() == 1536
    assert storage.pread(512, 1024) == bytes(512) + b"x" * 512
    assert storage.pread(1024, 4096) == b"x" * 512
    assert storage.pread(4096, 512) == b""


def test_reads_may_be_unaligned(storage: Storage) -> None:
    storage.pwrite(0, bytes(range(256)) * 8)
    assert storage.pread(1, 3) == b"\x01\x02\x03"
    assert storage.pread(511, 2) == b"\xff\x00"
    assert storage.pread(2047, 100) == b"\xff"


def test_zero_clears_extends_and_never_cuts(storage: Storage) -> None:
    storage.pwrite(0, b"y" * 8192)
    storage.zero(512, 1024)
    assert storage.pread(0, 2048) == b"y" * 512 + bytes(1024) + b"y" * 512
    assert storage.size() == 8192
    storage.zero(7680, 1024)
    assert storage.size() == 8704
    assert storage.pread(7680, 1024) == bytes(1024)
    storage.zero(0, 0)


def test_truncate_cuts_and_what_grows_again_is_zero(storage: Storage) -> None:
    storage.pwrite(0, b"z" * 8192)
    storage.truncate(1000)
    storage.truncate(8192)
    assert storage.pread(0, 8192) == b"z" * 1000 + bytes(7192)


def test_large_transfers_are_whole(storage: Storage) -> None:
    data = os.urandom(1 << 20) * 5 + b"q" * 512
    storage.pwrite(512, data)
    storage.flush()
    assert storage.pread(512, len(data)) == data


def test_all_are_storages(storage: Storage) -> None:
    assert isinstance(storage, Storage)


@given(st.lists(st.tuples(st.sampled_from("wzt"), st.integers(0, 20000), st.integers(0, 9000))))
def test_memory_behaves_like_one_bytearray(steps: list[tuple[str, int, int]]) -> None:
    memory, model = MemoryStorage(), bytearray()
    for number, (kind, offset, length) in enumerate(steps):
        if kind == "t":
            memory.truncate(offset)
            model = model[:offset].ljust(offset, b"\0")
        elif length:
            if kind == "w":
                data = bytes([number % 255 + 1]) * length
                memory.pwrite(offset, data)
            else:
                data = bytes(length)
                memory.zero(offset, length)
            model = model.ljust(offset, b"\0")
            model[offset : offset + length] = data
    assert memory.getvalue() == bytes(model)
    assert memory.copy().getvalue() == bytes(model)


def test_memory_is_sparse() -> None:
    memory = MemoryStorage()
    memory.pwrite(1 << 45, b"far")
    memory.zero(0, 1 << 44)
    assert memory.size() == (1 << 45) + 3


def test_file_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"precious")
    for direct in (False, True):
        with pytest.raises(ImageExists, match="exists"):
            FileStorage(path, create=True, direct=direct)
    assert path.read_bytes() == b"precious"
    with FileStorage(path, create=True, overwrite=True) as fresh:
        assert fresh.size() == 0


def test_file_errors_name_file_and_cause(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nothing: cannot open it: No such file") as caught:
        FileStorage(tmp_path / "nothing")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(StorageError, match="neither a file"):
        FileStorage(tmp_path)


def test_file_opened_for_reading_refuses_every_change(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"a" * 1024)
    with FileStorage(path) as disk:
        changes: tuple[Callable[[], object], ...] = (
            lambda: disk.pwrite(0, b"b"),
            lambda: disk.zero(0, 512),
            lambda: disk.truncate(0),
        )
        for change in changes:
            with pytest.raises(StorageError):
                change()
    assert path.read_bytes() == b"a" * 1024


def test_a_direct_write_of_part_of_a_sector_is_refused(tmp_path: Path) -> None:
    with FileStorage(tmp_path / "disk", create=True, direct=True) as disk:
        if disk.direct:
            with pytest.raises(ValueError, match="direct write"):
                disk.pwrite(1, b"x" * 512)


def test_file_zero_makes_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with FileStorage(path, create=True) as disk:
        disk.pwrite(0, b"a" * (1 << 20))
        disk.flush()
        before = path.stat().st_blocks
        disk.zero(0, 1 << 20)
        disk.flush()
    assert path.stat().st_blocks < before


def test_recording_replays_to_the_same_bytes() -> None:
    recorded = RecordingStorage(MemoryStorage())
    recorded.pwrite(0, b"a" * 1000)
    recorded.zero(100, 10)
    recorded.flush()
    recorded.truncate(500)
    recorded.pread(0, 1)
    twin = MemoryStorage()
    replay(recorded.log, twin)
    assert twin.getvalue() == recorded.pread(0, 1000)
    assert [step.kind for step in recorded.log] == ["write", "zero", "flush", "truncate"]
    assert recorded.reads == 2


def test_faulty_fails_when_told_and_tears_the_write() -> None:
    inner = MemoryStorage()
    disk = FaultyStorage(inner, fail_after(1, errno.ENOSPC), torn=3)
    disk.pwrite(0, b"first")
    with pytest.raises(StorageError, match="No space") as caught:
        disk.pwrite(10, b"second")
    assert caught.value.errno == errno.ENOSPC
    assert inner.getvalue() == b"first" + bytes(5) + b"sec"
    assert disk.pread(0, 5) == b"first"


@pytest.mark.parametrize("direct", [False, True])
def test_a_failed_flush_of_the_page_cache_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    failing = [True]

    def flush(fd: int) -> None:
        if failing.pop():
            failing.append(False)
            raise OSError(errno.EIO, "lost")
        failing.append(False)

    with FileStorage(tmp_path / "f", create=True, direct=direct) as disk:
        if disk.direct != direct:
            pytest.skip("no direct I/O here")
        monkeypatch.setattr(os, "fdatasync", flush)
        with pytest.raises(StorageError, match="flush it: Input"):
            disk.flush()
        if direct:
            # What was written had reached the device; only the file's length had not.
            disk.flush()
            return
        for _ in range(2):
            with pytest.raises(StorageError, match="an earlier flush lost data") as caught:
                disk.flush()
            assert caught.value.errno == errno.EIO


def test_a_flush_that_fails_fails_for_all_who_flush_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives the error to one of them."""
    errors: list[OSError] = [OSError(errno.EIO, "lost")]

    def flush(fd: int) -> None:
        error = errors.pop() if errors else None
        time.sleep(0.1)  # The other threads come to flush meanwhile; nothing shows that they have.
        if error is not None:
            raise error

    with FileStorage(tmp_path / "f", create=True) as disk:
        monkeypatch.setattr(os, "fdatasync", flush)
        threads = [in_thread(disk.flush) for _ in range(3)]
        for thread, _ in threads:
            thread.join(10)
        assert [type(outcome[0]) for _, outcome in threads] == [StorageError] * 3


def test_two_threads_may_leave_direct_access_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both learn that it needs a larger alignment, one a moment later."""
    with FileStorage(tmp_path / "f", create=True, direct=True) as disk:
        if not disk.direct:
            pytest.skip("no direct I/O here")
        disk.pwrite(0, b"x" * 512)
        real = os.preadv
        other: list[bytes] = []

        def refused(fd: int, buffers: list[memoryview], offset: int) -> int:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                if not other:
                    other.append(b"")
                    other.append(disk.pread(0, 512))
                raise OSError(errno.EINVAL, "not aligned")
            return real(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", refused)
        assert disk.pread(0, 512) == b"x" * 512
        assert other[1] == b"x" * 512


def test_a_storage_without_capabilities_has_plain_defaults() -> None:
    inner = MemoryStorage(b"a" * 1024)
    disk = FaultyStorage(inner, lambda kind, offset, length: None)
    assert (disk.writable, disk.is_block_device, disk.direct, disk.holds_lock) == (
        True,
        False,
        False,
        False,
    )
    assert disk.fileno() is None
    assert not disk.lock_is_lost()
    disk.check_identity()
    disk.will_need(0, 512)
    disk.discard(0, 512)
    view = bytearray(2048)
    assert disk.readinto(256, memoryview(view)) == 768
    assert view == bytes(256) + b"a" * 512 + bytes(1280)


def test_a_borrowed_storage_leaves_its_owner_open(tmp_path: Path) -> None:
    with FileStorage(tmp_path / "disk", create=True) as file:
        with BorrowedStorage(file) as disk:
            disk.pwrite(0, b"kept")
            disk.flush()
        assert file.pread(0, 4) == b"kept"
        assert disk.is_block_device == file.is_block_device


def test_a_storage_for_reading_refuses_every_change() -> None:
    disk = ReadOnlyStorage()
    with pytest.raises(StateError, match="for reading only"):
        disk.pwrite(0, b"b")
    with pytest.raises(StateError, match="for reading only"):
        disk.zero(0, 1)
    with pytest.raises(StateError, match="for reading only"):
        disk.truncate(0)
    disk.flush()
    disk.close()
