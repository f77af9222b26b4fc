"""Each order of operations in all runs of a setting: rates, first bad run, whether it is flaky.

An order here is a strategy with one setting of the guard. A run that repeats it, or has several
seeds, has several cases of it; the run is good for the order if all of them are as expected.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from vhdtool.oracle.verdict import counted
from vhdtool.report import wording
from vhdtool.report.case import Case
from vhdtool.report.history.runs import PastRun, Setting
from vhdtool.report.output.soak import failure_bound

WINDOW = 30
"""A case is flaky or not by this many of its newest runs."""
FAILING = 3
"""So many bad runs in a row, up to the newest, are a failure and no flake."""
PROOF = ("consistent", "corrupt", "refused")
"""Verdicts that prove something; the others say only that the lab or the record failed."""


class Outcome(StrEnum):
    """The cases of an order in one run."""

    GOOD = "as expected"
    WRONG = "another verdict"
    UNPROVED = "no proof"


class Status(StrEnum):
    STEADY = "steady"
    FLAKY = "flaky"
    FAILING = "failing"
    RECOVERED = "recovered"


RULES = {
    Status.STEADY: f"as expected in each of its newest {WINDOW} runs",
    Status.FLAKY: f"in its newest {WINDOW} runs it changed twice or more between as expected and "
    "not, and it is not failing",
    Status.FAILING: f"bad in its newest run, and either in {FAILING} runs in a row or since the "
    f"only change in its newest {WINDOW} runs",
    Status.RECOVERED: f"as expected since the only change in its newest {WINDOW} runs",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """The cases of an order in one run; a run has at least one."""

    run: PastRun
    cases: tuple[Case, ...]

    @property
    def outcome(self) -> Outcome:
        bad = self.unexpected
        if not bad:
            return Outcome.GOOD
        proved = any(case.verdict in PROOF for case in bad)
        return Outcome.WRONG if proved else Outcome.UNPROVED

    @property
    def unexpected(self) -> list[Case]:
        return [case for case in self.cases if not case.as_expected]

    @property
    def worst(self) -> Case:
        """The case that stands for the run: one with another verdict, one without proof, any."""
        return min(self.unexpected or self.cases, key=lambda case: case.verdict not in PROOF)

    @property
    def verdicts(self) -> Counter[str]:
        return Counter(case.verdict for case in self.cases)

    def values(self, figure: str) -> list[float]:
        """Margins or blackouts (`margin_ms`, `blackout_ms`) of the cases that were as expected."""
        found = [
            case.margin_ms if figure == "margin_ms" else case.blackout_ms["total"]
            for case in self.cases
            if case.as_expected
        ]
        return [value for value in found if value is not None]


@dataclass(frozen=True)
class Order:
    """A strategy with one setting of the guard, in the runs that had it, from the oldest on."""

    strategy: str
    """Its name, or the steps of a given order."""
    guard: bool
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        return f"{self.strategy}, guard {'on' if self.guard else 'off'}"

    @property
    def expected(self) -> str:
        return self.cells[-1].cases[0].expected

    @property
    def cases(self) -> list[Case]:
        return [case for cell in self.cells for case in cell.cases]

    def number_of(self, outcome: Outcome) -> int:
        """How many cases had this outcome."""
        bad = [case for case in self.cases if not case.as_expected]
        proved = sum(case.verdict in PROOF for case in bad)
        if outcome is Outcome.WRONG:
            return proved
        return len(bad) - proved if outcome is Outcome.UNPROVED else len(self.cases) - len(bad)

    @property
    def unexpected(self) -> int:
        return len(self.cases) - self.number_of(Outcome.GOOD)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper 95 % bound on the rate of cases that are not as expected."""
        return rate_bounds(self.unexpected, len(self.cases))

    @property
    def first_bad(self) -> Cell | None:
        return next((cell for cell in self.cells if cell.unexpected), None)

    @property
    def tail(self) -> tuple[Cell, ...]:
        """The newest runs with one and the same answer to: were all cases as expected?"""
        good = not self.cells[-1].unexpected
        start = len(self.cells)
        while start and (not self.cells[start - 1].unexpected) == good:
            start -= 1
        return self.cells[start:]

    @property
    def last_good(self) -> Cell | None:
        """The newest run in which all its cases were as expected."""
        return next((cell for cell in reversed(self.cells) if not cell.unexpected), None)

    @property
    def status(self) -> Status:
        recent = [not cell.unexpected for cell in self.cells[-WINDOW:]]
        changes = sum(one != other for one, other in pairwise(recent))
        if not recent[-1] and (changes < 2 or len(self.tail) >= FAILING):
            return Status.FAILING
        if changes >= 2:
            return Status.FLAKY
        return Status.RECOVERED if changes else Status.STEADY

    @property
    def sentence(self) -> str:
        """What its status is about, with the runs that a bisection needs."""
        first = self.first_bad
        if first is None:
            return self.status.value
        text, named = self._recent()
        return text if named is first else f"{text}; first bad in {first.run.name}"

    def _recent(self) -> tuple[str, Cell | None]:
        """The status in words, and the bad run that they name."""
        if self.status is Status.FAILING:
            return self._failure(), self.tail[0]
        recent = self.cells[-WINDOW:]
        bad = [cell for cell in recent if cell.unexpected]
        if not bad:
            return self.status.value, None
        count = f"bad in {len(bad)} of {len(recent)} runs"
        return f"{self.status}: {count}, last in {bad[-1].run.name}", bad[-1]

    def _failure(self) -> str:
        """Since when it is bad, and what a bisection begins with."""
        tail, last = self.tail, self.last_good
        before = f"last as expected in {last.run.label}" if last else "never as expected"
        since = f"since {tail[0].run.label} ({counted(len(tail), 'run')})"
        return f"failing {since}, {before}, {self._seeds(tail)}"

    def _seeds(self, cells: Sequence[Cell]) -> str:
        """Which cases of these bad runs were not as expected."""
        bad = Counter(case.seed for cell in cells for case in cell.unexpected)
        ran = Counter(case.seed for cell in cells for case in cell.cases)
        if len(bad) == len(ran):
            return "each seed" if len(ran) > 1 else f"seed {next(iter(bad))}"
        shown = [f"{seed}" for seed, _ in bad.most_common(5)]
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        return f"seed{'s' if len(bad) > 1 else ''} {', '.join(shown)}{more} of {len(ran)} seeds"


