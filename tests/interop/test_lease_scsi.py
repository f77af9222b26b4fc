"""Leases that a LUN keeps (SCSI-3 persistent reservations), on a real target: tgtd."""

import errno
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.lease_daemons import MIB, Target
from tests.support.lease_suite import AnyLease, LeaseSuite, Pair, gone_owner
from tests.support.shim_process import ROOT, run
from tests.support.shims import BLOCK, Shim, owner
from vhdtool.errors import ActivationRefused, LeaseLost
from vhdtool.image.check.image import check
from vhdtool.image.create.empty import create_dynamic
from vhdtool.lab.hosts.agent_images import ImageOperations
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.external import ExternalLease
from vhdtool.leases.owner import Owner
from vhdtool.leases.scsi_reservation import ReservationBackend
from vhdtool.storage import StorageError, scsi
from vhdtool.storage.iscsi import IscsiStorage
from vhdtool.storage.scsi import Lun, Session
from vhdtool.tapdisk.claim import LEASE_CHECK

HOSTS = {"a": "127.0.0.1", "b": "localhost"}


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with Target(tmp_path) as target:
        yield target


def lun_of(target: Target, side: str) -> Lun:
    return Lun.parse(target.url(HOSTS[side]))


def lease_of(target: Target, side: str, path: Path, who: Owner) -> ExternalLease:
    return ExternalLease(EpochRecord(path), who, ReservationBackend(lun_of(target, side), who))


def clear(target: Target) -> None:
    """Another initiator clears all reservations of the LUN."""
    session = Session.of(Lun.parse(target.url("127.1")))
    for action, key, new in ((6, 0, 7), (3, 7, 0)):
        cdb = struct.pack(">BBBxxxxHx", 0x5F, action, 0, 24)
        session.command("clear", cdb, send=struct.pack(">QQ8x", key, new))
    session.close()


class TestReservation(LeaseSuite):
    """The suite of all leases; what is taken away is preempted by another initiator."""

    @pytest.fixture(autouse=True)
    def _remember(self, target: Target) -> None:
        self.target = target

    def make(self, path: Path, who: Owner, side: str) -> AnyLease:
        return lease_of(self.target, side, path, who)

    def spelled(self) -> str:
        return f"scsi:{self.target.url()}"

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}

    def test_force_preempts_and_the_storage_fences_the_owner(self, pair: Pair) -> None:
        a, b = pair
        a.acquire()
        with IscsiStorage(lun_of(self.target, "a")) as mine:
            mine.pwrite(0, b"a" * 512)
            assert b.acquire(force_epoch=1) == 2
            for _ in range(2):
                with pytest.raises(StorageError, match="has it reserved"):
                    mine.pwrite(0, b"x" * 512)
        with IscsiStorage(lun_of(self.target, "b")) as others:
            assert others.pread(0, 512) == b"a" * 512

    def test_the_proof_that_one_holder_is_gone_preempts_no_other(self, path: Path) -> None:
        """Each host has a record of its own here; that of a still names a dead process."""
        others = path.with_name("at-b")
        dead = self.make(path, gone_owner(), "a")
        dead.acquire()
        live = self.make(others, Owner.here("b"), "b")
        with pytest.raises(ActivationRefused, match="--force 0"):
            live.acquire()
        live.acquire(force_epoch=0)
        again = self.make(path, Owner.here("a"), "a")
        with pytest.raises(ActivationRefused, match="is reserved by another initiator"):
            again.acquire()
        live.check()
        for lease in (dead, live, again):
            lease.close()

    def test_no_access_before_the_other_side_has_released(self, pair: Pair) -> None:
        a, b = pair
        a.acquire()
        with IscsiStorage(lun_of(self.target, "b")) as others:
            for work in (lambda: others.pread(0, 512), lambda: others.pwrite(0, bytes(512))):
                with pytest.raises(StorageError, match="has it reserved") as caught:
                    work()
                assert caught.value.errno == errno.EBUSY
            a.release()
            b.acquire()
            others.pwrite(0, b"b" * 512)
            assert others.pread(0, 512) == b"b" * 512

    def test_the_last_release_logs_out(self, pair: Pair) -> None:
        a, _ = pair
        a.acquire()
        with IscsiStorage(lun_of(self.target, "a")):
            assert self.target.sessions() == 1
        assert self.target.sessions() == 1
        a.release()
        assert self.target.sessions() == 0

    def test_a_refused_one_leaves_nothing_behind(self, pair: Pair) -> None:
        a, b = pair
        a.acquire()
        for _ in range(3):
            with pytest.raises(ActivationRefused, match="is reserved by another initiator"):
                b.acquire()
        assert self.target.sessions() == 1
        a.check()


