"""Each check of the oracles at its bounds, on evidence of a few lines."""

import struct
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from tests.support import oracle_cases
from tests.unit.test_oracle_view import MemoryView
from vhdtool.errors import CorruptImage, NotAVhd
from vhdtool.image.create.empty import create_dynamic
from vhdtool.oracle.checks.activation import check_activation
from vhdtool.oracle.checks.content import check_content
from vhdtool.oracle.checks.growth import lost_metadata
from vhdtool.oracle.checks.in_flight import few_in_flight, requests_in_flight, untested_depth
from vhdtool.oracle.checks.structure import check_structure
from vhdtool.oracle.contradictions.allocations import check_allocations, writers_at
from vhdtool.oracle.contradictions.case_json import check_case_json
from vhdtool.oracle.contradictions.consoles import (
    check_acknowledging_hosts,
    check_consoles,
    check_pace,
)
from vhdtool.oracle.contradictions.epochs import check_epochs
from vhdtool.oracle.contradictions.snapshot_points import check_snapshot_points
from vhdtool.oracle.evidence.console import Ack, Console, ExtentCheck, read_console
from vhdtool.oracle.evidence.depth import LEAST_IN_FLIGHT, WAIT_FOR_A_WRITE
from vhdtool.oracle.evidence.events import Event, Events
from vhdtool.oracle.evidence.grammar import is_operation
from vhdtool.oracle.evidence.legs import Leg, incomplete_legs, legs_of
from vhdtool.oracle.evidence.record import Chunk, load_record
from vhdtool.oracle.evidence.schedule import Schedule
from vhdtool.oracle.evidence.snapshots import Snapshot
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, prepare
from vhdtool.oracle.readers.image_view import FileView
from vhdtool.oracle.readers.qcow2 import COPIED, Tables, refcount_at
from vhdtool.oracle.readers.vhd import DynamicReader, open_reader
from vhdtool.storage import MemoryStorage


def event(seq: int, name: str, host: str = "alpha", side: str = "source", **more: Any) -> Event:
    pid = more.pop("pid", 7 if host in ("alpha", "beta") else None)
    epoch, leg = more.pop("epoch", None), more.pop("leg", 1)
    return Event(seq, name, leg, host, side, pid, epoch, float(seq), more)


def a_leg(queued: dict[str, Any] | None = None) -> list[Event]:
    fields: dict[str, Any] = {} if queued is None else {"queued": queued}
    return [
        event(1, "migrate-started", "controller", "controller"),
        event(2, "attached"),
        event(3, "attached", "beta", "destination"),
        event(10, "suspended", pid=None, **fields),
        event(11, "resumed", "beta", "destination", pid=None),
        event(30, "migrated", "controller", "controller"),
    ]


def legs(queued: dict[str, Any] | None = None) -> list[Leg]:
    return legs_of(Events(tuple(a_leg(queued)), ()))


def deep(count: int, began: float | None = 5.0, last: float = 10.5) -> Console:
    slots = [slot for slot in range(60) if slot not in WAIT_FOR_A_WRITE][:count]
    console = Console(deep={slot: [Ack(0, last, "beta")] for slot in slots}, deep_began=began)
    console.deep.update({slot: [Ack(0, last, "beta")] for slot in WAIT_FOR_A_WRITE})
    console.deep[59] = []
    console.checks = [ExtentCheck(12.0, "beta", 100, 0)]
    return console


def test_requests_in_flight_are_counted_at_the_stop() -> None:
    assert requests_in_flight(deep(40), legs()) == [40]
    assert requests_in_flight(deep(40, began=None), legs()) == [0]
    assert requests_in_flight(deep(40, began=10.1), legs()) == [0]
    assert requests_in_flight(deep(40, began=10.0), legs()) == [40]
    assert requests_in_flight(deep(40, last=10.0), legs()) == [0]
    assert requests_in_flight(deep(40), legs({"0": 20, "1": 13})) == [33]
    assert requests_in_flight(deep(40), legs({"0": 20, "1": "13"})) == [20]
    assert requests_in_flight(deep(20), legs({"0": 60})) == [20]