@dataclass(frozen=True)
class Series:
    """The runs of one setting from the oldest to the newest, and the orders in them."""

    setting: Setting
    runs: tuple[PastRun, ...]
    orders: tuple[Order, ...]


def rate_bounds(failures: int, runs: int) -> tuple[float, float]:
    """Lower and upper bound on a failure rate, each exact and one-sided at 95 %.

    The upper one is "fails below" of a soak; the lower one is that of the successes, turned round.
    """
    return 1 - failure_bound(runs - failures, runs), failure_bound(failures, runs)


def series(runs: Sequence[PastRun]) -> list[Series]:
    """The runs by setting, the setting of the newest run first.

    A run without any case, such as one whose hosts were unreachable, has no setting of its own; it
    is listed with that of the run before it.
    """
    found = dict[Setting, list[PastRun]]()
    latest = next((run.setting for run in runs if run.cases), runs[0].setting if runs else None)
    for run in runs:
        if run.cases or latest is None:
            latest = run.setting
        found.setdefault(latest, []).append(run)
    newest = sorted(found.items(), key=lambda item: (item[1][-1].at, item[1][-1].name))
    return [Series(key, tuple(own), _orders(own)) for key, own in reversed(newest)]


def _orders(runs: Sequence[PastRun]) -> tuple[Order, ...]:
    cells = dict[tuple[str, bool], list[Cell]]()
    for run in runs:
        cases = dict[tuple[str, bool], list[Case]]()
        for case in run.cases:
            cases.setdefault((case.order, case.guard), []).append(case)
        for key, own in cases.items():
            cells.setdefault(key, []).append(Cell(run, tuple(own)))
    orders = [Order(*key, tuple(own)) for key, own in cells.items()]
    return tuple(sorted(orders, key=lambda order: wording.order(order.cells[-1].cases[0])))
