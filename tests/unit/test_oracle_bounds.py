"""Bounds of the oracles' checks that no planted fault reaches, on evidence of a few lines."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import oracle_cases
from tests.unit.test_oracle_checks import codes_of, event, problems_in
from tests.unit.test_oracle_view import MemoryView
from vhdtool.image.check.image import CheckReport
from vhdtool.image.metadata.findings import Finding as Checked
from vhdtool.oracle.checks import structure
from vhdtool.oracle.checks.activation import check_activation
from vhdtool.oracle.checks.content import check_content
from vhdtool.oracle.checks.leftovers import check_leftovers
from vhdtool.oracle.checks.structure import check_structure
from vhdtool.oracle.contradictions.allocations import check_allocations
from vhdtool.oracle.contradictions.consoles import check_pace
from vhdtool.oracle.contradictions.snapshot_points import check_snapshot_points
from vhdtool.oracle.evidence.allocations import units_of
from vhdtool.oracle.evidence.case import Case
from vhdtool.oracle.evidence.console import Ack, read_console
from vhdtool.oracle.evidence.depth import DEEP, DeepContent, Depth
from vhdtool.oracle.evidence.events import Event, Events
from vhdtool.oracle.evidence.holdings import KINDS, Holdings
from vhdtool.oracle.evidence.legs import legs_of
from vhdtool.oracle.evidence.load import Load, depth_of
from vhdtool.oracle.evidence.record import Chunk, load_record
from vhdtool.oracle.evidence.schedule import Schedule
from vhdtool.oracle.evidence.snapshots import load_snapshots
from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, prepare
from vhdtool.oracle.readers.image_view import FileView, OverlayView
from vhdtool.oracle.readers.qcow2 import COPIED, examine
from vhdtool.oracle.readers.vhd import DynamicReader, open_reader


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A consistent record, without its image."""
    return prepare(load_record(oracle_cases.activate().save(tmp_path_factory.mktemp("case"))), None)


def test_a_vhd_in_use_must_hold_its_last_block(sound: Evidence) -> None:
    snapshot = next(one for one in sound.record.snapshots if one.point == "destination-wrote")
    bat = snapshot.meta["bat"]
    assert isinstance(bat, dict)
    short = replace(snapshot, meta={**snapshot.meta, "file_size": max(bat.values()) * 512})
    for shown, expected in ((snapshot, False), (short, True)):
        found = check_allocations(
            sound.allocations, sound.record.events, sound.legs, (shown,), None
        )
        assert ("size-short" in codes_of(found)) == expected


def test_a_deep_half_may_have_one_block(sound: Evidence) -> None:
    case = sound.record.case
    assert case is not None
    assert depth_of(replace(case, deep_blocks=0)) is None
    depth = depth_of(replace(case, deep_blocks=1))
    assert depth is not None
    assert depth.count == 1


def test_a_deep_write_without_ack_may_be_on_the_disk() -> None:
    depth = Depth(8, 8, 4096)
    number = depth.number(0, 0)
    sector, _ = depth.extent(number)
    schedule = Schedule(7, 16 * 4096, 4096, 8)
    for ended in (True, False):
        load = Load(schedule, frozenset(), 0, {}, {}, DeepContent(depth, {0: 0}, ended))
        assert load.may_be_unacknowledged(number, sector) == (not ended)
        assert not load.may_be_unacknowledged(number, sector - 1)
    assert not Load(schedule, frozenset(), None, {}, {}).may_be_unacknowledged(DEEP, sector)