def test_too_few_in_flight_and_nothing_checked_is_said() -> None:
    assert untested_depth(deep(LEAST_IN_FLIGHT), legs()) == []
    assert few_in_flight(deep(LEAST_IN_FLIGHT), legs()) == []
    for count in (LEAST_IN_FLIGHT - 1, 1):
        assert untested_depth(deep(count), legs()) == []
        assert f"only {count} requests were in flight" in few_in_flight(deep(count), legs())[0]
    assert few_in_flight(deep(0), legs()) == []
    assert len(untested_depth(deep(0), legs())) == 1
    for check in (
        ExtentCheck(12.0, "alpha", 100, 0),
        ExtentCheck(11.0, "beta", 100, 0),
        ExtentCheck(12.0, "beta", 0, 0),
    ):
        console = deep(LEAST_IN_FLIGHT)
        console.checks = [check]
        assert "did not check on beta" in untested_depth(console, legs())[0]


def test_a_leg_names_its_hosts_by_what_their_shims_tell() -> None:
    one = legs()[0]
    assert (one.source, one.destination, one.moved) == ("alpha", "beta", True)
    controller = event(2, "suspended", "controller", "source")
    other_leg = event(3, "attached", "gamma", "destination", leg=2)
    start = event(1, "migrate-started", "controller", "controller")
    one = legs_of(Events((start, controller, other_leg), ()))[0]
    assert (one.source, one.destination) == ("", "")


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (("suspended",), "migrated without"), (("resumed",), "migrated without"),
        (("migrated",), "neither migrated nor was cancelled"),
        (("migrate-started",), "the events have no leg 1"),
    ],
)  # fmt: skip
def test_a_leg_that_is_not_told_from_start_to_end_is_named(
    gone: tuple[str, ...], said: str
) -> None:
    items = tuple(one for one in a_leg() if one.name not in gone)
    problems = incomplete_legs(legs_of(Events(items, ())), 1)
    assert any(said in problem for problem in problems), problems


def test_a_leg_of_which_one_host_is_not_named_is_not_told() -> None:
    for host in ("alpha", "beta"):
        items = tuple(one for one in a_leg() if one.host != host or one.name == "migrated")
        found = incomplete_legs(legs_of(Events((*items,), ())), 1)
        assert any("no event names source and destination" in one for one in found), host
    assert incomplete_legs(legs(), 1) == []
    assert "the events have leg 1, case.json names 0 legs" in incomplete_legs(legs(), 0)


def reads(*numbers: int | None, names: str = "") -> Events:
    known = {"r": "activated", "d": "deactivated", "x": "refused", "a": "allocated"}
    kinds = names or "rd" * len(numbers)
    items = [
        event(n, known[kind], epoch=number, ended=1)
        for n, (kind, number) in enumerate(zip(kinds, numbers, strict=False), 1)
    ]
    return Events(tuple(items), ())


def test_each_epoch_between_the_first_and_the_last_is_somebodys() -> None:
    assert check_epochs(reads(5, 6, 7, 8)) == []
    assert [one.epochs for one in check_epochs(reads(1, 2, 4, 5))] == [(3, 4)]
    assert [one.epochs for one in check_epochs(reads(1, 2, 5, 6))] == [(3, 5)]
    assert len(check_epochs(reads(*range(1, 40, 2)))) == 5, "more say nothing new"
    assert check_epochs(Events(reads(1, 5).items, ("a line is missing",))) == []


def test_epochs_of_operations_rise_to_the_last_event() -> None:
    assert {one.code for one in check_epochs(reads(1, 3, 2))} == {"epoch-order"}
    assert {one.code for one in check_epochs(reads(2, 1))} == {"epoch-order"}
    assert {one.code for one in check_epochs(reads(1, 1))} == {"epoch-order"}
    assert check_epochs(reads(1, 2, 1, names="rda")) == []
    late = [*reads(1, 3, 2).items]
    late[2] = event(3, "opened", epoch=2, implicit=True)
    assert check_epochs(Events(tuple(late), ())) == []


def meta(bits: str, at: int = 10, **header: Any) -> dict[str, Any]:
    fields = {"block_bytes": 8192, "bat_offset": 1536, **header}
    return {"header": fields, "footer": None, "bat": {"3": at}, "bitmaps": {"3": bits}}


def lost(old: str, new: str | None, **header: Any) -> list[tuple[int, int] | None]:
    later = meta(new or "", **header)
    later["bitmaps"] = {"3": new} if new is not None else {}
    found = lost_metadata("a", meta(old, **header), "b", later)
    return [one.sectors for one in found if one.code == "bitmap-bit-lost"]