class TestCleared(TestReservation):
    """The same, where another initiator clears the reservation and has none itself."""

    def take_away(self, pair: Pair) -> None:
        clear(self.target)


def device_shim(target: Target, folder: Path, size: int) -> Shim:
    """A shim over an image on the LUN, with the LUN's lease, at host a."""
    lun = lun_of(target, "a")
    return Shim(
        "a",
        cast(Any, None),  # the storage is made anew at each activation
        folder,
        size=size,
        wrap=lambda _: IscsiStorage(lun),
        lease=lambda path: lease_of(target, "a", path, owner("a")),
    )


@pytest.fixture
def size(target: Target) -> int:
    with IscsiStorage(lun_of(target, "a")) as storage:
        create_dynamic(storage, 32 * MIB, overwrite=True)
    return 32 * MIB


def test_a_shim_on_a_lun_writes_reads_and_closes(target: Target, tmp_path: Path, size: int) -> None:
    shim = device_shim(target, tmp_path, size).activated()
    shim.put(0, 1)
    shim.put(7, 2, length=BLOCK)
    shim.write_zeroes(7 * BLOCK, 512)
    shim.flush()
    assert shim.read(7 * BLOCK, 1024) == bytes(512) + b"\2" * 512
    shim.deactivate()
    assert target.sessions() == 0
    shim.activate()
    assert shim.read(0, 1024) == b"\1" * 512 + bytes(512)
    shim.detach()
    with IscsiStorage(lun_of(target, "b")) as storage:
        assert check(storage).exit_code == 0


def test_a_target_that_is_killed_fences(target: Target, tmp_path: Path, size: int) -> None:
    shim = device_shim(target, tmp_path, size).activated()
    shim.put(0, 1)
    before = target.backing.read_bytes()
    target.kill()
    with pytest.raises((OSError, StorageError), match="the session is lost"):
        shim.write(8 * MIB, memoryview(bytes(512)))
    time.sleep(LEASE_CHECK)  # The next request checks the lease.
    with pytest.raises(OSError, match="the session is lost"):
        shim.read(0, 512)
    assert shim.state == "fenced"
    shim.deactivate()
    shim.detach()
    assert target.backing.read_bytes() == before


