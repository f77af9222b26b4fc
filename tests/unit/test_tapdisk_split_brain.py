"""Two shims on one image, in every order that corrupts with the guard off: guarded, never."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.locked_memory import LockServer
from tests.support.shims import BLOCK, SIZE, Shim, empty_image, in_thread, plain_bytes, verdict
from tests.support.waiting import wait_for
from vhdtool.errors import ActivationRefused, VhdtoolError
from vhdtool.storage import MemoryStorage
from vhdtool.tapdisk.claim import LEASE_CHECK
from vhdtool.vhd.units import SECTOR

assert LEASE_CHECK < 1


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the epoch record survives a power cut is not the subject here."""
    monkeypatch.setattr("os.fdatasync", lambda fd: None)


class Pair:
    """A source and a destination; what each was told is written must be there at the end."""

    def __init__(self, folder: Path, guard: bool, seed: int, locks: bool = False) -> None:
        self.image: MemoryStorage = empty_image()
        self.dice = random.Random(seed)
        self.server = LockServer(self.image) if locks else None
        self.source = Shim("alpha", self.image, folder, guard, server=self.server)
        self.destination = Shim("beta", self.image, folder, guard, server=self.server)
        self.model = bytearray(SIZE)
        self.refused = 0
        self.source.attached().activate()

    def writes(self, shim: Shim, count: int = 8) -> None:
        """A guest at one side: what is acknowledged goes to the model."""
        for _ in range(count):
            sector = self.dice.randrange((SIZE - BLOCK) // SECTOR - 4)
            data = bytes([self.dice.randrange(1, 255)]) * (SECTOR * self.dice.randrange(1, 4))
            try:
                shim.write(sector * SECTOR, memoryview(data))
            except OSError:
                self.refused += 1
            else:
                self.model[sector * SECTOR : sector * SECTOR + len(data)] = data

    def tail(self, shim: Shim) -> None:
        """The last sector of a new block: the end of the file, which a reopen may kill."""
        shim.write(SIZE - SECTOR, memoryview(bytes([255]) * SECTOR))
        self.model[-SECTOR:] = bytes([255]) * SECTOR

    def try_(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except VhdtoolError:
            self.refused += 1

    def end(self) -> None:
        for shim in (self.source, self.destination):
            self.try_(shim.detach)
        # A bare comparison: pytest would take minutes to show where megabytes differ.
        same = plain_bytes(self.image) == self.model
        assert same, "the image does not hold what was acknowledged"
        assert verdict(self.image).exit_code == 0, verdict(self.image).findings


def overlap(p: Pair) -> None:
    p.try_(p.destination.attached().open)
    p.writes(p.source)
    p.writes(p.destination)
    p.try_(p.source.deactivate)
    p.writes(p.destination)


def late_close(p: Pair) -> None:
    p.writes(p.source)
    p.try_(p.destination.attached().open)
    p.writes(p.destination)
    p.try_(p.source.deactivate)
    p.try_(p.source.detach)


def late_close_activate(p: Pair) -> None:
    p.writes(p.source)
    p.try_(p.destination.attached().activate)
    p.writes(p.destination)
    p.try_(p.source.deactivate)


def reopen_early(p: Pair) -> None:
    p.try_(p.destination.attached().open)
    p.writes(p.source)
    p.tail(p.source)
    p.try_(p.destination.pause)
    p.try_(p.destination.unpause)
    p.try_(p.source.deactivate)
    if p.destination.state == "active":
        p.writes(p.destination)


def implicit_first(p: Pair) -> None:
    p.destination.attached().open("first")
    p.try_(p.destination.probe)
    p.writes(p.source)
    p.try_(p.source.deactivate)
    p.writes(p.destination)


def both_at_once(p: Pair) -> None:
    p.destination.attached().open("each")
    for _ in range(6):
        p.writes(p.source, 1)
        p.writes(p.destination, 1)
    p.try_(p.source.deactivate)
    p.writes(p.destination)


ORDERS = [overlap, late_close, late_close_activate, reopen_early, implicit_first, both_at_once]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("seed", "locks"), [*((n, False) for n in range(50)), *((n, True) for n in range(12))]
)
def test_guarded_no_unsafe_order_corrupts(
    order: Callable[[Pair], None], seed: int, locks: bool, tmp_path: Path
) -> None:
    pair = Pair(tmp_path, guard=True, seed=seed, locks=locks)
    pair.writes(pair.source)
    order(pair)
    if order is not implicit_first:
        assert pair.refused
    assert any(e["event"] == "refused" for e in pair.destination.events) or order in (
        overlap,
        late_close,
    )
    pair.end()


@pytest.mark.parametrize("order", [overlap, late_close, reopen_early, implicit_first])
def test_guard_off_the_same_orders_do_corrupt(
    order: Callable[[Pair], None], tmp_path: Path
) -> None:
    """Otherwise the test above would show nothing."""
    corrupt = 0
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        pair = Pair(folder, guard=False, seed=seed)
        pair.writes(pair.source, 20)
        order(pair)
        try:
            pair.end()
        except (AssertionError, VhdtoolError):
            corrupt += 1
    assert corrupt >= 8


@pytest.mark.parametrize("seed", range(20))
def test_operations_of_two_hosts_in_any_order_lose_nothing(seed: int, tmp_path: Path) -> None:
    pair = Pair(tmp_path, guard=True, seed=seed)
    dice = random.Random(seed)
    shims = (pair.source, pair.destination)
    for _ in range(60):
        shim = dice.choice(shims)
        if dice.random() < 0.5 and shim.state in ("active", "standby", "fenced", "attached"):
            if not shim.router.waits():
                pair.writes(shim, 2)
            continue
        operation = dice.choice(
            (
                shim.attached,
                shim.open,
                lambda s=shim: s.open("each"),
                shim.activate,
                shim.pause,
                shim.unpause,
                shim.deactivate,
                lambda s=shim: s.deactivate(queue=True),
                shim.may_serve,
                shim.probe,
                shim.detach,
            )
        )
        pair.try_(operation)
        active = [s for s in shims if s.status()["lease"]]
        assert len(active) <= 1
    pair.end()
    steps = ("opened", "activated", "paused", "unpaused", "deactivated", "closed")
    told = [e["epoch"] for s in shims for e in s.events if e["event"] in steps and "epoch" in e]
    assert len(told) == len(set(told))


@pytest.mark.parametrize("seed", range(10))
def test_a_stopped_owner_that_was_fenced_writes_nothing_later(seed: int, tmp_path: Path) -> None:
    """SIGSTOP of the holder, the operator's --force, SIGCONT: as if its next call came late."""
    pair = Pair(tmp_path, guard=True, seed=seed)
    pair.writes(pair.source)
    pair.destination.attached().activate(force_epoch=1)
    pair.source.claim.checked = 0.0  # it stood still for long
    pair.writes(pair.destination, 4)
    before = pair.image.getvalue()
    pair.writes(pair.source, 4)
    pair.try_(pair.source.deactivate)
    assert pair.image.getvalue() == before
    pair.writes(pair.destination, 4)
    pair.end()


def test_a_living_holder_cannot_be_forced_away(tmp_path: Path) -> None:
    pair = Pair(tmp_path, guard=True, seed=1, locks=True)
    pair.writes(pair.source)
    before = pair.image.getvalue()
    with pytest.raises(ActivationRefused, match=r"--force 1 takes only what is free: its host"):
        pair.destination.attached().activate(force_epoch=1)
    assert pair.image.getvalue() == before
    pair.writes(pair.source)
    pair.end()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", ["plain", "each"])
def test_a_lost_lock_fences_requests_in_flight_too(seed: int, mode: str, tmp_path: Path) -> None:
    """The holder's network is cut, its lock goes to another host, and the network comes back."""
    pair = Pair(tmp_path, guard=True, seed=seed, locks=True)
    source, server = pair.source, pair.server
    assert server is not None
    pair.writes(source)
    if mode == "each":
        source.deactivate()
        source.open("each")
        pair.writes(source)
    server.cut()
    # It is in the kernel of the old host, and will be sent once the network is back.
    thread, outcome = in_thread(lambda: source.write(0, memoryview(b"?" * BLOCK)))
    wait_for(lambda: source.requests_inside)
    server.expire()
    pair.destination.attached().activate(force_epoch=source.status()["epoch"])
    pair.writes(pair.destination)
    before = pair.image.getvalue()
    server.mend()
    thread.join(10)
    assert isinstance(outcome[0], OSError | VhdtoolError), outcome
    with pytest.raises(OSError):  # noqa: PT011 - fenced, whatever is found first
        source.read(0, SECTOR)
    assert source.state == "fenced"
    pair.try_(source.deactivate)
    assert pair.image.getvalue() == before
    pair.writes(pair.destination)
    pair.end()


def test_a_reopen_for_each_request_is_no_look_at_the_lease(tmp_path: Path) -> None:
    pair = Pair(tmp_path, guard=True, seed=1)
    pair.writes(pair.source)
    pair.source.deactivate()
    pair.source.open("each")
    pair.source.read(0, SECTOR)
    pair.destination.attached().activate(force_epoch=pair.source.status()["epoch"])
    pair.source.claim.checked -= LEASE_CHECK
    before = pair.image.getvalue()
    sector = next(at for at in range(SIZE // SECTOR) if pair.model[at * SECTOR])
    with pytest.raises(OSError, match="removed or replaced"):
        pair.source.write(sector * SECTOR, memoryview(b"x" * SECTOR))
    assert pair.image.getvalue() == before
    assert pair.source.state == "fenced"


def test_a_look_at_the_lease_counts_from_its_beginning(tmp_path: Path) -> None:
    """A daemon, or a target, may answer long after it looked; a process may be stopped then."""
    shim = Shim("alpha", empty_image(), tmp_path).activated()
    looks = []
    lease = shim.claim.lease

    def slow() -> None:
        looks.append(1)
        # What is tested is that the time of the answer does not count.
        time.sleep(LEASE_CHECK * 1.1)

    lease.check = slow  # type: ignore[method-assign]
    shim.claim.checked -= LEASE_CHECK
    for count in (1, 2, 3):
        shim.read(0, SECTOR)
        assert len(looks) == count


def test_blocks_of_the_first_writer_are_never_given_away(tmp_path: Path) -> None:
    """Without any lease (guard of the image alone): the BAT and the file's end tell."""
    from vhdtool.image.disk.dynamic import DynamicDisk

    for first, second in ((0, 1), (0, 200), (255, 3)):
        image = empty_image()
        a, b = DynamicDisk(image), DynamicDisk(image)
        a.write(first * BLOCK, bytes([1]) * BLOCK)
        with pytest.raises(VhdtoolError, match="another host"):
            b.write(second * BLOCK, bytes([2]) * BLOCK)
        a.write(second * BLOCK, bytes([3]) * BLOCK)
        b.abandon()
        a.close()
        assert verdict(image).findings == []
        assert plain_bytes(image)[second * BLOCK :][:BLOCK] == bytes([3]) * BLOCK
