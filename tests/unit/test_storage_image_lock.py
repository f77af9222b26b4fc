"""Locks on the image: which modes exclude which, and what is said where none can be had."""

import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest

from vhdtool.errors import LeaseLost
from vhdtool.leases import claim
from vhdtool.leases.claim import claimed, locked_file, writer_of
from vhdtool.storage import FileStorage, image_lock
from vhdtool.storage.image_lock import ImageInUse, LockMode, NoLocks, lock_image
from vhdtool.storage.locked_file import ImageFile
from vhdtool.storage.paths import Mount, mount_of

E, V, S, B, R = (
    LockMode.EXCLUSIVE,
    LockMode.SERVED,
    LockMode.SHARED,
    LockMode.BENEATH,
    LockMode.RELINK,
)
TOGETHER = {(V, R), (S, S), (S, B), (S, R)}
"""Every other pair excludes one another."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    return path


@pytest.mark.parametrize("second", LockMode)
@pytest.mark.parametrize("first", LockMode)
def test_which_modes_exclude_which(image: Path, first: LockMode, second: LockMode) -> None:
    with ImageFile(image, first):
        if (first, second) in TOGETHER or (second, first) in TOGETHER:
            ImageFile(image, second).close()
        else:
            with pytest.raises(ImageInUse, match=f"pid {os.getpid()}"):
                ImageFile(image, second)
    with ImageFile(image, second):
        pass


def test_a_reopen_keeps_everybody_out_all_the_time(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody tries before and after each step of the hand-over."""
    old = ImageFile(image, V)
    real = fcntl.fcntl
    tries = []

    def watched(fd: int, command: int, lock: bytes) -> object:
        if command != fcntl.F_OFD_SETLK:
            return real(fd, command, lock)
        for moment in ("before", "after"):
            if moment == "after":
                real(fd, command, lock)
            with monkeypatch.context() as plain:
                plain.setattr(fcntl, "fcntl", real)
                with pytest.raises(ImageInUse):
                    ImageFile(image, E)
            tries.append(moment)
        return lock

    monkeypatch.setattr(fcntl, "fcntl", watched)
    new = old.reopened()
    monkeypatch.undo()
    old.close()
    assert len(tries) > 8
    with pytest.raises(ImageInUse):
        ImageFile(image, S)
    new.close()
    ImageFile(image, E).close()


def test_a_reopen_after_a_loss_takes_nothing_back(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = ImageFile(image, V)
    everything = struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(old.fileno(), fcntl.F_OFD_SETLK, everything)
    assert not old.lock_is_lost()
    with ImageFile(image, S):
        assert old.lock_is_lost()
        monkeypatch.setattr(image_lock, "MOVE_TIMEOUT", 0.05)
        with pytest.raises(LeaseLost, match="the lock on the image is lost"):
            old.reopened()
    old.close()


@pytest.mark.parametrize("change", ["unlink", "rename", "replace"])
def test_a_file_that_lost_its_name_is_noticed(image: Path, change: str) -> None:
    with ImageFile(image, V) as one:
        one.check_identity()
        if change == "unlink":
            image.unlink()
        elif change == "rename":
            image.rename(image.with_name("other"))
        else:
            other = image.with_name("other")
            other.write_bytes(b"")
            other.rename(image)
        with pytest.raises(LeaseLost, match=str(image)):
            one.check_identity()
        with pytest.raises(LeaseLost):
            one.reopened()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_promises_nothing(
    image: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unable(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", unable)
    with pytest.raises(NoLocks, match="has no locks"):
        locked_file(image, V)
    # A command goes by the epoch record alone then, and says so.
    with claimed(image):
        assert "has no locks" in caplog.text


def test_locks_that_exclude_nobody_are_found_out(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "locks_exclude", lambda path, fd: False)
    with pytest.raises(NoLocks, match="two descriptors"):
        locked_file(image, V)


@pytest.mark.parametrize("option", ["nolock", "local_lock=all", "local_lock=posix"])
def test_a_mount_that_keeps_locks_to_itself_is_named(
    image: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "mount_of", lambda path: Mount("nfs", frozenset({"rw", option})))
    with pytest.raises(NoLocks, match=option):
        locked_file(image, V)
    locked_file(image, S).close()


def test_a_mount_is_found_by_its_device(image: Path, tmp_path: Path) -> None:
    device = os.stat(image).st_dev
    table = tmp_path / "mountinfo"
    table.write_text(
        "20 1 0:1 / / rw - ext4 /dev/none rw\n"
        f"21 20 {os.major(device)}:{os.minor(device)} / /srv rw,noatime shared:1 - nfs4 "
        "server:/srv rw,vers=4.2,local_lock=none\n"
    )
    mount = mount_of(image, str(table))
    assert mount is not None
    assert mount.is_nfs
    assert "vers=4.2" in mount.options
    assert mount.local_locks_option == ""
    assert mount_of(tmp_path / "nowhere", str(table)) is None


def test_a_look_at_the_holder_takes_no_lock(image: Path) -> None:
    assert writer_of(image) == ""
    with ImageFile(image, V):
        assert f"(pid {os.getpid()})" in writer_of(image)
    with ImageFile(image, S):
        assert writer_of(image) == ""


def test_a_reader_may_lock_what_it_cannot_write(image: Path) -> None:
    with FileStorage(image) as reader:
        lock_image(reader.fileno(), reader.name, S)
        with pytest.raises(ImageInUse):
            ImageFile(image, E)


def test_a_file_that_is_replaced_before_it_is_locked_is_not_used(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock would exclude nobody: the others have the new file."""

    def replaced(*arguments: object) -> None:
        lock_image(*arguments)  # type: ignore[arg-type]
        other = image.with_name("other")
        other.write_bytes(bytes(512))
        other.rename(image)

    monkeypatch.setattr("vhdtool.storage.locked_file.lock_image", replaced)
    with pytest.raises(ImageInUse, match="try again"):
        ImageFile(image, V)
