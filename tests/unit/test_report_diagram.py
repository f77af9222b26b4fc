"""The drawings: bars where the events say, and red exactly where both hosts were active."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import synthetic_run
from tests.support.synthetic_run import Recorder
from vhdtool.oracle.evidence.console import read_console
from vhdtool.oracle.evidence.record import load_record
from vhdtool.oracle.verdict import judge_case
from vhdtool.report.drawing.blackout import Blackout, find_blackouts
from vhdtool.report.drawing.diagram import overview, zoom
from vhdtool.report.drawing.primitives import Bar, Drawing, Label, Polygon, Scale, text_width
from vhdtool.report.drawing.timeline import Timeline, build_timeline


def _read(recorder: Recorder, path: Path) -> tuple[Timeline, list[Blackout]]:
    facts = {"strategy": "x", "guard": True, "seed": 1}
    recorder.save(path / "case", facts)
    record = load_record(path / "case")
    line = build_timeline(record.events)
    assert line is not None
    return line, find_blackouts(line, read_console(record.console, ()).acks)


def _bars(drawing: Drawing, css: str) -> list[Bar]:
    return [s for s in drawing.shapes if isinstance(s, Bar) and s.css == css]


def test_active_bars_follow_each_other_when_nothing_overlaps(tmp_path: Path) -> None:
    line, switches = _read(synthetic_run.activate(), tmp_path)
    drawing = overview(line, switches)
    (source,) = _bars(drawing, "active-a")
    (target,) = _bars(drawing, "active-b")
    assert source.x + source.width <= target.x
    assert source.y < target.y
    assert not _bars(drawing, "overlap")


def test_overlap_is_red_between_early_open_and_late_close(tmp_path: Path) -> None:
    line, switches = _read(synthetic_run.overlap(), tmp_path)
    (start, end) = line.overlaps[0]
    assert end - start == pytest.approx(1.060)
    drawing = overview(line, switches)
    (red,) = _bars(drawing, "overlap")
    (source,) = _bars(drawing, "active-a")
    (target,) = _bars(drawing, "active-b")
    assert red.x == pytest.approx(target.x)
    assert red.x + red.width == pytest.approx(source.x + source.width)
    assert red.y < source.y
    assert red.y + red.height > target.y + target.height


def test_an_early_open_that_served_nothing_is_no_activation(tmp_path: Path) -> None:
    line, _ = _read(synthetic_run.overlap(guard=True), tmp_path)
    assert {span.host for span in line.active} == {"alpha"}
    assert not line.overlaps
    assert ("beta", "refused") in {(mark.host, mark.event) for mark in line.marks}


def test_a_reopened_disk_is_active_from_its_second_read_on(tmp_path: Path) -> None:
    line, _ = _read(synthetic_run.reopen(), tmp_path)
    source, target = line.active
    assert (source.host, target.host) == ("alpha", "beta")
    assert source.end < target.start == pytest.approx(101.403)
    assert not line.overlaps


def test_the_blackout_lies_between_two_acknowledgements(tmp_path: Path) -> None:
    line, (switch,) = _read(synthetic_run.activate(), tmp_path)
    assert (switch.end - switch.start) * 1000 == pytest.approx(52)
    assert [phase.name for phase in switch.phases] == list(synthetic_run.PHASES)
    lengths = [round((phase.end - phase.start) * 1000, 1) for phase in switch.phases]
    assert lengths == [1.5, 1.4, 9.6, 1.6, 33.0]
    drawing = zoom(line, switch)
    texts = [shape.text for shape in drawing.shapes if isinstance(shape, Label)]
    for word in ("SUSPENDED", "RESUME", "9.6 ms", "no write acknowledged for 52.0 ms"):
        assert word in texts


def test_the_drawing_has_the_figures_of_the_verdict(tmp_path: Path) -> None:
    line, (switch,) = _read(synthetic_run.activate(), tmp_path)
    entry = judge_case(tmp_path / "case")["blackout_ms"]
    shown = switch.durations_ms()
    assert {name: shown.get(name, 0.0) for name in entry} == entry
    assert (switch.end - switch.start) * 1000 == pytest.approx(entry["total"], abs=0.01)
    texts = [shape.text for shape in zoom(line, switch).shapes if isinstance(shape, Label)]
    assert f"no write acknowledged for {entry['total']:.1f} ms" in texts


def test_a_leg_cancelled_while_copying_has_a_coloured_bar(tmp_path: Path) -> None:
    recorder = synthetic_run.overlap(guard=True)
    recorder.events = [event for event in recorder.events if event["event"] != "suspended"]
    line, switches = _read(recorder, tmp_path)
    assert switches == []
    (copying,) = _bars(overview(line, switches), "vm-copy vm-a")
    assert copying.title.startswith("pre-copy, cancelled")


def test_each_leg_has_its_direction_and_its_blackout(tmp_path: Path) -> None:
    _, switches = _read(synthetic_run.activate(back=True), tmp_path)
    assert [(s.leg.source, s.leg.destination) for s in switches] == [
        ("alpha", "beta"),
        ("beta", "alpha"),
    ]
    assert all(s.leg.moved for s in switches)


def test_a_failed_leg_is_cancelled_and_the_guest_goes_on(tmp_path: Path) -> None:
    line, switches = _read(synthetic_run.retry(), tmp_path)
    assert [s.leg.moved for s in switches] == [False, True]
    assert switches[0].leg.fault == "destination's QEMU killed"
    assert [span.host for span in line.active] == ["alpha", "alpha", "beta"]
    texts = [s.text for s in zoom(line, switches[0]).shapes if isinstance(s, Label)]
    assert "CANCEL" in texts


def test_a_cancel_outside_of_the_scale_is_not_drawn(tmp_path: Path) -> None:
    recorder = synthetic_run.overlap(guard=True)
    (cancelled,) = [event for event in recorder.events if event["event"] == "cancelled"]
    cancelled["mono"] += 1.0
    line, (blackout,) = _read(recorder, tmp_path)
    texts = [s.text for s in zoom(line, blackout).shapes if isinstance(s, Label)]
    assert "SUSPENDED" in texts
    assert "CANCEL" not in texts


@pytest.mark.parametrize(
    "recorder",
    [
        synthetic_run.overlap(),
        synthetic_run.overlap(guard=True),
        synthetic_run.activate(),
        synthetic_run.activate(back=True),
        synthetic_run.retry(),
        synthetic_run.reopen(),
    ],
)
def test_labels_stay_in_the_drawing_and_do_not_collide(recorder: Recorder, tmp_path: Path) -> None:
    line, switches = _read(recorder, tmp_path)
    for drawing in [overview(line, switches), *(zoom(line, s) for s in switches)]:
        labels = [s for s in drawing.shapes if isinstance(s, Label)]
        boxes = sorted((round(s.y), *_extent(s)) for s in labels)
        for (row, _, right), (next_row, left, _) in pairwise(boxes):
            assert row != next_row or right <= left + 1, (boxes, drawing.title)
        assert all(left >= -1 and right <= drawing.width + 1 for _, left, right in boxes)
        for shape in drawing.shapes:
            if isinstance(shape, Bar):
                assert 0 <= shape.x <= shape.x + shape.width <= drawing.width
                assert 0 <= shape.y <= shape.y + shape.height <= drawing.height
            elif isinstance(shape, Polygon):
                assert all(0 <= x <= drawing.width for x, _ in shape.points)


def _extent(label: Label) -> tuple[float, float]:
    width = text_width(label.text)
    left = label.x - width * {"start": 0, "middle": 0.5, "end": 1}[label.anchor]
    return left, left + width


def test_labels_are_painted_over_everything_else(tmp_path: Path) -> None:
    line, switches = _read(synthetic_run.overlap(), tmp_path)
    kinds = [isinstance(shape, Label) for shape in overview(line, switches).painted()]
    assert kinds == sorted(kinds)


def test_scale_marks_round_values_and_clips() -> None:
    scale = Scale(10.0, 10.05, 0, 100)
    assert scale.x(9) == 0
    assert scale.x(11) == 100
    marks = scale.ticks(0.001, 10.0, about=5)
    assert [text for _, text in marks] == ["0", "10", "20", "30", "40", "50"]
    assert Scale(1, 1, 0, 100).ticks(1, 0) == []