def test_a_target_that_does_not_answer_is_a_lost_lease_in_time(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library counts in whole seconds, so this takes three."""
    monkeypatch.setattr(scsi, "TIMEOUT", 1)
    lease = lease_of(target, "a", tmp_path / "record", owner("a"))
    lease.acquire()
    target.process.send_signal(signal.SIGSTOP)
    with pytest.raises(LeaseLost, match="the session is lost: the target does not answer"):
        lease.check()
    target.process.send_signal(signal.SIGCONT)
    with pytest.raises(LeaseLost, match="the session is lost"):
        lease.check()
    # The target has kept the reservation of the session that broke, which is nobody else's.
    lease.release()
    other = lease_of(target, "b", tmp_path / "record", owner("b"))
    with pytest.raises(ActivationRefused, match="--force 2"):
        other.acquire()
    assert lease.acquire() == 3
    lease.check()
    lease.release()
    assert other.acquire() == 5
    for one in (other, lease):
        one.release()
        one.close()


def test_a_target_that_is_not_there_is_a_clear_refusal(tmp_path: Path) -> None:
    nowhere = "iscsi://127.0.0.1:1/iqn.2026-01.test:none/1"
    backend = ReservationBackend(Lun.parse(nowhere), owner("a"))
    lease = ExternalLease(EpochRecord(tmp_path / "record"), owner("a"), backend)
    # No word of --force, which is for holders that are dead.
    refusal = f"{nowhere}: cannot log in: Connection refused$"
    with pytest.raises(ActivationRefused, match=refusal):
        lease.acquire()
    assert lease.holder() is None
    lease.close()


def test_who_is_not_let_in_is_told_why(target: Target) -> None:
    for url, why in (
        (target.url().replace("vhdtool:disk", "vhdtool:none"), "Target not found"),
        (target.url()[:-1] + "7", "LOGICAL_UNIT_NOT_SUPPORTED"),
        ("iscsi://nowhere.invalid/t/1", "cannot log in: .*[Nn]ame"),
    ):
        with pytest.raises(StorageError, match=why):
            IscsiStorage(Lun.parse(url))


def test_a_lun_is_a_storage_that_keeps_its_length(target: Target) -> None:
    with IscsiStorage(lun_of(target, "a")) as disk:
        assert disk.size() == 64 * MIB
        data = bytes(range(256)) * 2 * 1500
        disk.pwrite(512, data)
        assert disk.pread(512, len(data)) == data
        assert disk.pread(700, 1000) == data[188:1188]
        disk.zero(1024, 512)
        assert disk.pread(512, 2048) == data[:512] + bytes(512) + data[1024:2048]
        disk.flush()
        disk.truncate(512)
        assert disk.size() == 64 * MIB
        assert disk.pread(64 * MIB - 512, 4096) == bytes(512)
        assert disk.pread(64 * MIB, 512) == b""
        with pytest.raises(StorageError, match="No space"):
            disk.pwrite(64 * MIB, bytes(512))
        with pytest.raises(ValueError, match="a write of 5 bytes"):
            disk.pwrite(0, b"short")
    with pytest.raises(StorageError):
        disk.pread(0, 512)
    assert target.backing.read_bytes()[512 : 512 + 512] == data[:512]


def test_the_lab_sees_whether_a_lun_keeps_others_out(target: Target, tmp_path: Path) -> None:
    agent = ImageOperations()
    assert agent.peek(target.url("localhost")) == 512
    lease = lease_of(target, "a", tmp_path / "record", owner("a"))
    lease.acquire()
    with pytest.raises(StorageError, match="has it reserved"):
        agent.peek(target.url("localhost"))
    lease.release()
    lease.close()


def serving(target: Target, folder: Path, name: str, *more: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "vhdtool", "serve", target.url(), "--socket", str(folder / name)]
    return subprocess.Popen(
        [*words, *more], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_serve_of_a_lun_as_a_person_uses_it(target: Target, tmp_path: Path, size: int) -> None:
    lease = ["--lease", f"scsi:{target.url()}", "--record", str(tmp_path / "record")]
    first = serving(target, tmp_path, "s", *lease)
    assert first.stdout is not None
    uri = first.stdout.readline().strip()
    run("qemu-io", "-f", "raw", uri, "-c", "write -P 7 3M 1M", "-c", "read -P 7 3M 1M")
    second = serving(target, tmp_path, "t", *lease)
    _, said = second.communicate(timeout=30)
    assert (second.returncode, said.count("\n")) == (1, 1)
    assert "another initiator has it reserved" in said
    first.terminate()
    assert first.communicate(timeout=30) == ("", "")
    assert first.returncode == 0
    bare = serving(target, tmp_path, "u")
    _, said = bare.communicate(timeout=30)
    assert (bare.returncode, said.count("\n")) == (1, 1)
    assert "--record" in said
    with IscsiStorage(lun_of(target, "b")) as storage:
        assert check(storage).exit_code == 0
    assert run("qemu-img", "info", str(target.backing)).count("32 MiB") == 1
    assert size == 32 * MIB