def test_bits_that_are_lost_are_named_as_the_guests_sectors() -> None:
    assert lost("f0ff", "f0ff") == []
    assert lost("f00f", "ffff") == []
    assert lost("8001", "8000") == [(3 * 16 + 15, 1)]
    assert lost("8001", "0001") == [(3 * 16, 1)]
    assert lost("ffff", "f0f0") == [(3 * 16 + 4, 4), (3 * 16 + 12, 4)]
    assert lost("ffff", "ff") == [(3 * 16 + 8, 8)]
    assert lost("ffff", None) == [], "another version leaves a bitmap out"
    # What lies behind the block's last sector is nobody's.
    assert lost("ffffff00", "ffff0000") == []
    assert lost("80000001", "80000000", block_bytes=None) == [(31, 1)]
    assert lost("80000001", "80000000", block_bytes=True) == [(31, 1)]


@pytest.mark.parametrize(
    ("to", "code"), [(9, "bat-moved"), (11, "bat-moved"), (None, "bat-vanished")]
)
def test_an_entry_that_moved_by_one_or_vanished_is_named(to: int | None, code: str) -> None:
    later = meta("ff", to or 0)
    if to is None:
        later["bat"] = {}
    (found,) = lost_metadata("a", meta("ff"), "b", later)
    assert (found.code, found.block, found.sectors) == (code, 3, (48, 16))
    assert found.offset == 1536 + 4 * 3


def problems_in(*lines: str) -> list[str]:
    data = "".join(f"{line}\n" for line in lines).encode()
    return read_console([Chunk("alpha", 1.0, data, 1)], ()).problems


END = ("stopped 2", "readback done 8 0")


def test_the_guest_answers_each_write_once_and_in_turn() -> None:
    assert problems_in("ready", "start 1", "acked 0", "acked 1", *END) == []
    assert problems_in("start 1", "acked 0", "error 1 5", *END) == []
    assert "instead of write 0" in problems_in("start 1", "error 1 5", "acked 0", *END)[0]
    assert "instead of write 1" in problems_in("start 1", "acked 0", "acked 0", *END)[0]
    assert "has answers to 1" in problems_in("start 1", "acked 0", *END)[-1]


def test_only_ready_may_follow_the_read_back() -> None:
    said = ("start 1", "acked 0", "acked 1", *END)
    assert problems_in(*said, "ready") == []
    for line in ("acked 2", "start 1", "stopped 2", "readback done 8 0", "readback bad 1 1"):
        assert "after `readback done`" in problems_in(*said, line)[0]


