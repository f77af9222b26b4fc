"""What every lease must do, of whatever backend. A backend's test subclasses `LeaseSuite`."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.shims import BLOCK, SIZE, Shim, empty_image, owner
from vhdtool.errors import ActivationRefused, LeaseLost
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.external import ExternalLease
from vhdtool.leases.lease import EpochLease
from vhdtool.leases.owner import Owner
from vhdtool.machine import boot_id, process_start

AnyLease = EpochLease | ExternalLease
Pair = tuple[AnyLease, AnyLease]


def history(path: Path) -> list[tuple[int, str, str]]:
    """(epoch, what, host) of every entry of the record."""
    raw = path.read_bytes()
    entries = [json.loads(raw[at : at + 512]) for at in range(512, len(raw), 512)]
    return [(entry["epoch"], entry["what"], entry["host"]) for entry in entries]


def gone_owner() -> Owner:
    """A process of this host that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(child.pid)
    assert start is not None
    child.communicate(b"\n")
    return Owner("a", child.pid, start, boot_id())


class LeaseSuite:
    """The tests; `make` and `take_away` are the backend's."""

    def make(self, path: Path, who: Owner, side: str) -> AnyLease:
        """The lease of one host, "a" or "b", on the disk whose record is at `path`."""
        return EpochLease(EpochRecord(path), who)

    def take_away(self, pair: Pair) -> None:
        """Lease a is held, and ends without its holder's doing."""
        pair[1].acquire(force_epoch=pair[0].epoch)

    def ends_with_its_process(self, path: Path) -> Callable[[], None]:
        """Lets a process take lease a; what is returned kills it."""
        code = (
            "import sys; from pathlib import Path\n"
            "from vhdtool.leases.factory import lease_opener\n"
            "from vhdtool.leases.owner import *\n"
            "lease = lease_opener(sys.argv[2] or None, Owner.here('a'), True)(Path(sys.argv[1]))\n"
            "print(lease.acquire(), flush=True); input()"
        )
        words = [sys.executable, "-c", code, str(path), self.spelled()]
        child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment()
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"

        def kill() -> None:
            child.kill()
            child.communicate()

        return kill

    def spelled(self) -> str:
        """Lease a as `--lease` spells it."""
        return ""

    def environment(self) -> dict[str, str] | None:
        """That of a process on host a."""
        return None

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "disk.vhd.lease"

    @pytest.fixture
    def pair(self, path: Path) -> Iterator[Pair]:
        """Leases of two hosts on the same disk."""
        a, b = self.make(path, owner("a"), "a"), self.make(path, owner("b"), "b")
        yield a, b
        for one in (a, b):
            if one.epoch is not None:
                one.release()
            one.close()

    def test_only_one_of_two_hosts_holds_the_lease(self, pair: Pair) -> None:
        a, b = pair
        assert a.acquire() == 1
        with pytest.raises(ActivationRefused, match=r"a \(pid 1\) at epoch 1"):
            b.acquire()
        a.check()
        with pytest.raises(LeaseLost):
            b.check()
        a.release()
        b.acquire()
        b.check()
        with pytest.raises(LeaseLost):
            a.check()

    def test_epochs_rise_over_all_that_happens_on_both_hosts(self, pair: Pair, path: Path) -> None:
        a, b = pair
        done = [b.append("open"), a.acquire(), b.append("open"), a.release(), b.acquire()]
        assert [*done, a.append("open")] == [1, 2, 3, 4, 5, 6]
        assert history(path) == [
            (1, "open", "b"),
            (2, "activate", "a"),
            (3, "open", "b"),
            (4, "release", "a"),
            (5, "activate", "b"),
            (6, "open", "a"),
        ]

    def test_an_open_of_another_host_leaves_the_holder_its_lease(self, pair: Pair) -> None:
        a, b = pair
        a.acquire()
        b.append("open")
        a.check()

    def test_it_goes_to_and_fro(self, pair: Pair) -> None:
        for one in pair * 3:
            one.acquire()
            one.check()
            one.release()

    def test_a_force_that_names_another_epoch_is_refused(self, pair: Pair) -> None:
        a, b = pair
        a.acquire()
        with pytest.raises(ActivationRefused, match="names another epoch"):
            b.acquire(force_epoch=7)
        a.check()

    def test_a_process_that_is_killed_loses_the_lease(self, path: Path) -> None:
        kill = self.ends_with_its_process(path)
        here = self.make(path, Owner.here("b"), "b")
        with pytest.raises(ActivationRefused, match=r"a \(pid \d+\) at epoch 1"):
            here.acquire()
        kill()
        self.proven_dead(here)
        here.check()
        assert here.epoch == 2
        here.release()
        here.close()

    def proven_dead(self, lease: AnyLease) -> None:
        """Takes the lease of a process that has been killed."""
        lease.acquire()

    def test_what_is_taken_away_is_noticed(self, pair: Pair) -> None:
        a, _ = pair
        a.acquire()
        a.check()
        self.take_away(pair)
        for _ in range(2):
            with pytest.raises(LeaseLost, match="nothing more is written"):
                a.check()

    def test_a_release_after_a_loss_leaves_the_new_holder_alone(self, pair: Pair) -> None:
        a, b = pair
        a.acquire()
        self.take_away(pair)
        if b.epoch is None:
            b.acquire()
        a.release()
        b.check()
        held = a.holder()
        assert held is not None
        assert held.owner == b.owner

    def test_a_shim_that_lost_its_lease_is_fenced_and_writes_nothing(
        self, pair: Pair, path: Path
    ) -> None:
        image = empty_image()
        shim = Shim("a", image, path.parent, lease=lambda path: pair[0]).activated()
        shim.put(1, 1)
        before = image.getvalue()
        self.take_away(pair)
        with pytest.raises(OSError, match="nothing more is written"):
            shim.put(2, 2, length=BLOCK)
        assert shim.state == "fenced"
        assert len(shim.emitted("fenced")) == 1
        with pytest.raises(OSError, match="fenced"):
            shim.write(SIZE - 512, memoryview(bytes(512)))
        shim.deactivate()
        assert image.getvalue() == before
