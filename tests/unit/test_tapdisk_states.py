"""A disk's states: what each operation does, refuses, and leaves as it was."""

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.faulty_storage import FaultyStorage
from tests.support.recording_storage import RecordingStorage
from tests.support.shims import BLOCK, SIZE, Shim, empty_image, in_thread, plain_bytes, verdict
from tests.support.waiting import wait_for
from vhdtool.errors import (
    ActivationRefused,
    CorruptImage,
    LeaseLost,
    StateError,
    UsageError,
    VhdtoolError,
)
from vhdtool.storage import MemoryStorage, Storage, StorageError
from vhdtool.tapdisk.access import Access
from vhdtool.tapdisk.states import TRANSITIONS, Operation, ReopenMode, State, markdown
from vhdtool.vhd.units import KILLED, SECTOR


@pytest.fixture
def image() -> MemoryStorage:
    return empty_image()


@pytest.fixture
def one(image: MemoryStorage, tmp_path: Path) -> Iterator[Shim]:
    shim = Shim("a", image, tmp_path)
    yield shim
    if shim.state != "detached":
        shim.detach()


@pytest.fixture
def off(image: MemoryStorage, tmp_path: Path) -> Shim:
    return Shim("a", image, tmp_path, guard=False)


def fails(shim: Shim) -> bool:
    """Whether a request gets an error at once."""
    try:
        shim.read(0, SECTOR)
    except OSError as error:
        return error.errno == errno.EIO
    return False


STATES: dict[State, Callable[[Shim], object]] = {
    State.DETACHED: lambda shim: None,
    State.ATTACHED: lambda shim: shim.attached(),
    State.STANDBY: lambda shim: shim.attached().open(),
    State.ACTIVE: lambda shim: shim.activated(),
    State.PAUSED: lambda shim: (shim.activated(), shim.pause()),
    State.FENCED: lambda shim: (shim.activated(), shim.claim.fence(LeaseLost("for a test"))),
}
OPERATIONS: dict[Operation, Callable[[Shim], object]] = {
    "attach": lambda s: s.attach(s.image_path, SIZE),
    "open": lambda s: s.open(),
    "activate": lambda s: s.activate(),
    "pause": lambda s: s.pause(),
    "unpause": lambda s: s.unpause(),
    "exchange": lambda s: s.exchange(s.image_path),
    "deactivate": lambda s: s.deactivate(),
    "stop-queueing": lambda s: s.stop_queueing(),
    "detach": lambda s: s.detach(),
    "export": lambda s: s.promise(SIZE),
}


def test_each_state_and_operation_of_the_table_is_tried() -> None:
    assert set(STATES) == set(State)
    assert set(OPERATIONS) == set(TRANSITIONS) - {"first request", "lost lease"}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_in_every_state(one: Shim, state: State, operation: Operation) -> None:
    STATES[state](one)
    assert one.state is state
    work, after = OPERATIONS[operation], TRANSITIONS[operation].get(state)
    if after is not None:
        work(one)
        assert one.state is after
    else:
        before, events = one.status(), len(one.events)
        with pytest.raises(StateError, match=f"the disk is {state}"):
            work(one)
        assert one.status() == before
        assert len(one.events) == events


@pytest.mark.parametrize("state", sorted(set(State) - {State.ACTIVE, State.PAUSED}))
def test_who_may_not_serve_says_so_at_once(one: Shim, state: State) -> None:
    STATES[state](one)
    assert fails(one)
    with pytest.raises(ActivationRefused):
        one.probe()
    with pytest.raises(ActivationRefused):
        one.may_serve()
    assert [e["op"] for e in one.emitted("refused")] == ["probe", "may-serve"]


def test_the_table_in_the_documentation_is_made_from_the_states() -> None:
    document = Path(__file__).parents[2] / "docs" / "shim.md"
    assert f"\n{markdown()}\n" in document.read_text()


def test_paused_disks_refuse_a_probe_instead_of_hanging(one: Shim) -> None:
    one.activated().pause()
    with pytest.raises(StateError, match="requests wait"):
        one.probe()
    one.deactivate(queue=True)
    with pytest.raises(StateError, match="requests wait"):
        one.probe()


