"""Sentences and figures that the terminal, the page and the drawings share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vhdtool.lab.strategies import STRATEGIES
from vhdtool.report.case import Case

QUESTION = (
    "Does this order of storage operations keep a disk image intact while its guest "
    "migrates live from one host to another, writing all the time?"
)

VERDICTS = {
    "consistent": "no acknowledged write was lost, and all oracles agree",
    "corrupt": "the image lost or damaged acknowledged data, or its metadata contradict it",
    "refused": "the guard refused the switch, and the guest went on at the source unharmed",
    "inconclusive": "the record proves nothing either way",
    "error": "the lab itself failed; this says nothing about the order",
}

LIMITS = (
    "A consistent run shows that the disk survived this order under this load, once. The margin "
    "tells how close it was; a soak (make soak) repeats the run and states a bound.",
    "A guest on TCG (emulated) runs slower than on KVM, so its blackout is longer; compare "
    "blackouts within one run only.",
    "The exclusive-activation oracle trusts the epochs that both shims write to the shared "
    "storage; a host that bypasses the shim is noticed by the other oracles only.",
)
LOCAL_LIMIT = (
    "The local lab's two hosts share one kernel and so one page cache: a run there does not "
    "test the caches of NFS or cluster file-system clients. Separate machines are needed for that."
)


@dataclass(frozen=True)
class Summary:
    """All cases of a strategy with one guard setting."""

    strategy: str
    label: str
    summary: str
    guard: bool
    verdict: str
    expected: str
    as_expected: bool
    sentence: str


def describe(strategy: str) -> tuple[str, str]:
    """Return a strategy's label and summary; empty strings for an unknown strategy."""
    known = STRATEGIES.get(strategy)
    return ("", "") if known is None else (known.label, known.summary)


def order(case: Case) -> tuple[int, str, bool, int]:
    """Sort key: by strategy, then guard off before on; unknown strategies come last."""
    known = list(STRATEGIES)
    position = known.index(case.strategy) if case.strategy in known else len(known)
    return position, case.strategy, case.guard, case.seed or 0


def summaries(cases: Sequence[Case]) -> list[Summary]:
    """Summarise the cases of each strategy and guard setting, in order of first appearance."""
    groups = dict[tuple[str, bool], list[Case]]()
    for case in cases:
        groups.setdefault((case.strategy, case.guard), []).append(case)
    result = []
    for (strategy, guard), members in groups.items():
        label, summary = describe(strategy)
        unexpected = [case for case in members if not case.as_expected]
        shown = (unexpected or members)[0]
        result.append(
            Summary(
                strategy=strategy,
                label=label,
                summary=summary,
                guard=guard,
                verdict=shown.verdict,
                expected=shown.expected,
                as_expected=not unexpected,
                sentence=_sentence(members),
            )
        )
    return result


def _sentence(members: list[Case]) -> str:
    """The reason of a single case, or the verdicts of several with their lost writes."""
    if len(members) == 1:
        return members[0].why or VERDICTS.get(members[0].verdict, "")
    counts = Counter(case.verdict for case in members)
    parts = [f"{count} of {len(members)} runs {verdict}" for verdict, count in counts.items()]
    lost = [case.writes["lost"] for case in members if case.writes["lost"]]
    if lost:
        figures = sorted({value for value in lost if value is not None})
        span = " to ".join(str(value) for value in (figures[0], figures[-1])[: len(figures)])
        parts.append(f"{span} acknowledged writes lost")
    return "; ".join(parts) + "."


def headline(cases: Sequence[Case], as_expected: bool, error: str = "") -> str:
    """The first sentence of the report; `error` is the reason why the run did not finish."""
    if error:
        return f"The run did not finish: {error}"
    met = sum(case.as_expected for case in cases)
    total = len(cases)
    if not total:
        return "The run has no cases: it proves nothing."
    if as_expected:
        return (
            f"All {total} cases ended as expected." if total > 1 else "The case ended as expected."
        )
    if met == total:
        return (
            f"All {total} verdicts are the expected ones, but the run as a whole is not: "
            "see verdict.json."
        )
    return f"{total - met} of {total} cases did NOT end as expected."


def milliseconds(value: float | None) -> str:
    """Format a time: one decimal below 100 ms, none above; '-' for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def percent(rate: float | None) -> str:
    """Format a rate in 0..1 as a percentage; '-' for None."""
    return "-" if rate is None else f"{rate * 100:.1f}%"
