"""The lines of a run in a log."""

import re

from vhdtool.lab.log import Place, verdict_line, with_time

PLACE = Place(3, 15, "overlap off s1")


def test_a_case_is_one_line_with_the_time() -> None:
    lines: list[str] = []
    verdict = {"verdict": "corrupt", "expected": "corrupt", "why": "35 writes lost"}
    with_time(lines.append)(verdict_line(PLACE, verdict, 5.12))
    (line,) = lines
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[3/15\] overlap off s1 corrupt, as expected, 5.1 s", line)


def test_every_failure_has_the_one_word() -> None:
    for got in ("consistent", "refused", "inconclusive", "error"):
        line = verdict_line(PLACE, {"verdict": got, "expected": "corrupt", "why": "so"}, 5.0)
        assert line == f"[3/15] overlap off s1 {got}, FAILED: corrupt was expected, 5.0 s: so"