def test_paused_requests_wait_for_unpause(one: Shim) -> None:
    one.activated().pause()
    thread, result = in_thread(lambda: one.read(0, SECTOR))
    wait_for(lambda: one.status()["waiting"])
    assert not result
    one.unpause()
    thread.join(5)
    assert result == [bytes(SECTOR)]


def test_a_source_deactivated_for_a_switch_queues_requests(one: Shim) -> None:
    one.activated().deactivate(queue=True)
    thread, result = in_thread(lambda: one.put(0, 5))
    wait_for(lambda: one.status()["waiting"])
    assert not result
    one.activate()
    thread.join(5)
    assert result == [None]
    assert one.read(0, SECTOR) == bytes([5]) * SECTOR


@pytest.mark.parametrize("end", ["stop_queueing", "detach"])
def test_queued_requests_fail_when_the_migration_is_over(one: Shim, end: str) -> None:
    one.activated().deactivate(queue=True)
    thread, result = in_thread(lambda: one.put(0, 5))
    wait_for(lambda: one.status()["waiting"])
    getattr(one, end)()
    thread.join(5)
    assert isinstance(result[0], OSError)


def test_pause_waits_for_the_request_inside(
    one: Shim, image: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go = threading.Event(), threading.Event()
    one.activated()
    real = image.pread

    def slow(offset: int, length: int) -> bytes:
        inside.set()
        go.wait(5)
        return real(offset, length)

    one.put(0, 1, length=BLOCK)
    monkeypatch.setattr(image, "pread", slow)
    reader, _ = in_thread(lambda: one.read(0, SECTOR))
    assert inside.wait(5)
    pauser, done = in_thread(one.pause)
    pauser.join(0.05)  # Nothing happens then.
    assert not done
    assert one.status()["state"] == "active"  # and status does not wait
    monkeypatch.undo()
    go.set()
    reader.join(5)
    pauser.join(5)
    assert done == [None]
    assert one.state == "paused"


def test_events_of_a_life_carry_epochs(one: Shim) -> None:
    one.attached().open()
    one.activate()
    one.put(0, 1)
    one.read(0, SECTOR)
    one.pause()
    one.unpause()
    one.read(0, SECTOR)
    one.deactivate()
    one.detach()
    seen = [(e["event"], e.get("epoch"), e.get("ended")) for e in one.events]
    assert seen == [
        ("attached", None, None),
        ("opened", 1, None),
        ("activated", 2, None),
        ("first-request", 2, None),
        ("first-write", 2, None),
        ("allocated", 2, None),
        ("paused", 3, 2),
        ("unpaused", 4, None),
        ("first-request", 4, None),
        ("deactivated", 5, 4),
        ("detached", None, None),
    ]
    paused, deactivated = one.emitted("paused")[0], one.emitted("deactivated")[0]
    assert paused["wrote_footer"] is True
    assert paused["truncated_to"] == one.settings.open_storage(Path(), Access.STANDBY, "vhd").size()
    assert paused["last_metadata_mono"] is not None
    assert deactivated["wrote_footer"] is False
    assert deactivated["last_metadata_mono"] is None


def test_a_refused_activation_leaves_all_as_it_was(
    one: Shim, image: MemoryStorage, tmp_path: Path
) -> None:
    other = Shim("b", image, tmp_path).activated()
    one.attached()
    before = one.status()
    with pytest.raises(ActivationRefused, match="held by b"):
        one.activate()
    assert one.status() == before
    assert one.emitted("refused")[0]["op"] == "activate"
    assert fails(one)
    other.deactivate()
    one.activate()
    other.detach()


def test_a_refused_activation_keeps_an_implicit_standby(
    one: Shim, image: MemoryStorage, tmp_path: Path
) -> None:
    other = Shim("b", image, tmp_path).activated()
    one.attached().open("each")
    with pytest.raises(ActivationRefused):
        one.activate()
    assert fails(one)
    other.put(0, 7)
    other.deactivate()
    assert one.read(0, SECTOR) == bytes([7]) * SECTOR
    other.detach()


def test_a_refused_unpause_keeps_requests_waiting(
    one: Shim, image: MemoryStorage, tmp_path: Path
) -> None:
    one.activated().pause()
    other = Shim("b", image, tmp_path).activated()
    with pytest.raises(ActivationRefused):
        one.unpause()
    assert one.state == "paused"
    thread, result = in_thread(lambda: one.read(0, SECTOR))
    other.put(0, 9)
    other.detach()
    one.unpause()
    thread.join(5)
    assert result == [bytes([9]) * SECTOR]


def test_no_footer_no_activation_and_the_lease_is_free_again(
    one: Shim, image: MemoryStorage, tmp_path: Path
) -> None:
    image.pwrite(image.size() - SECTOR, KILLED)
    one.attached()
    with pytest.raises(ActivationRefused, match="no footer at the end"):
        one.activate()
    refused = one.emitted("refused")[0]
    assert (refused["op"], refused["released"]) == ("activate", 2)
    assert one.claim.lease.holder() is None


def test_a_forced_activation_writes_the_missing_footer(
    image: MemoryStorage, tmp_path: Path
) -> None:
    dead = Shim("a", image, tmp_path).activated()
    dead.put(0, 1)
    one = Shim("b", image, tmp_path).attached()
    with pytest.raises(ActivationRefused, match="--force 1"):
        one.activate()
    one.activate(force_epoch=1)
    one.deactivate()
    one.detach()
    assert verdict(image).exit_code == 0
    assert plain_bytes(image)[:SECTOR] == bytes([1]) * SECTOR
    Shim("c", image, tmp_path).activated().detach()
    # The dead one was not dead: it finds out before it does any harm.
    before = image.getvalue()
    with pytest.raises(OSError, match="lease"):
        dead.put(100, 2)
    assert dead.state == "fenced"
    assert image.getvalue() == before
    dead.detach()
    assert image.getvalue() == before


def test_an_image_of_another_size_is_not_served(image: MemoryStorage, tmp_path: Path) -> None:
    shim = Shim("a", image, tmp_path, size=SIZE + BLOCK).attached()
    with pytest.raises(StateError, match="attached with"):
        shim.activate()
    assert shim.state == "attached"
    with pytest.raises(StateError):
        shim.open()
    shim.detach()


def test_a_corrupt_image_is_told_and_not_served(one: Shim, image: MemoryStorage) -> None:
    image.pwrite(1536, (3).to_bytes(4, "big") * 2)
    one.attached()
    with pytest.raises(CorruptImage):
        one.activate()
    assert one.state == "attached"
    assert one.emitted("refused")


@pytest.mark.parametrize("size", [0, -512, 100, 1 << 70])
def test_impossible_sizes(one: Shim, size: int) -> None:
    with pytest.raises(UsageError):
        one.attach(one.image_path, size)
    with pytest.raises(UsageError):
        one.promise(size)
    assert one.state == "detached"


def test_a_promised_size_is_kept(one: Shim) -> None:
    one.promise(SIZE)
    assert one.router.export_size() == SIZE
    with pytest.raises(StateError, match="promised"):
        one.attach(one.image_path, 2 * SIZE)
    one.attach(one.image_path, SIZE)


def test_unknown_modes(one: Shim) -> None:
    one.attached()
    with pytest.raises(StateError, match="'often' is none of plain, each, first"):
        one.open("often")
    assert one.state == "attached"


# implicit modes


def test_each_request_reads_the_metadata_anew(
    one: Shim, image: MemoryStorage, tmp_path: Path
) -> None:
    other = Shim("b", image, tmp_path).activated()
    one.attached().open("each")
    assert fails(one)
    assert one.emitted("refused")[0]["op"] == "request"
    with pytest.raises(ActivationRefused, match="held by b"):
        one.may_serve()
    other.put(3, 3)
    other.deactivate()
    one.may_serve()
    for _ in range(3):
        assert one.read(3 * BLOCK, SECTOR) == bytes([3]) * SECTOR
    one.put(4, 4)
    assert one.state == "active"
    one.deactivate()
    assert [e["implicit"] for e in one.emitted("activated")] == [True]
    assert len(one.emitted("first-request")) == 1
    assert len(one.emitted("first-write")) == 1
    assert one.emitted("deactivated")[0]["reopens"] == 4
    assert verdict(image).findings == []
    other.detach()


def test_only_the_first_request_reopens(off: Shim, image: MemoryStorage, tmp_path: Path) -> None:
    other = Shim("b", image, tmp_path, guard=False).activated()
    off.attached().open("first")
    off.probe()
    other.put(3, 3)
    assert off.read(3 * BLOCK, SECTOR) == bytes(SECTOR)
    assert [e.get("implicit") for e in off.emitted("opened")] == [None, True]


def test_guard_off_each_reopens_and_tells_once(off: Shim) -> None:
    off.attached().open("each")
    for block in range(4):
        off.put(block, 1)
    assert [e.get("implicit") for e in off.emitted("opened")] == [None, True]
    assert [e["epoch"] for e in off.emitted("first-request")] == [2]
    off.detach()
    assert off.emitted("closed")[0]["reopens"] == 4


def test_a_failed_reopen_is_an_error_and_is_tried_again(
    image: MemoryStorage, tmp_path: Path
) -> None:
    failing = False

    def fault(kind: str, offset: int, length: int) -> int | None:
        return errno.EIO if failing and kind in ("read", "size") else None

    for guard in (True, False):
        wrap: Callable[[Storage], Storage] = lambda storage: FaultyStorage(storage, fault)  # noqa: E731
        shim = Shim("a", image, tmp_path, guard=guard, wrap=wrap).attached()
        shim.open("each")
        for _ in range(2):
            failing = True
            with pytest.raises((OSError, StorageError)):
                shim.read(0, SECTOR)
            failing = False
            shim.read(0, SECTOR)
        shim.detach()


# closing that fails


def test_a_deactivation_on_a_full_disk_changes_nothing(
    image: MemoryStorage, tmp_path: Path
) -> None:
    full = False

    def fault(kind: str, offset: int, length: int) -> int | None:
        return errno.ENOSPC if full and kind == "write" else None

    shim = Shim("a", image, tmp_path, wrap=lambda s: FaultyStorage(s, fault)).activated()
    shim.put(0, 1)
    full = True
    for operation in (shim.deactivate, shim.pause):
        with pytest.raises(StorageError, match="No space"):
            operation()
        assert shim.state == "active"
        shim.may_serve()
        assert shim.read(0, SECTOR) == bytes([1]) * SECTOR
    full = False
    shim.put(1, 2)
    shim.deactivate()
    shim.detach()
    assert verdict(image).findings == []
    assert len(shim.emitted("deactivated")) == 1


def test_a_detach_on_a_full_disk_says_so_and_detaches(image: MemoryStorage, tmp_path: Path) -> None:
    full = False

    def fault(kind: str, offset: int, length: int) -> int | None:
        return errno.ENOSPC if full and kind == "write" else None

    shim = Shim("a", image, tmp_path, wrap=lambda s: FaultyStorage(s, fault)).activated()
    shim.put(0, 1)
    full = True
    with pytest.raises(StorageError, match="No space"):
        shim.detach()
    assert shim.state == "detached"
    assert shim.emitted("closed")[0]["wrote_footer"] is False
    assert verdict(image, "unclean").exit_code in (0, 3)


def test_errors_of_the_storage_reach_the_client_with_their_errno(
    image: MemoryStorage, tmp_path: Path
) -> None:
    number: int | None = None

    def fault(kind: str, offset: int, length: int) -> int | None:
        return number if kind in ("write", "zero", "read", "flush") else None

    shim = Shim("a", image, tmp_path, wrap=lambda s: FaultyStorage(s, fault)).activated()
    shim.put(0, 1)
    for number in (errno.ENOSPC, errno.EIO):
        for request in (
            lambda: shim.put(9, 1),
            lambda: shim.put(0, 1),
            lambda: shim.read(0, SECTOR),
            lambda: shim.write_zeroes(0, SECTOR),
            shim.flush,
        ):
            with pytest.raises(StorageError) as caught:
                request()
            assert caught.value.errno == number
    number = None
    assert shim.state == "active"
    assert shim.read(0, SECTOR) == bytes([1]) * SECTOR
    shim.detach()


def test_a_release_that_failed_can_be_tried_again(
    one: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> int:
        raise StorageError("lease", "write it", errno.ENOSPC)

    one.activated()
    with monkeypatch.context() as patch:
        patch.setattr(one.claim.lease, "release", fails)
        with pytest.raises(StorageError, match="No space"):
            one.deactivate()
    assert one.claim.lease.holder() is not None
    one.deactivate()
    assert one.claim.lease.holder() is None


# fencing


def test_a_stolen_lease_fences_at_the_next_metadata_write(
    one: Shim, image: MemoryStorage, tmp_path: Path
) -> None:
    one.activated().put(0, 1)
    thief = Shim("b", image, tmp_path).attached()
    thief.activate(force_epoch=1)
    before = image.getvalue()
    with pytest.raises(OSError, match="forced activation"):
        one.put(50, 1)
    assert one.state == "fenced"
    assert [e["event"] for e in one.events].count("fenced") == 1
    assert image.getvalue() == before
    assert fails(one)
    with pytest.raises(ActivationRefused):
        one.may_serve()
    one.deactivate()
    assert image.getvalue() == before
    thief.may_serve()
    thief.detach()


def test_a_stolen_lease_is_noticed_by_plain_requests(
    one: Shim, image: MemoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.activated().put(0, 1)
    thief = Shim("b", image, tmp_path).attached()
    thief.activate(force_epoch=1)
    monkeypatch.setattr("vhdtool.tapdisk.claim.LEASE_CHECK", -1.0)
    before = image.getvalue()
    with pytest.raises(OSError, match="forced activation"):
        one.put(0, 2)
    assert image.getvalue() == before
    thief.detach()


@pytest.mark.parametrize("operation", ["deactivate", "pause", "detach"])
def test_a_stolen_lease_is_noticed_by_closing(
    one: Shim, image: MemoryStorage, tmp_path: Path, operation: str
) -> None:
    one.activated().put(0, 1)
    thief = Shim("b", image, tmp_path).attached()
    thief.activate(force_epoch=1)
    before = image.getvalue()
    with pytest.raises(LeaseLost):
        getattr(one, operation)()
    assert image.getvalue() == before
    assert one.state == ("detached" if operation == "detach" else "fenced")
    assert one.emitted("fenced")
    thief.put(1, 1)
    thief.detach()


def test_a_fence_during_a_pause_is_not_paused_over(one: Shim, image: MemoryStorage) -> None:
    one.activated().put(0, 1)
    inside, go = threading.Event(), threading.Event()

    def lost() -> None:
        inside.set()
        go.wait(5)
        raise LeaseLost("stolen")

    one.claim.lease.check = lost  # type: ignore[method-assign]
    writer, result = in_thread(lambda: one.put(9, 1))
    assert inside.wait(5)
    pauser, paused = in_thread(one.pause)
    pauser.join(0.05)  # It begins to wait for the writer; nothing shows that.
    assert not paused
    go.set()
    writer.join(5)
    pauser.join(5)
    assert isinstance(result[0], OSError)
    assert isinstance(paused[0], StateError)
    assert one.state == "fenced"
    assert fails(one)


def test_a_lease_that_cannot_be_read_is_an_error_not_a_loss(
    one: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.activated().put(0, 1)

    def broken() -> None:
        raise StorageError("lease", "read it", errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(one.claim.lease, "check", broken)
        with pytest.raises(StorageError):
            one.put(9, 1)
    assert one.state == "active"
    one.put(9, 1)


def test_a_fenced_disk_is_not_reopened_for_a_request(one: Shim) -> None:
    """As when a request waits for the reopen of another one, which finds the lease lost."""
    one.attached().open("each")
    one.read(0, SECTOR)
    one.claim.fence(LeaseLost("for a test"))
    events = len(one.events)
    with pytest.raises(OSError, match="not open"):
        one.session.reopen(ReopenMode.EACH)
    assert one.state is State.FENCED
    assert len(one.events) == events


# guard off


def test_guard_off_serves_and_kills_the_footer_at_unpause(off: Shim, image: MemoryStorage) -> None:
    off.attached().open()
    assert off.state == "active"
    off.put(0, 1)
    off.pause()
    assert verdict(image).findings == []
    off.unpause()
    assert image.pread(image.size() - SECTOR, SECTOR) == KILLED
    off.may_serve()
    off.detach()
    assert verdict(image).findings == []


def test_a_standby_and_a_fenced_disk_are_closed_untouched(
    image: MemoryStorage, tmp_path: Path
) -> None:
    storage = RecordingStorage(image)
    shim = Shim("a", storage, tmp_path).attached()
    shim.open()
    shim.deactivate()
    shim.open("each")
    shim.pause()
    shim.deactivate()
    shim.activate()
    shim.claim.fence(LeaseLost("for a test"))
    shim.detach()
    assert storage.log == []


def test_only_our_errors_come_out_of_operations(one: Shim) -> None:
    for operation in OPERATIONS.values():
        try:
            operation(one)
        except VhdtoolError:
            pass