def test_a_block_may_be_one_sector_and_no_less() -> None:
    disk = MemoryStorage()
    create_dynamic(disk, 1 << 20)
    data = bytearray(disk.pread(0, 1536)) + b"\xff" * 16384
    sizes = (
        (512, True), (1024, True), (4 << 20, True), (1 << 30, True), (256, False), (1536, False),
        (1 << 31, False),
    )  # fmt: skip
    for size, right in sizes:
        struct.pack_into(">II", data, 512 + 28, 4096, size)
        if right:
            reader = open_reader(MemoryView(bytes(data)))
            assert isinstance(reader, DynamicReader)
            assert reader.block_sectors == size // 512
            assert reader.bitmap_bytes == max(size // 4096, 512)
        else:
            with pytest.raises(CorruptImage):
                open_reader(MemoryView(bytes(data)))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A consistent record, without its image."""
    return prepare(load_record(oracle_cases.activate().save(tmp_path_factory.mktemp("case"))), None)


def codes_of(found: Iterable[Finding]) -> set[str]:
    return {one.code for one in found}


def test_each_word_of_the_command_is_compared_with_the_case(sound: Evidence) -> None:
    case, events = sound.record.case, sound.record.events
    assert case is not None
    right = f"make lab X=a=b STRATEGY={case.strategy} SEED={case.seed} GUARD=off"
    assert check_case_json(case, events, right) == []
    assert check_case_json(case, events, None) == []
    for before, after in (("GUARD=off", "GUARD=on"), (f"SEED={case.seed}", "SEED=999"),
                          (f"STRATEGY={case.strategy}", "STRATEGY=x")):  # fmt: skip
        assert codes_of(check_case_json(case, events, right.replace(before, after))) == {
            "case-command"
        }


def test_the_guard_is_what_the_leases_say(sound: Evidence) -> None:
    case, events = sound.record.case, sound.record.events
    assert case is not None
    on = replace(case, guard=True)
    assert codes_of(check_case_json(on, events, None)) == {"case-guard"}
    silent = Events(
        tuple(
            replace(one, extra={k: v for k, v in one.extra.items() if k != "lease"})
            for one in events.items
        ),
        (),
    )
    assert codes_of(check_case_json(on, silent, None)) == {"case-guard"}
    assert check_case_json(case, silent, None) == [], (
        "an older record with the guard off says nothing"
    )
    assert check_case_json(on, Events(silent.items, ("torn",)), None) == []


def test_a_point_lies_between_its_event_and_the_next_operation(sound: Evidence) -> None:
    record, legs = sound.record, sound.legs
    assert list(check_snapshot_points(record.snapshots, record.events, legs)) == []
    steps = [e for e in record.events.items if is_operation(e)]
    resumed = legs[0].resumed
    assert resumed is not None
    wrote = next(e for e in record.events.items if e.name == "allocated" and e.seq > resumed.seq)
    due = {
        "source-quiesced": legs[0].suspended, "destination-wrote": wrote,
        "all-closed": steps[-1],
    }  # fmt: skip
    for snapshot in record.snapshots:
        event = due.get(snapshot.point)
        if event is None:
            continue
        following = [e.seq for e in steps if e.seq > event.seq]
        for seq, right in (
            (event.seq, True), (event.seq - 1, False),
            *([(following[0] - 1, True), (following[0], False)] if following else []),
        ):  # fmt: skip
            moved = tuple(
                replace(one, seq=seq) if one is snapshot else one for one in record.snapshots
            )
            found = list(check_snapshot_points(moved, record.events, legs))
            assert codes_of(found) == (set() if right else {"point-place"}), (snapshot.name, seq)


def test_the_clock_of_a_shim_is_compared_with_no_console(sound: Evidence) -> None:
    items = tuple(
        replace(one, mono=one.mono + 1e6) if one.pid is not None else one
        for one in sound.record.events.items
    )
    record = replace(sound.record, events=Events(items, ()))
    assert check_consoles(record, sound.console, sound.legs, sound.allocations.by_block) == []


UNCHECKED = "the guest did not check on beta the extents that it had written once"


def two_legs() -> Events:
    """There and back, the second leg cancelled."""
    items = [
        *a_leg(),
        event(31, "migrate-started", "controller", "controller", leg=2),
        event(32, "opened", "beta", "source", leg=2),
        event(33, "opened", "alpha", "destination", leg=2),
        event(40, "suspended", "beta", "source", pid=None, leg=2),
        event(41, "cancelled", "controller", "controller", leg=2),
    ]
    return Events(tuple(items), ())


def test_each_leg_has_its_own_hosts_and_checks() -> None:
    both = legs_of(two_legs())
    assert [(one.source, one.destination, one.moved) for one in both] == [
        ("alpha", "beta", True), ("beta", "alpha", False),
    ]  # fmt: skip
    console = deep(LEAST_IN_FLIGHT, last=40.5)
    console.checks = [ExtentCheck(12.0, "beta", 1, 0), ExtentCheck(42.0, "beta", 1, 0)]
    assert untested_depth(console, both) == []
    console.checks = [ExtentCheck(42.0, "beta", 1, 0)]
    assert untested_depth(console, both) == [f"leg 1: {UNCHECKED}"]
    console.checks = [ExtentCheck(12.0, "beta", 1, 0)]
    assert untested_depth(console, both) == [f"leg 2: {UNCHECKED}"]
    assert incomplete_legs(both, 2) == []


def test_a_standby_of_a_guarded_case_has_nothing_open() -> None:
    items = (
        event(1, "activated", epoch=1, lease=True),
        event(2, "opened", "beta", "destination", epoch=2),
        event(3, "deactivated", epoch=3, ended=1),
        event(4, "unpaused", "beta", "destination", epoch=4, lease=True),
    )
    events = Events(items, ())
    held = [writers_at(events, seq) for seq in range(5)]
    assert held == [set(), {"alpha:7"}, {"alpha:7"}, set(), {"beta:7"}]
    free = Events(tuple(replace(one, extra={}) for one in items), ())
    assert writers_at(free, 2) == {"alpha:7", "beta:7"}


def test_while_nobody_has_the_image_open_no_bit_changes(sound: Evidence) -> None:
    snapshots = {one.point: one for one in sound.record.snapshots}
    closed, opened = snapshots["source-closed"], snapshots["destination-opened"]
    quiesced = snapshots["source-quiesced"]
    events, legs = sound.record.events, sound.legs

    def bits(one: Snapshot) -> Snapshot:
        bitmaps: Any = one.meta["bitmaps"]
        other = dict.fromkeys(bitmaps, "00")
        return replace(one, meta={**one.meta, "bitmaps": other})

    def found(*some: Snapshot) -> set[str]:
        told = check_allocations(sound.allocations, events, legs, some, None)
        return codes_of(one for one in told if one.code == "still-changed")

    assert found(quiesced, closed, opened) == set()
    assert found(closed, bits(opened)) == {"still-changed"}
    assert found(quiesced, bits(closed)) == set(), "the source may write bitmaps when it closes"


def test_a_check_that_cannot_be_done_vouches_for_nothing() -> None:
    none = MemoryView(b"no image")
    assert check_structure(none, "vhd", None).result == "skip"
    assert check_structure(none, "qcow2", {"allocated-clusters": 0}).result == "skip"
    assert check_structure(none, "raw", None).result == "skip"
    assert check_structure(None, "vhd", None).result == "pass", "that it is missing is said once"


def test_a_qcow2_header_that_no_run_makes_is_refused() -> None:
    good = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, 1 << 20, 0, 1, 0x30000, 0x10000, 1, 0, 0,
        0, 0, 0, 4, 104,
    )  # fmt: skip
    assert Tables(MemoryView(good + bytes(0x50000))).header.cluster == 1 << 16
    cases = {
        "clusters of 256 bytes": (20, 8), "clusters of 4 MiB": (20, 22), "version 1": (4, 1),
        "version 4": (4, 4), "refcounts of 128 bits": (96, 7), "no magic": (0, 0),
        "no L1 table": (36, 0), "encrypted": (32, 1), "snapshots": (60, 1),
        "a backing file": (12, 1),
                "marked as corrupt": (76, 2), "a feature that is not known": (76, 4),
    }  # fmt: skip
    for at, value in cases.values():
        raw = bytearray(good)
        struct.pack_into(">I", raw, at, value)
        with pytest.raises(CorruptImage):
            Tables(MemoryView(bytes(raw) + bytes(0x50000)))
    for bits in (8, 22):
        raw = bytearray(good)
        struct.pack_into(">IQ", raw, 20, bits, 512)
        struct.pack_into(">Q", raw, 40, 1 << 22)
        with pytest.raises(CorruptImage):
            Tables(MemoryView(bytes(raw) + bytes(5 << 20)))
    for order in (0, 6):
        raw = bytearray(good)
        struct.pack_into(">I", raw, 96, order)
        assert Tables(MemoryView(bytes(raw) + bytes(0x50000))).header.refcount_bits == 1 << order


def paced(made: int, early: int, late: int, at: float = 100.0) -> list[Finding]:
    """`made` blocks told before an event at `at`; so many acknowledgements before and after it."""
    load = Schedule(7, 512 * 4096, 4096)
    told = {block: event(n, "allocated") for n, block in enumerate(load.order[:made], 1)}
    stop = Event(made + 1, "suspended", 1, "alpha", "source", None, None, at, {})
    events = Events((*told.values(), stop), ())
    acks = [Ack(n, 1.0, "alpha") for n in range(early)]
    acks += [Ack(n, 1000.0, "alpha") for n in range(early, early + late)]
    return list(check_pace(acks, load, told, events))


def test_writes_and_blocks_agree_within_what_may_be_on_its_way() -> None:
    assert paced(100, 2 * 100 - 128, 500) == []
    assert codes_of(paced(100, 2 * 100 - 129, 500)) == {"console-time"}
    assert paced(100, 2 * 100 + 128, 0) == []
    assert codes_of(paced(100, 2 * 100 + 129, 0)) == {"console-time"}
    assert paced(200, 5, 0) == [], "a console that is cut off says so itself"
    assert paced(512 - 64, 5000, 0) == [], "no block is left to be made"
    assert codes_of(paced(512 - 65, 5000, 0)) == {"console-time"}
    assert codes_of(paced(100, 0, 500, at=994.0)) == {"console-time"}
    assert paced(100, 0, 500, at=996.0) == []


def test_data_that_nobody_wrote_is_no_lost_write(sound: Evidence) -> None:
    case = sound.record.case
    assert case is not None
    assert sound.record.image is not None
    silent = Console(seed=case.seed, issued=0, checked=0)
    with FileView(sound.record.image) as view:
        outcome = check_content(case, silent, view)
    assert outcome.lost_writes == frozenset()
    assert outcome.never_written > 100
    assert codes_of(outcome.findings) == {"never-written"}


def crossed(count: int, moved: bool = True) -> list[Finding]:
    """The shim of alpha made blocks; the last `count` writes were acknowledged on beta."""
    load = Schedule(7, 512 * 4096, 4096)
    told = {block: event(n, "allocated") for n, block in enumerate(load.order[:200], 1)}
    here = 2 * (200 - count)
    acks = [Ack(n, 1.0, "alpha" if n < here else "beta") for n in range(400)]
    return list(check_acknowledging_hosts(acks, load, told, legs() if moved else []))


def test_the_destination_acknowledges_writes_in_flight_only() -> None:
    assert crossed(0) == []
    assert crossed(64) == []
    assert codes_of(crossed(65)) == {"console-shim"}
    assert codes_of(crossed(1, moved=False)) == {"console-shim"}


def test_an_event_belongs_to_the_newest_possible_epoch() -> None:
    items = (
        event(1, "opened", epoch=1, mode="each"),
        event(2, "opened", epoch=3, mode="each", implicit=True),
        event(3, "first-request", epoch=5),
        event(4, "first-write", epoch=5),
        event(5, "closed", epoch=6, ended=5),
    )
    older, newer = check_activation(Events(items, ()), [], guard=False).readings
    assert (older.first, older.first_write, older.release) == (None, None, None)
    assert (newer.first, newer.first_write, newer.release) == items[2:]


def test_a_qcow2_zero_cluster_has_an_offset_and_no_data() -> None:
    raw = bytearray(0x70000)
    struct.pack_into(
        ">4sIQIIQIIQQIIQQQQII", raw, 0, b"QFI\xfb", 3, 0, 0, 16, 1 << 20, 0, 1, 0x30000, 0x10000,
        1, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    struct.pack_into(">Q", raw, 0x30000, 0x40000 | COPIED)
    struct.pack_into(">QQQ", raw, 0x40000, 0x50000 | COPIED, 0x60000 | COPIED | 1, 1)
    tables = Tables(MemoryView(bytes(raw)))
    assert tables.blocks == {0: 0x50000}
    assert {cluster: one.zero for cluster, one in tables.entries.items()} == {0: False, 1: True}
    struct.pack_into(">Q", raw, 0x40000, 0x50000 | 1 << 62)
    with pytest.raises(CorruptImage):
        Tables(MemoryView(bytes(raw)))


def test_refcounts_of_less_than_a_byte_fill_it_from_its_low_end() -> None:
    for bits, byte, expected in (
        (1, 0b10110001, [1, 0, 0, 0, 1, 1, 0, 1]), (2, 0b11100100, [0, 1, 2, 3]),
        (4, 0xA5, [5, 10]),
    ):  # fmt: skip
        block = bytes([byte, 0xFF])
        assert [refcount_at(block, n, bits) for n in range(8 // bits)] == expected
        assert refcount_at(block, 8 // bits, bits) == (1 << bits) - 1
    assert refcount_at(b"\0\1\2\3", 1, 16) == 0x0203


def test_a_footer_has_its_cookie_and_its_sum() -> None:
    disk = MemoryStorage()
    create_dynamic(disk, 1 << 20)
    whole = bytearray(disk.pread(0, disk.size()))
    footer = whole[:512]
    footer[0] ^= 1
    footer[64:68] = bytes(4)
    footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
    whole[:512] = whole[-512:] = footer
    with pytest.raises(NotAVhd):
        open_reader(MemoryView(bytes(whole)))
