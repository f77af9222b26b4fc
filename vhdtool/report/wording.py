"""Sentences and figures that the terminal, the page and the drawings share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vhdtool.lab.strategies import STRATEGIES
from vhdtool.oracle.verdict import WHOLE
from vhdtool.report.case import Case

QUESTION = (
    "Does this order of storage operations keep a disk image intact while its guest "
    "migrates live from one host to another, writing all the time?"
)

CURES = {
    "A": ("deactivate, activate", "the source closes the image before the destination opens it"),
    "B": ("pause, unpause", "the destination opens early, and reopens once the source has closed"),
    "C": ("implicit reopen", "the destination closes and opens the image around each request"),
}
"""Name and meaning of the three cures of the mail on xen-devel; strategies' labels have the key."""

GUARD = (
    "The guard is a lease on the shared storage: with it a backend serves the disk only while no "
    "other does, so an unsafe order is refused and the guest goes on at the source."
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
class Group:
    """Verdicts that the page shows together; `key` is in its anchors."""

    key: str
    title: str
    meaning: str
    verdicts: tuple[str, ...]


GROUPS = (
    Group(
        "destroys",
        "Destroys the disk",
        "acknowledged data is lost, or the rule that only one host is active was broken",
        ("corrupt",),
    ),
    Group(
        "refused",
        "Is refused",
        "the lease was not to be had; the guest went on at the source, and nothing is lost",
        ("refused",),
    ),
    Group(
        "holds",
        "Holds",
        "every acknowledged write is on the disk, and no two hosts were active at once",
        ("consistent",),
    ),
    Group("open", "Proves nothing", "repeat these cases to learn more", ("inconclusive", "error")),
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

    @property
    def cure(self) -> str:
        """The cure of the mail that the order belongs to: A, B or C, or ""."""
        first = self.label.partition(",")[0]
        return first if first in CURES else ""


def group_of(verdict: str) -> Group:
    """The group of a verdict."""
    return next(group for group in GROUPS if verdict in group.verdicts)


def introduction(cases: Sequence[Case]) -> list[str]:
    """Three sentences for a reader who does not know the mail: disk, orders, guard."""
    bad = list(dict.fromkeys(case.strategy for case in cases if case.expected == "corrupt"))
    disk = (
        "While a guest migrates live, a backend at the source has its disk image open and one at "
        "the destination must open it too; an order says which of them opens and closes it when."
    )
    if not bad:
        return [disk, "No order of this run is expected to destroy the disk.", GUARD]
    count = {1: "One order is", 2: "Two orders are", 3: "Three orders are", 4: "Four orders are"}
    orders = (
        f"{count.get(len(bad), f'{len(bad)} orders are')} run to be destroyed "
        f"({', '.join(bad)}, with the guard off), because a run that cannot show the damage proves "
        "nothing about a cure."
    )
    return [disk, orders, GUARD]


def describe(case: Case) -> tuple[str, str]:
    """Return the label and summary of a case's strategy; empty strings for an unknown one."""
    known = STRATEGIES.get(case.strategy)
    if known is not None:
        return known.label, known.summary
    return (case.given, f"The order that was given: {case.given}.") if case.given else ("", "")


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
        label, summary = describe(members[0])
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
    lost = sorted(value for case in members if (value := case.writes["lost"]))
    if lost:
        span = f"{lost[0]} to {lost[-1]}" if lost[0] < lost[-1] else f"{lost[0]}"
        noun = "acknowledged write" if lost[-1] == 1 else "acknowledged writes"
        where = "each" if len(lost) == len(members) else f"{len(lost)} of them"
        parts.append(f"{span} {noun} lost in {where}")
    whole = sum(case.data_whole for case in members)
    if whole:
        parts.append(f"in {whole} of them {WHOLE[0].lower()}{WHOLE[1:]}")
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
