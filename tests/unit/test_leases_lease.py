"""The lease: never two holders, taken over only from the proven dead or by the operator's word."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lease_suite import LeaseSuite, Pair, gone_owner
from tests.support.shims import owner
from vhdtool.errors import ActivationRefused, LeaseLost, VhdtoolError
from vhdtool.leases import owner as owners
from vhdtool.leases import shared_file
from vhdtool.leases.epoch_record import ALIVE, MUTEX, EpochRecord
from vhdtool.leases.lease import EpochLease, UnguardedLease, owner_of
from vhdtool.leases.owner import Owner
from vhdtool.machine import UNKNOWN_BOOT, boot_id, process_start
from vhdtool.storage import StorageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.vhd.lease"


@pytest.fixture
def pair(path: Path) -> Iterator[Pair]:
    """Leases of two hosts on the same record."""
    a, b = EpochLease(EpochRecord(path), owner("a")), EpochLease(EpochRecord(path), owner("b"))
    yield a, b
    a.close()
    b.close()


class TestEpochLease(LeaseSuite):
    """The epoch record alone."""


def test_a_process_that_is_gone_loses_the_lease(path: Path) -> None:
    gone = EpochLease(EpochRecord(path), gone_owner())
    gone.acquire()
    gone.close()
    here = EpochLease(EpochRecord(path), Owner.here("b"))
    assert here.holder() == (gone.owner, 1)
    assert here.acquire() == 2
    here.check()
    here.close()


def test_a_process_that_lives_keeps_the_lease(path: Path) -> None:
    living = EpochLease(EpochRecord(path), Owner.here("a"))
    living.acquire()
    other = EpochLease(EpochRecord(path), Owner.here("b"))
    with pytest.raises(ActivationRefused, match="held by a"):
        other.acquire()
    living.close()
    other.close()


def test_a_new_process_with_the_owners_pid_is_not_the_owner() -> None:
    start = process_start(os.getpid())
    assert start is not None
    assert not Owner("a", os.getpid(), start, boot_id()).is_gone()
    assert Owner("a", os.getpid(), start - 1, boot_id()).is_gone()


def test_nothing_is_proven_about_another_boot_or_namespace() -> None:
    assert not Owner("a", 999999, 1, "another boot/4026531836").is_gone()
    assert not owner("a").is_gone()


def test_nothing_is_proven_where_proc_shows_another_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = gone_owner()
    assert gone.is_gone()
    monkeypatch.setattr(os, "readlink", lambda path: "1")
    assert boot_id() == UNKNOWN_BOOT
    assert not gone.is_gone()
    assert not Owner("a", 999999, 1, UNKNOWN_BOOT).is_gone()


@pytest.mark.parametrize("error", [FileNotFoundError(), OSError(24, "Too many open files")])
def test_a_process_that_proc_does_not_show_is_not_gone(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    alive, boot = Owner.here("a"), boot_id()

    def fails(self: Path) -> str:
        raise error

    monkeypatch.setattr(owners, "boot_id", lambda: boot)
    monkeypatch.setattr(Path, "read_text", fails)
    assert not alive.is_gone()


def test_absurd_numbers_in_the_record_name_nobody_who_is_gone() -> None:
    held = {"host": 7, "pid": 1 << 70, "start": "x", "boot": boot_id(), "epoch": 3}
    assert not owner_of(held).is_gone()


def test_force_names_the_epoch_that_it_overrides(pair: Pair) -> None:
    a, b = pair
    a.acquire()
    with pytest.raises(ActivationRefused, match="--force 1"):
        b.acquire()
    with pytest.raises(ActivationRefused, match="names another epoch"):
        b.acquire(force_epoch=2)
    # Although a's process, which may be stopped, still has its lock.
    assert b.acquire(force_epoch=1) == 2
    with pytest.raises(LeaseLost, match="forced"):
        a.check()
    b.check()
    # Nor does that lock stand in the way of whoever comes next.
    assert b.release() == 3
    assert b.acquire() == 4


def test_a_forced_record_keeps_its_history_and_its_mode(pair: Pair, path: Path) -> None:
    a, b = pair
    a.append("open")
    a.acquire()
    b.acquire(force_epoch=2)
    whats = [json.loads(path.read_bytes()[n * 512 :][:512])["what"] for n in (1, 2, 3)]
    assert whats == ["open", "activate", "activate"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    with pytest.raises(ActivationRefused):
        EpochLease(EpochRecord(path), owner("c")).acquire()


def test_a_lock_without_a_holder_is_respected(pair: Pair) -> None:
    a, b = pair
    assert a.record.try_lock(ALIVE)
    with pytest.raises(ActivationRefused, match="lslocks"):
        b.acquire()
    with pytest.raises(ActivationRefused, match="lslocks"):
        b.acquire(force_epoch=0)


def test_a_failed_acquisition_leaves_no_lock(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair

    def full(*args: object) -> None:
        raise StorageError("record", "write", 28)

    with monkeypatch.context() as patch:
        patch.setattr(a.record, "write", full)
        with pytest.raises(StorageError):
            a.acquire()
    assert b.acquire() == 1


def test_a_release_that_failed_keeps_nobody_from_his_own_lease(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair

    def full(*_: object) -> None:
        raise StorageError("record", "write", errno.ENOSPC)

    assert a.acquire() == 1
    with monkeypatch.context() as patch:
        patch.setattr(a.record, "write", full)
        with pytest.raises(StorageError):
            a.release()
    with pytest.raises(ActivationRefused, match="held by a"):
        b.acquire()
    assert a.acquire() == 2
    assert a.release() == 3
    assert b.acquire() == 4


def test_a_mutex_that_is_never_freed_is_a_refusal_in_time(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    monkeypatch.setattr(shared_file, "MUTEX_PATIENCE", 0.05)
    assert a.record.try_lock(MUTEX)
    with pytest.raises(ActivationRefused, match="lslocks"):
        b.acquire()


@pytest.mark.parametrize(
    "damage",
    [
        b"garbage",
        b"[]",
        b"3",
        b'{"epoch": 1}',
        b'{"epoch": "1", "holder": null}',
        b'{"epoch": true, "holder": null}',
        b'{"epoch": -1, "holder": null}',
        b'{"epoch": 1, "holder": [1]}',
        b"\xff\xfe",
        b"[" * 400,
    ],
)
def test_a_damaged_record_is_a_clear_refusal(path: Path, damage: bytes) -> None:
    path.write_bytes(damage.ljust(512, b"\n"))
    one = EpochLease(EpochRecord(path), owner("a"))
    for operation in (one.acquire, one.check, one.release, one.holder):
        with pytest.raises(LeaseLost, match="damaged"):
            operation()
    assert path.read_bytes() == damage.ljust(512, b"\n")
    one.close()


def test_a_record_that_was_replaced_is_a_lost_lease(pair: Pair, path: Path) -> None:
    a, b = pair
    a.acquire()
    path.unlink()
    with pytest.raises(LeaseLost, match="removed or replaced"):
        a.check()
    assert b.acquire() == 1
    with pytest.raises(LeaseLost, match="removed or replaced"):
        a.check()
    # a's release goes to the file that is there; both held an epoch 1, yet b keeps its lease.
    assert a.release() == 2
    b.check()


def test_a_vanished_directory_is_an_error_not_a_lease(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    one = EpochLease(EpochRecord(folder / "l"), owner("a"))
    one.acquire()
    folder.rename(tmp_path / "away")
    with pytest.raises(LeaseLost):
        one.check()
    with pytest.raises(StorageError):
        one.release()
    with pytest.raises(StorageError):
        EpochRecord(folder / "l")
    one.close()


def test_no_symbolic_link_is_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        EpochRecord(path).read()
    assert not (tmp_path / "elsewhere").exists()


def test_a_look_makes_no_record(pair: Pair, path: Path) -> None:
    assert pair[0].holder() is None
    assert not path.exists()


def test_the_record_is_private(pair: Pair, path: Path) -> None:
    pair[0].acquire()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_absurd_host_name_is_told(path: Path) -> None:
    one = EpochLease(EpochRecord(path), owner("h" * 600))
    with pytest.raises(VhdtoolError, match="host name too long"):
        one.acquire()
    assert one.holder() is None
    one.close()


def test_guard_off_excludes_nobody_but_appends(path: Path) -> None:
    a = UnguardedLease(EpochRecord(path), owner("a"))
    b = UnguardedLease(EpochRecord(path), owner("b"))
    assert [a.acquire(), b.acquire(), a.append("open"), a.release(), b.release()] == [1, 2, 3, 4, 5]
    a.check()
    assert a.holder() is None
    a.close()
    b.close()


def test_guard_off_does_not_take_a_real_holder_its_lease(path: Path) -> None:
    real = EpochLease(EpochRecord(path), owner("a"))
    unguarded = UnguardedLease(EpochRecord(path), owner("b"))
    real.acquire()
    unguarded.acquire()
    unguarded.release()
    real.check()
    real.close()
    unguarded.close()


def temporary(path: Path, host: str) -> EpochLease:
    return EpochLease(EpochRecord(path, temporary=True), owner(host))


def test_a_temporary_record_is_removed_after_its_release(path: Path) -> None:
    lease = temporary(path, "a")
    for _ in range(2):
        lease.acquire()
        lease.append("open")
        lease.release()
    assert path.exists()
    lease.close()
    assert not path.exists()
    unguarded = UnguardedLease(EpochRecord(path, temporary=True), owner("a"))
    unguarded.acquire()
    unguarded.release()
    unguarded.close()
    assert os.listdir(path.parent) == []


def test_a_temporary_record_without_events_is_removed(path: Path) -> None:
    record = EpochRecord(path, temporary=True)
    with record.mutex():
        assert path.exists()
    record.close()
    assert not path.exists()


def test_a_temporary_record_that_names_a_holder_stays(path: Path) -> None:
    lease = temporary(path, "a")
    lease.acquire()
    lease.close()
    assert EpochRecord(path).read()[0] == 1


def test_a_record_that_was_there_before_stays(path: Path) -> None:
    """An operator's `--force 1` of then must not fit a later lease."""
    crashed = EpochLease(EpochRecord(path), gone_owner())
    crashed.acquire()
    crashed.close()
    lease = temporary(path, "b")
    assert lease.acquire() == 2
    lease.release()
    lease.close()
    assert EpochRecord(path).read() == (3, None)


def test_a_temporary_record_with_anothers_event_stays(path: Path) -> None:
    lease, other = temporary(path, "a"), EpochLease(EpochRecord(path), owner("b"))
    lease.acquire()
    other.append("open")
    lease.release()
    lease.close()
    assert EpochRecord(path).read() == (3, None)
    other.close()


def test_a_record_is_made_anew_after_its_removal(path: Path) -> None:
    first, second = temporary(path, "a"), temporary(path, "b")
    first.acquire()
    with pytest.raises(ActivationRefused):
        second.acquire()
    first.release()
    first.close()
    # It has the removed file open.
    assert second.acquire() == 1
    second.check()
    with pytest.raises(ActivationRefused, match="held by b"):
        first.acquire()
    second.release()
    second.close()
    assert not path.exists()
    first.close()


def test_a_former_holder_has_lost_a_record_that_was_removed(path: Path) -> None:
    stopped = EpochLease(EpochRecord(path), owner("a"))
    stopped.acquire()
    path.unlink()
    other = temporary(path, "b")
    other.acquire()
    other.release()
    other.close()
    with pytest.raises(LeaseLost, match="removed or replaced"):
        stopped.check()
    stopped.close()
