"""Who is proven to be gone: this process's kernel, an earlier boot of this machine, nobody else."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vhdtool.errors import ActivationRefused
from vhdtool.leases import lease as leases
from vhdtool.leases import owner as owners
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.lease import EpochLease
from vhdtool.leases.owner import Owner
from vhdtool.machine import UNKNOWN_BOOT


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Owner:
    """A holder on this machine, ten seconds before its kernel was started."""
    monkeypatch.setattr(owners, "machine_id", lambda: "this machine")
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    here = Owner.here("alpha")
    return replace(
        here, boot=f"another-boot/{'/'.join(here.boot.split('/')[1:])}", since=booted - 10
    )


def test_a_holder_of_an_earlier_boot_of_this_machine_is_gone(before: Owner) -> None:
    assert before.is_gone()


@pytest.mark.parametrize(
    "other",
    [
        {"machine": "another"},
        {"machine": ""},
        {"node": "another"},
        {"since": 0},
        # A copy of this machine: it took the lease while this kernel ran.
        {"since": time.time()},
        {"boot": UNKNOWN_BOOT},
    ],
)
def test_what_may_be_another_machine_is_not_proven_gone(
    before: Owner, other: dict[str, object]
) -> None:
    assert not replace(before, **other).is_gone()  # type: ignore[arg-type]


def test_a_machine_that_was_started_again_gets_its_image_back(
    before: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "disk.vhd.lease"
    first = EpochLease(EpochRecord(record), before)
    monkeypatch.setattr(Owner, "now", lambda self: self)
    assert first.acquire() == 1
    first.close()
    second = EpochLease(EpochRecord(record), Owner.here("alpha"))
    assert second.acquire() == 2
    second.close()


def test_two_hosts_of_one_name_on_nfs_are_always_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFSv4 server takes them for one client: it gives both the lock."""
    monkeypatch.setattr(leases, "on_nfs", lambda path: True)
    monkeypatch.setattr(owners, "machine_id", lambda: "this machine")
    record = tmp_path / "disk.vhd.lease"
    theirs = replace(Owner.here("kvm1"), machine="a clone", boot="theirs")
    other = EpochLease(EpochRecord(record), theirs)
    assert other.acquire() == 1
    other.close()
    ours = EpochLease(EpochRecord(record), Owner.here("kvm1"))
    for force in (None, 1):
        with pytest.raises(ActivationRefused, match=f"called {os.uname().nodename}"):
            ours.acquire(force)
    monkeypatch.setattr(leases, "on_nfs", lambda path: False)
    assert ours.acquire(1) == 2
    ours.close()


def test_a_forced_lease_is_seen_in_the_old_file_too(tmp_path: Path) -> None:
    """On NFS the old holder's look at the path may be answered from its client's cache."""
    record = tmp_path / "disk.vhd.lease"
    first = EpochLease(EpochRecord(record), Owner("a", 1, 1, "boot of a"))
    second = EpochLease(EpochRecord(record), Owner("b", 1, 1, "boot of b"))
    assert first.acquire() == 1
    assert second.acquire(force_epoch=1) == 2
    raw = first.record.raw()
    newest, held = first.record.parse(raw)
    assert newest == 2
    assert held is not None
    assert held["host"] == "b"
    first.close()
    second.close()
