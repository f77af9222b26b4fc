"""What strategies, verdicts and limits mean, in plain words for the head of the report."""

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
    "consistent": "nothing acknowledged was lost, and all oracles agree",
    "corrupt": "the image lost or damaged acknowledged data, or its metadata contradict it",
    "refused": "the guard refused the switch, and the guest went on at the source unharmed",
    "inconclusive": "the record proves nothing either way",
    "error": "the lab itself failed; this says nothing about the order",
}

LIMITS = (
    "A consistent run shows that this order survived this load, this time. The margin tells how "
    "near it came; a soak (make soak) repeats it and states the bound.",
    "A guest on TCG (emulated) runs slower than on KVM, so its blackout is longer; compare "
    "blackouts within one run only.",
    "The exclusive-activation oracle trusts the epochs that both shims write to the shared "
    "storage; a host that bypasses the shim is seen by the other oracles only.",
)
LOCAL_LIMIT = (
    "The local lab's two hosts share one kernel and so one page cache: a run there does not see "
    "what NFS or cluster file-system clients cache. Run the lab on separate machines for that."
)


@dataclass(frozen=True)
class Summary:
    """A strategy under one guard setting, over all its cases."""

    strategy: str
    option: str
    what: str
    guard: bool
    verdict: str
    expected: str
    as_expected: bool
    words: str


def describe(strategy: str) -> tuple[str, str]:
    """(the mail's option, what the order does); empty strings for an unknown strategy."""
    known = STRATEGIES.get(strategy)
    return ("", "") if known is None else (known.label, known.summary)


def order(case: Case) -> tuple[int, str, bool, int]:
    """Strategy by strategy, guard off before on; strategies without a description come last."""
    known = list(STRATEGIES)
    place = known.index(case.strategy) if case.strategy in known else len(known)
    return place, case.strategy, case.guard, case.seed or 0


def summaries(cases: Sequence[Case]) -> list[Summary]:
    """One Summary for each (strategy, guard), in order of first appearance."""
    groups = dict[tuple[str, bool], list[Case]]()
    for case in cases:
        groups.setdefault((case.strategy, case.guard), []).append(case)
    result = []
    for (strategy, guard), members in groups.items():
        option, what = describe(strategy)
        unexpected = [case for case in members if not case.as_expected]
        shown = (unexpected or members)[0]
        result.append(
            Summary(
                strategy=strategy,
                option=option,
                what=what,
                guard=guard,
                verdict=shown.verdict,
                expected=shown.expected,
                as_expected=not unexpected,
                words=_sentence(members),
            )
        )
    return result


def _sentence(members: list[Case]) -> str:
    """What happened, with the figure that matters for that verdict."""
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
    """The first sentence of the report; `error`: why the run did not come to its end."""
    if error:
        return f"The run did not come to its end: {error}"
    met = sum(case.as_expected for case in cases)
    total = len(cases)
    if not total:
        return "The run has no cases: it shows nothing."
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
