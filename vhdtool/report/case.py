"""One case of a run: its entry in verdict.json as typed values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vhdtool.oracle.evidence.console import Ack
from vhdtool.oracle.evidence.events import Events
from vhdtool.report.lenient_json import integer, items, mapping, number, text

VERDICTS = ("consistent", "corrupt", "refused", "inconclusive", "error")
ORACLES = ("content", "metadata", "structure", "activation", "leftovers")
PHASES = ("quiesce", "deactivate", "transfer", "activate", "resume")
NO_EVENTS = Events((), ())


@dataclass(frozen=True)
class Finding:
    """A finding of an oracle. `sectors` is (first, count) in guest sectors of 512 bytes."""

    oracle: str
    code: str
    severity: str
    message: str
    block: int | None
    sectors: tuple[int, int] | None


@dataclass(frozen=True)
class Oracle:
    """The result of an oracle: pass, fail or skip; `note` is the reason of a skip, where known."""

    name: str
    result: str
    findings: tuple[Finding, ...]
    note: str


@dataclass(frozen=True)
class Case:
    """A case: its verdict and figures, and the files of its directory that could be read.

    Counts are writes, blocks or epochs; times are milliseconds; None means not known. `notes`
    name the files of the record that could not be used.
    """

    directory: str
    path: Path | None
    """None where the record could not be read."""
    strategy: str
    guard: bool
    seed: int | None
    direction: str
    attempts: int | None
    expected: str
    verdict: str
    why: str
    oracles: tuple[Oracle, ...]
    planted: int | None
    caught: int | None
    writes: dict[str, int | None]
    blocks: dict[str, int | None]
    overlap_epochs: int | None
    margin_ms: float | None
    blackout_ms: dict[str, float | None]
    given: str = ""
    """The steps of a given order, where they were read."""
    in_flight: tuple[int, ...] = ()
    """Requests in flight at the stop of the guest, for each leg."""
    facts: dict[str, Any] = field(default_factory=dict)
    events: Events = NO_EVENTS
    acks: tuple[Ack, ...] = ()
    reproduce: str = ""
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def order(self) -> str:
        """The strategy, or the steps of a given order: all of those have one name."""
        return self.given or self.strategy

    @property
    def as_expected(self) -> bool:
        return self.verdict == self.expected

    @property
    def data_whole(self) -> bool:
        """Whether a corrupt case broke only the rule that one host at a time is active."""
        results = {oracle.name: oracle.result for oracle in self.oracles}
        data = all(results.get(name) == "pass" for name in ("content", "metadata", "structure"))
        return self.verdict == "corrupt" and data and results.get("activation") == "fail"

    @property
    def guard_setting(self) -> str:
        return "on" if self.guard else "off"

    @property
    def findings(self) -> list[Finding]:
        return [finding for oracle in self.oracles for finding in oracle.findings]

    @property
    def error(self) -> tuple[str, list[str]] | None:
        """The lab's own error and the last lines of its log, or None."""
        error = mapping(self.facts.get("error"))
        if not error:
            return None
        return text(error.get("what"), "no reason recorded"), [
            text(line) for line in items(error.get("log")) if isinstance(line, str)
        ]


def parse_entry(entry: dict[str, Any]) -> Case:
    """Parse an entry of `strategies` in verdict.json; the case's directory is not read."""
    writes, blocks = mapping(entry.get("writes")), mapping(entry.get("blocks_allocated"))
    planted, blackout = mapping(entry.get("planted")), mapping(entry.get("blackout_ms"))
    verdict = text(entry.get("verdict"))
    return Case(
        directory=text(entry.get("case")),
        path=None,
        strategy=text(entry.get("name"), "(no name)"),
        guard=entry.get("guard") is True,
        seed=integer(entry.get("seed")),
        direction=text(entry.get("direction")),
        attempts=integer(entry.get("attempts")),
        expected=text(entry.get("expected"), "?"),
        verdict=verdict if verdict in VERDICTS else "inconclusive",
        why=text(entry.get("why")),
        oracles=_oracles(mapping(entry.get("oracles"))),
        planted=integer(planted.get("faults")),
        caught=integer(planted.get("caught")),
        writes={
            key: integer(writes.get(key))
            for key in ("acked", "acked_after_resume", "lost", "never_written")
        },
        blocks={key: integer(blocks.get(key)) for key in ("before_suspend", "after_resume")},
        overlap_epochs=integer(entry.get("active_overlap_epochs")),
        margin_ms=number(entry.get("margin_ms")),
        in_flight=tuple(
            count for one in items(entry.get("in_flight")) if (count := integer(one)) is not None
        ),
        # verdict.json has 0 for a time that is not known, and for a phase that did not occur.
        blackout_ms={key: number(blackout.get(key)) or None for key in ("total", *PHASES)},
        notes=() if verdict in VERDICTS else (f"unknown verdict {verdict!r} in verdict.json",),
    )


def _oracles(recorded: dict[str, Any]) -> tuple[Oracle, ...]:
    """The five oracles in their order, then oracles that this version does not know."""
    names = [*ORACLES, *sorted(set(recorded) - set(ORACLES))]
    result = []
    for name in names:
        entry = mapping(recorded.get(name))
        found = tuple(_finding(name, mapping(item)) for item in items(entry.get("findings")))
        note = text(entry.get("why")) or text(entry.get("reason")) or text(entry.get("note"))
        result.append(Oracle(name, text(entry.get("result"), "missing"), found, note))
    return tuple(result)


def _finding(oracle: str, entry: dict[str, Any]) -> Finding:
    pair = [integer(value) for value in items(entry.get("sectors"))]
    sectors = None
    if len(pair) == 2 and pair[0] is not None and pair[1] is not None:
        sectors = (pair[0], pair[1])
    return Finding(
        oracle=oracle,
        code=text(entry.get("code"), "?"),
        severity=text(entry.get("severity")),
        message=text(entry.get("message")),
        block=integer(entry.get("block")),
        sectors=sectors,
    )
