"""Leases that sanlock keeps, with two real daemons in the places of two hosts.

The whole takes half a minute: a daemon joins its lockspace in 3 s, and looks for 2 s at a lease
of another host before it refuses.
"""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lease_daemons import Sanlock, joined, new_resource, succeeded
from tests.support.lease_suite import AnyLease, LeaseSuite, Pair, history
from tests.support.shim_process import ROOT, ShimProcess
from tests.support.shims import BLOCK, Shim, empty_image, owner
from tests.support.waiting import wait_for
from vhdtool.errors import ActivationRefused, LeaseLost
from vhdtool.image.check.image import check
from vhdtool.leases import sanlock
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.external import ExternalLease
from vhdtool.leases.lease import EpochLease
from vhdtool.leases.owner import Owner
from vhdtool.leases.sanlock import Resource, SanlockBackend
from vhdtool.storage import FileStorage

Daemons = dict[str, Sanlock]
HOST_IDS = itertools.count(3)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def daemons(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    folder = tmp_path_factory.mktemp("hosts")
    with Sanlock(folder / "a", shared, 1) as a, Sanlock(folder / "b", shared, 2) as b:
        joined(shared, [a, b])
        yield {"a": a, "b": b}


@pytest.fixture
def resource(daemons: Daemons, shared: Path, request: pytest.FixtureRequest) -> str:
    """A lease for this test alone."""
    name = f"r{len(list(shared.iterdir()))}"
    return new_resource(daemons["a"], shared / name)


def lease_of(daemon: Sanlock, resource: str, path: Path, who: Owner) -> ExternalLease:
    return ExternalLease(
        EpochRecord(path), who, SanlockBackend(Resource.parse(resource), daemon.run_dir)
    )


class TestSanlock(LeaseSuite):
    """The suite of all leases."""

    @pytest.fixture(autouse=True)
    def _remember(self, daemons: Daemons, resource: str) -> None:
        self.daemons, self.resource = daemons, resource

    def make(self, path: Path, who: Owner, side: str) -> AnyLease:
        return lease_of(self.daemons[side], self.resource, path, who)

    def take_away(self, pair: Pair) -> None:
        """An operator releases it over the daemon, and who holds it is not asked."""
        self.daemons["a"].run("release", "-r", self.resource, "-p", str(os.getpid()))

    def spelled(self) -> str:
        return f"sanlock:{self.resource}"

    def environment(self) -> dict[str, str]:
        return {**self.daemons["a"].env, "PYTHONPATH": str(ROOT)}

    def proven_dead(self, lease: AnyLease) -> None:
        """The daemon sees the end of its client, and then frees the lease on the storage."""

        def acquired() -> bool:
            try:
                lease.acquire()
            except ActivationRefused:
                return False
            return True

        wait_for(acquired)

    def test_sanlock_counts_its_holders(self, pair: Pair) -> None:
        states = []
        for one in pair:
            one.acquire()
            states.append(self.daemons[one.owner.host].run("status"))
            one.release()
        assert f"{self.resource}:1 " in states[0]
        assert f"{self.resource}:2 " in states[1]

    def test_sanlock_takes_nobodys_word_for_a_death(self, pair: Pair) -> None:
        a, b = pair
        a.acquire()
        with pytest.raises(ActivationRefused, match="takes no --force"):
            b.acquire(force_epoch=1)
        a.check()

    def test_the_lease_is_sanlocks_whatever_the_record_says(self, pair: Pair, path: Path) -> None:
        stale = EpochLease(pair[0].record, owner("z"))
        stale.acquire()
        # By another way than sanlock it may live: sanlock knows nothing of it.
        with pytest.raises(ActivationRefused, match="once without --lease, with --force 1"):
            pair[1].acquire()
        stale.check()
        stale.release()
        stale = EpochLease(pair[0].record, owner("z"), {"keeper": "sanlock"})
        stale.acquire()
        assert pair[1].acquire() == 4
        with pytest.raises(LeaseLost):
            stale.check()
        assert history(path)[-1] == (4, "activate", "b")


def test_a_lease_not_made_or_not_joined_is_refused(
    daemons: Daemons, shared: Path, tmp_path: Path
) -> None:
    for text, words in (
        (f"lab:x:{tmp_path / 'none'}", "is not there; `sanlock client init -r"),
        (f"other:x:{shared / 'ids'}", "has not joined the lockspace"),
    ):
        lease = lease_of(daemons["a"], text, tmp_path / "record", owner("a"))
        with pytest.raises(ActivationRefused, match=words):
            lease.acquire()
        assert lease.holder() is None
        lease.close()
    nowhere = SanlockBackend(Resource.parse("lab:x:/x"), tmp_path)
    with pytest.raises(ActivationRefused, match="is sanlock's daemon running"):
        nowhere.acquire(False, None)


def test_a_daemon_that_does_not_answer_fences_in_time(
    daemons: Daemons, resource: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanlock, "TIMEOUT", 0.3)
    lease = lease_of(daemons["a"], resource, tmp_path / "record", owner("a"))
    lease.acquire()
    daemons["a"].process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(LeaseLost, match="does not answer"):
            lease.check()
    finally:
        daemons["a"].process.send_signal(signal.SIGCONT)
    with pytest.raises(LeaseLost):
        lease.check()
    lease.release()
    lease.close()


def test_serve_takes_a_lease_of_sanlock(daemons: Daemons, resource: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "vhdtool", "serve", str(tmp_path / "disk.vhd")]
    words += ["--lease", f"sanlock:{resource}", "--socket"]
    subprocess.run(
        [sys.executable, "-m", "vhdtool", "create", str(tmp_path / "disk.vhd"), "64M"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True,
    )  # fmt: skip
    envs = [{**daemons[side].env, "PYTHONPATH": str(ROOT)} for side in "ab"]
    holder = subprocess.Popen([*words, str(tmp_path / "s")], env=envs[0], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline().startswith(b"nbd+unix")
    other = subprocess.run(
        [*words, str(tmp_path / "t")], env=envs[1], capture_output=True, text=True, check=False
    )
    assert other.returncode == 1
    assert other.stderr.count("\n") == 1
    assert "the lease is held by" in other.stderr
    holder.terminate()
    holder.communicate()
    assert holder.returncode == 0


@pytest.fixture
def third(shared: Path, tmp_path: Path) -> Iterator[Sanlock]:
    """A host whose daemon, or place in the lockspace, does not survive the test."""
    with Sanlock(tmp_path / "c", shared, next(HOST_IDS)) as daemon:
        succeeded(daemon.join())
        yield daemon


def test_a_host_that_cannot_renew_closes_the_image_in_time(
    third: Sanlock, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sanlock says so by TERM. Renewals are due every 2 s here, so this takes 6 s."""
    resource = new_resource(third, shared / "renewed")
    monkeypatch.setenv("SANLOCK_RUN_DIR", str(third.run_dir))
    with ShimProcess(tmp_path, "--lease", f"sanlock:{resource}") as shim:
        shim.activate()
        with open(shared / "ids", "r+b") as ids:
            ids.seek(512 * (third.host_id - 1))
            ids.write(bytes(512))
        assert shim.process.wait(30) == 0, shim.log()
        assert [e["event"] for e in shim.events()][-2:] == ["closed", "detached"]
    with FileStorage(tmp_path / "disk.vhd") as storage:
        assert check(storage).exit_code == 0


def test_a_daemon_that_is_killed_fences_the_shim(
    third: Sanlock, shared: Path, tmp_path: Path
) -> None:
    image = empty_image()
    resource = new_resource(third, shared / "killed")
    lease = lease_of(third, resource, tmp_path / "record", owner("c"))
    shim = Shim("c", image, tmp_path, lease=lambda path: lease).activated()
    shim.put(1, 1)
    before = image.getvalue()
    third.stop()
    with pytest.raises(OSError, match="daemon has ended"):
        shim.put(2, 2, length=BLOCK)
    assert shim.state == "fenced"
    with pytest.raises(OSError, match="fenced"):
        shim.read(0, 512)
    shim.deactivate()
    shim.detach()
    assert image.getvalue() == before
