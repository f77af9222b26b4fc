"""The record of a case: numbered events, one clock, consoles joined in order of arrival."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vhdtool.errors import LabError
from vhdtool.lab.case.console import Consoles
from vhdtool.lab.case.record import Record
from vhdtool.lab.hosts.connection import Host


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    one = Record(tmp_path / "case")
    one.sides = {"alpha": "source", "beta": "destination"}
    yield one
    one.close()


@pytest.fixture
def consoles(tmp_path: Path) -> Iterator[Consoles]:
    one = Consoles(tmp_path)
    yield one
    one.close()


def host(name: str, offset: float = 0.0) -> Host:
    return cast(Host, SimpleNamespace(name=name, clock_offset=offset))


def lines(record: Record) -> list[dict[str, Any]]:
    text = (record.folder / "events.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_events_are_numbered_without_gaps_and_know_their_side(record: Record) -> None:
    record.note("migrate-started")
    record.from_shim(host("beta"), {"event": "attached", "pid": 7, "mono": 1.0, "wall": 2.0})
    record.leg = 2
    record.note("suspended", "alpha", stop_mono=3.0)
    record.close()
    found = lines(record)
    assert [event["seq"] for event in found] == [1, 2, 3]
    assert [event["side"] for event in found] == ["controller", "destination", "source"]
    assert [event["leg"] for event in found] == [1, 1, 2]
    assert found[1]["pid"] == 7


def test_times_of_a_host_are_brought_to_the_controllers_clock(record: Record) -> None:
    stamp = {"mono": 10.0, "read_mono": 9.5, "began_mono": 9.0, "last_metadata_mono": None}
    record.from_shim(host("beta", 100.0), {"event": "activated", "pid": 1, "wall": 0.0, **stamp})
    record.close()
    (event,) = lines(record)
    assert (event["mono"], event["read_mono"], event["began_mono"]) == (110.0, 109.5, 109.0)
    assert event["last_metadata_mono"] is None


def test_an_event_that_does_not_come_is_an_error_of_the_lab(record: Record) -> None:
    with pytest.raises(LabError, match="no allocation within 0 s"):
        record.wait("allocation", lambda event: event["event"] == "allocated", 0.01)


def test_a_line_that_is_split_over_two_hosts_counts_once(
    consoles: Consoles, tmp_path: Path
) -> None:
    alpha, beta = consoles.follow("alpha"), consoles.follow("beta")
    alpha(b"ready\r\nacked 0\r\nack")
    assert consoles.acked == 1
    beta(b"ed 1\r\nacked 2\r\n")
    consoles.close()
    assert consoles.acked == 3
    assert consoles.lines == ["ready"]
    index = [json.loads(line) for line in (tmp_path / "console.jsonl").read_text().splitlines()]
    assert [(entry["host"], entry["offset"]) for entry in index] == [("alpha", 0), ("beta", 0)]
    assert (tmp_path / "console-alpha.log").read_bytes().endswith(b"ack")


def test_a_broken_guest_ends_the_wait_at_once(consoles: Consoles) -> None:
    consoles.follow("alpha")(b"[ 1.0] Oops: 0000 [#1] PREEMPT\r\n")
    with pytest.raises(LabError, match=r"trouble.*Oops"):
        consoles.wait_acked(1, 5)


def test_a_silent_guest_is_named_with_its_last_words(consoles: Consoles) -> None:
    consoles.follow("alpha")(b"start 1\r\n")
    with pytest.raises(
        LabError, match=r"did not reach 1 acknowledged writes .* last line: start 1"
    ):
        consoles.wait_acked(1, 0.01)