def test_data_of_the_load_may_be_under_a_clear_bit(sound: Evidence) -> None:
    case, image = sound.record.case, sound.record.image
    assert case is not None
    assert image is not None
    console = read_console(sound.record.console, ())
    sector = min(Load.of(case, console).last)
    with FileView(image) as view:
        reader = open_reader(view)
        assert isinstance(reader, DynamicReader)
        block, inside = divmod(sector, reader.block_sectors)
        bits = reader.bitmap(block)[inside // 8] & ~(0x80 >> inside % 8)
        patch = (reader.blocks[block] * 512 + inside // 8, bytes([bits]))
        found = check_content(case, console, OverlayView(view, [patch])).findings
    assert codes_of(found) == {"lost"}


def test_the_shim_of_the_guest_is_the_last_that_read_there(sound: Evidence) -> None:
    case = sound.record.case
    assert case is not None
    started = event(1, "migrate-started", "controller", "controller")
    events = (
        started,
        event(2, "activated", "beta", "destination", epoch=1),
        event(3, "suspended", "alpha", "source", pid=None),
        event(4, "resumed", "beta", "destination", pid=None),
        event(5, "migrated", "controller", "controller"),
        event(6, "attached", "beta", "destination", pid=99),
        event(7, "activated", "alpha", "source", epoch=2, pid=98),
        event(8, "activated", "beta", "destination", epoch=3, pid=97),
    )
    seen = Events(events, ())
    assert codes_of(leftovers_at(case, seen, "leg-1", 3, shim=7)) == {"held-missing"}
    assert "held-blind" in codes_of(leftovers_at(case, seen, "leg-1", 3, shim=99))


@pytest.mark.parametrize(("point", "epoch"), [("before", 0), ("after", 3)])
def test_the_epochs_before_and_after_are_those_of_the_events(
    sound: Evidence, point: str, epoch: int
) -> None:
    case = sound.record.case
    assert case is not None
    events = (event(1, "activated", epoch=1), event(2, "deactivated", epoch=3, ended=1))
    for stated in (epoch - 1, epoch, epoch + 1):
        codes = codes_of(leftovers_at(case, Events(events, ()), point, stated))
        assert ("held-epoch" in codes) == (stated != epoch)


def leftovers_at(
    case: Case, events: Events, point: str, epoch: int, shim: int = 7
) -> list[Finding]:
    """Findings about the holdings of beta at one point, the only ones of the record."""
    lines = {
        kind: (f"pid {shim}: x",) if kind in ("processes", "sockets") else () for kind in KINDS
    }
    seq = 5 if point == "leg-1" else 0
    held = Holdings("beta", point, seq, "/srv/image.vhd", epoch, lines)
    found = check_leftovers(case, (held,), (), events, legs_of(events)).findings
    return [*found]


def test_blocks_of_the_deep_half_do_not_countcheck_paced_writes() -> None:
    load = Schedule(7, 512 * 4096, 4096, 200)
    paced = {block: event(n, "allocated") for n, block in enumerate(load.order[:10], 1)}
    deep = {block: event(n, "allocated") for n, block in enumerate(range(312, 512), 11)}
    stop = Event(211, "suspended", 1, "alpha", "source", None, None, 100.0, {})
    events = Events((*paced.values(), *deep.values(), stop), ())
    acks = [Ack(n, 1.0, "alpha") for n in range(20)] + [Ack(n, 900.0, "alpha") for n in range(999)]
    assert list(check_pace(acks, load, {**paced, **deep}, events)) == []


def test_a_bad_sector_is_named_with_its_write() -> None:
    lines = b"start 1\nacked 0\nstopped 1\nreadback bad 0 77\nreadback done 8 1\n"
    assert read_console([Chunk("alpha", 1.0, lines, 1)], ()).bad == [(0, 77)]
    assert problems_in("start 1", "acked 0", "stopped 1", "readback bad 0 77") != []


def test_a_process_does_not_overlap_with_itself() -> None:
    events = (
        event(1, "activated", epoch=1, lease=True),
        event(2, "activated", epoch=2, lease=True),
        event(3, "closed", epoch=3, ended=1),
    )
    outcome = check_activation(Events(events, ()), [], guard=False)
    assert outcome.of_severity("corrupt") == []
    other = (events[0], replace(events[1], host="beta"), events[2])
    assert len(check_activation(Events(other, ()), [], False).of_severity("corrupt")) == 1


def test_leaked_clusters_of_qemu_are_only_information() -> None:
    report = {"leaks": 3, "check-errors": 0}
    found = check_structure(MemoryView(b"no image"), "qcow2", report).findings
    assert [one.severity for one in found if one.code == "qemu-img-leaks"] == ["info"]


def test_every_block_of_a_snapshot_is_a_number(sound: Evidence, tmp_path: Path) -> None:
    meta = dict(next(iter(sound.record.snapshots)).meta)
    for bat, torn in (({"3": 9}, False), ({"3": 9, "x": 9}, True), ({"3": 9, "\u0663": 9}, True)):
        stated = {**meta, "point": "all-closed", "seq": 1, "bat": bat, "bitmaps": {}}
        (tmp_path / "1-all-closed.json").write_text(json.dumps(stated))
        found, problems = load_snapshots(tmp_path, None, Events((), ("torn",)))
        assert (len(found), bool(problems)) == (0 if torn else 1, torn)


def test_points_of_legs_that_a_case_does_not_have_are_not_due(
    sound: Evidence, tmp_path: Path
) -> None:
    assert sound.record.case is not None
    case = replace(sound.record.case, points={1: (), 2: ("source-closed",)}, legs=1)
    assert load_snapshots(tmp_path, case, Events((), ("torn",)))[1] == (
        "metadata/1-all-closed.json: missing",
    )


def test_a_guest_is_stopped_up_to_its_resume(sound: Evidence) -> None:
    resumed = sound.legs[0].resumed
    assert resumed is not None
    points = {one.point: one for one in sound.record.snapshots}
    for seq, expected in ((resumed.seq - 1, True), (resumed.seq, False)):
        pair = (points["destination-opened"], replace(points["destination-wrote"], seq=seq))
        found = check_allocations(sound.allocations, sound.record.events, sound.legs, pair, None)
        assert ("still-changed" in codes_of(found)) == expected


def test_a_qcow2_block_is_what_one_table_maps(sound: Evidence) -> None:
    assert sound.record.case is not None
    case = replace(sound.record.case, image="image.qcow2")
    snapshot = sound.record.snapshots[0]
    for size, entries in ((4096, 512), (0, 8192), (None, 8192), ("4096", 8192)):
        shown = replace(snapshot, meta={**snapshot.meta, "header": {"block_bytes": size}})
        assert units_of(case, (shown,)).entries == entries


def test_a_cancelled_leg_has_no_points_of_earlier_legs() -> None:
    items = (
        event(1, "activated", epoch=1),
        event(2, "migrate-started", "controller", "controller"),
        event(3, "activated", "beta", "destination", epoch=2),
        event(4, "migrated", "controller", "controller"),
        event(5, "migrate-started", "controller", "controller", leg=2),
        event(6, "refused", "alpha", "destination", leg=2),
        event(7, "refused", "beta", "source", leg=2),
        event(8, "cancelled", "controller", "controller", leg=2),
    )
    events = Events(items, ())
    found = list(check_snapshot_points((), events, legs_of(events)))
    assert not [one for one in found if "2-destination-opened" in one.message]


@pytest.mark.parametrize("kind", ["locks", "lease", "keys"])
def test_a_new_image_is_not_in_use(sound: Evidence, kind: str) -> None:
    case = sound.record.case
    assert case is not None
    lines = {**dict.fromkeys(KINDS, ()), kind: ("a line",)}
    held = Holdings("beta", "before", 0, "/srv/image.vhd", 0, lines)
    found = check_leftovers(case, (held,), (), Events((), ("torn",)), []).findings
    assert "held-before" in codes_of(found)


def test_information_of_the_strict_check_is_no_damage(
    sound: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(view: FileView, mode: str) -> CheckReport:
        report = CheckReport(view.name, mode)
        report.findings = [Checked("any-code", "info", "said")]
        return report

    monkeypatch.setattr(structure, "check", check)
    found = check_structure(MemoryView(b""), "vhd", None).findings
    assert [one.severity for one in found] == ["info"]


def test_the_refcount_table_of_a_qcow2_image_is_in_use() -> None:
    raw = bytearray(0x70000)
    struct.pack_into(
        ">4sIQIIQIIQQIIQQQQII", raw, 0, b"QFI\xfb", 3, 0, 0, 16, 1 << 20, 0, 1, 0x30000, 0x10000,
        1, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    struct.pack_into(">Q", raw, 0x10000, 0x20000)
    struct.pack_into(">7H", raw, 0x20000, 1, 1, 1, 1, 1, 0, 1)
    struct.pack_into(">Q", raw, 0x30000, 0x40000 | COPIED)
    struct.pack_into(">Q", raw, 0x40000, 0x10000 | COPIED)
    findings, _ = examine(MemoryView(bytes(raw)))
    assert [one.offset for one in findings if one.code == "cluster-place"] == [0x10000]
    leaks = [one for one in findings if one.code == "refcount-leak"]
    assert [one.severity for one in leaks] == ["info"]
