"""Joining and reading the guest's console."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhdtool.oracle.evidence.console import Console, read_console
from vhdtool.oracle.evidence.record import Chunk, load_record

WHOLE = b"ready\r\nstart 7\r\n" + b"".join(b"acked %d\r\n" % n for n in range(30))
WHOLE += b"stopped 30\r\nreadback done 9 0\r\n"


def heard(*parts: bytes) -> Console:
    chunks = [Chunk("alpha", float(place), part) for place, part in enumerate(parts)]
    return read_console(chunks, [])


def test_a_whole_console_has_no_problem() -> None:
    console = heard(WHOLE)
    assert not console.problems
    assert [ack.n for ack in console.acks] == list(range(30))
    assert (console.seed, console.issued, console.checked, console.bad_total) == (7, 30, 9, 0)


def test_a_line_cut_by_the_switch_belongs_to_where_it_ended() -> None:
    cut = WHOLE.index(b"acked 12") + 7
    chunks = [Chunk("alpha", 1.0, WHOLE[:cut]), Chunk("beta", 2.0, WHOLE[cut:])]
    console = read_console(chunks, [])
    assert not console.problems
    assert [(ack.host, ack.mono) for ack in console.acks[11:13]] == [("alpha", 1.0), ("beta", 2.0)]


@settings(deadline=None)
@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_any_cut_into_chunks_reads_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(WHOLE)]
    parts = [WHOLE[a:b] for a, b in itertools.pairwise(edges)]
    console = heard(*parts)
    assert not console.problems
    assert [ack.n for ack in console.acks] == list(range(30))


@settings(deadline=None)
@given(st.integers(0, len(WHOLE)), st.integers(1, 60))
def test_missing_bytes_are_noticed_and_forge_no_acknowledgement(start: int, length: int) -> None:
    data = WHOLE[:start] + WHOLE[start + length :]
    console = heard(data)
    gone = WHOLE[start : start + length]
    harmless = not gone or data.replace(b"ready\r\n", b"").endswith(WHOLE[len(b"ready\r\n") :])
    if not harmless and b"".join(data.split(b"\r")) != b"".join(WHOLE.split(b"\r")):
        assert console.problems
    assert {ack.n for ack in console.acks} <= set(range(30))


def test_two_torn_lines_that_join_into_a_number_are_not_believed() -> None:
    console = heard(b"start 7\r\nacked 0\r\nacked 1\r\nacked 2", b"9\r\nacked 30\r\n")
    assert [ack.n for ack in console.acks] == [0, 1, 30]
    assert console.problems


def test_only_lines_that_end_count() -> None:
    assert [ack.n for ack in heard(b"start 7\r\nacked 0\r\nacked 1").acks] == [0]


def test_errors_of_writes_and_of_the_read_back_are_told_apart() -> None:
    console = heard(b"start 7\r\nacked 0\r\nerror 1 5\r\nacked 2\r\nstopped 3\r\nerror 0 5\r\n"
                    b"readback done 5 1\r\n")  # fmt: skip
    assert console.errors == [(1, 5), (0, 5)]
    assert not console.problems


def test_garbled_lines_and_trouble_in_the_kernel_are_seen() -> None:
    assert heard(b"start 7\r\nacked 0acked 1\r\n").problems
    for line in (b"Oops: 0000 [#1]", b"BUG: bad", b"Kernel panic - not", b"general protection"):
        assert heard(b"[   3.1] " + line + b"\r\n").oops
    assert heard(WHOLE).oops is None


def test_acknowledgements_missing_before_stopped_are_noticed() -> None:
    console = heard(b"start 7\r\nacked 0\r\nstopped 3\r\nreadback done 1 0\r\n")
    assert console.problems == ["the guest issued 3 writes, its console has answers to 1"]


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ([("alpha", 0), ("alpha", 99)], "shorter than console.jsonl says"),
        ([("alpha", 0), ("alpha", 6), ("alpha", 3)], "offsets do not rise"),
        ([("alpha", 2)], "the first 2 bytes"),
        ([("alpha", 0), ("beta", 0)], "console-beta.log: missing"),
        ([], "console.jsonl is empty"),
    ],
)
def test_an_index_that_does_not_fit_the_logs_is_torn(
    index: list[tuple[str, int]], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "console-alpha.log").write_bytes(b"start 7\r\n")
    lines = [{"host": host, "offset": offset, "mono": 1.0} for host, offset in index]
    (tmp_path / "console.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert any(problem in told for told in load_record(tmp_path).console_problems)
