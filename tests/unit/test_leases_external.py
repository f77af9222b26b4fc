"""The lease of a backend: the backend decides, the record counts, and in the right order."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.lease_suite import AnyLease, LeaseSuite, Pair, gone_owner, history
from vhdtool.errors import ActivationRefused, LeaseLost
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.external import ExternalLease, HeldByAnother
from vhdtool.leases.lease import EpochLease
from vhdtool.leases.owner import Owner
from vhdtool.storage import StorageError


class World:
    """The lock manager behind all backends of a test."""

    holder: "FakeBackend | None" = None


class FakeBackend:
    """Holds the one lease of a world, and records what it was asked."""

    kind = "world"

    def __init__(self, world: World, forcible: bool = True) -> None:
        self.world, self.forcible = world, forcible
        self.asked: list[Any] = []

    def acquire(self, force: bool, gone: Owner | None) -> None:
        self.asked.append(("acquire", force, gone is not None))
        if self.world.holder is not None and not (force or gone):
            raise HeldByAnother("the world has given it to another")
        self.world.holder = self

    def check(self) -> None:
        if self.world.holder is not self:
            raise LeaseLost("the world has given it to another")

    def release(self) -> None:
        self.asked.append("release")
        if self.world.holder is self:
            self.world.holder = None

    def close(self) -> None:
        self.asked.append("close")


class TestExternal(LeaseSuite):
    """The suite of all leases."""

    @pytest.fixture(autouse=True)
    def _world(self) -> None:
        self.world = World()

    def make(self, path: Path, who: Owner, side: str) -> AnyLease:
        return ExternalLease(EpochRecord(path), who, FakeBackend(self.world))

    def test_a_process_that_is_killed_loses_the_lease(self, path: Path) -> None:
        """The backend gets the proof, and decides by itself."""
        gone = self.make(path, gone_owner(), "a")
        gone.acquire()
        gone.close()
        here = self.make(path, Owner.here("b"), "b")
        assert here.acquire() == 2
        assert backend_of(here).asked == [("acquire", False, True)]
        here.close()

    def test_a_refusal_names_the_owner_and_the_way_out(self, pair: Pair) -> None:
        a, b = pair
        a.acquire()
        with pytest.raises(ActivationRefused) as caught:
            b.acquire()
        assert str(caught.value).endswith(
            "disk.vhd.lease: the world has given it to another; by the record it is a (pid 1) at "
            "epoch 1; if that is certainly dead, --force 1"
        )
        backend_of(b).forcible = False
        with pytest.raises(ActivationRefused, match=r"at epoch 1$"):
            b.acquire()

    def test_an_owner_unknown_to_the_lock_manager_is_not_evicted(
        self, pair: Pair, path: Path
    ) -> None:
        """As when one host was started without --lease, or by tap-ctl."""
        plain = EpochLease(EpochRecord(path), Owner("c", 1, 1, "boot of c"))
        plain.acquire()
        a, _ = pair
        with pytest.raises(ActivationRefused, match="by the epoch record alone there"):
            a.acquire()
        assert backend_of(a).asked == []
        plain.check()
        assert a.acquire(force_epoch=1) == 2
        with pytest.raises(ActivationRefused, match="is held by a"):
            plain.acquire()
        plain.close()

    def test_a_record_that_cannot_be_written_gives_the_lease_back(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, b = pair

        def full(*args: object) -> None:
            raise StorageError("record", "write", 28)

        with monkeypatch.context() as patch:
            patch.setattr(a.record, "write", full)
            with pytest.raises(StorageError):
                a.acquire()
        assert backend_of(a).asked[-1] == "release"
        assert b.acquire() == 1

    def test_a_release_is_recorded_before_the_lease_is_given_up(
        self, pair: Pair, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, _ = pair
        a.acquire()
        told: list[tuple[int, str, str]] = []
        monkeypatch.setattr(backend_of(a), "release", lambda: told.extend(history(path)))
        a.release()
        assert told[-1] == (2, "release", "a")

    def test_a_replaced_epoch_record_fences_under_a_lock_manager(
        self, pair: Pair, path: Path
    ) -> None:
        a, _ = pair
        a.acquire()
        path.unlink()
        with pytest.raises(LeaseLost, match="removed or replaced"):
            a.check()
        backend_of(a).check()


def backend_of(lease: AnyLease) -> FakeBackend:
    assert isinstance(lease, ExternalLease)
    assert isinstance(lease.backend, FakeBackend)
    return lease.backend
