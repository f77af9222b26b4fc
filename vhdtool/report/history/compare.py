"""Two runs compared: options that differ, verdicts that changed, figures side by side."""

import statistics
from dataclasses import dataclass, replace

from vhdtool.report.history.orders import Cell, series
from vhdtool.report.history.runs import PastRun

NOT_RECORDED = "not recorded"
ENVIRONMENT = ("hypervisor", "accelerator", "storage", "image")


@dataclass(frozen=True)
class Change:
    """An option or a property of the run that differs."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Pair:
    """An order in both runs; None where a run did not have it."""

    name: str
    before: Cell | None
    after: Cell | None

    @property
    def kind(self) -> str:
        """worse, better, other (verdicts differ), only before, only after, or same."""
        if self.before is None or self.after is None:
            return "only after" if self.before is None else "only before"
        old, new = (len(c.unexpected) / len(c.cases) for c in (self.before, self.after))
        if old != new:
            return "worse" if new > old else "better"
        return "same" if set(self.before.verdicts) == set(self.after.verdicts) else "other"

    @property
    def blackout_ratio(self) -> float | None:
        """Median blackout of the second run, relative to that of the first."""
        old, new = (median_of(cell, "blackout_ms") for cell in (self.before, self.after))
        return new / old if old and new is not None else None


@dataclass(frozen=True)
class Comparison:
    """Two runs, the second beside the first."""

    before: PastRun
    after: PastRun
    options: tuple[Change, ...]
    unknown: tuple[str, ...]
    """Names of runs whose options are not recorded."""
    pairs: tuple[Pair, ...]

    @property
    def changed(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.kind != "same"]


def compare(before: PastRun, after: PastRun) -> Comparison:
    """Compare two runs; they may be of any directories and settings."""
    cells = [_cells(run) for run in (before, after)]
    names = {**cells[0], **cells[1]}
    unknown = tuple(run.name for run in (before, after) if run.options is None)
    return Comparison(
        before,
        after,
        tuple(option_changes(before, after)),
        unknown,
        tuple(Pair(name, cells[0].get(name), cells[1].get(name)) for name in names),
    )


def option_changes(before: PastRun, after: PastRun) -> list[Change]:
    """What differs of the software, the setting and the options.

    The setting is compared if both runs have a case, and so found it; the options if both have a
    config.json.
    """
    old, new = dict[str, str](), dict[str, str]()
    if before.cases and after.cases:
        old, new = _environment(before), _environment(after)
    if before.options is not None and after.options is not None:
        # What was asked for and what was found: ACCELERATOR=auto beside accelerator tcg.
        old |= {name: value for name, value in before.options.items() if name not in ENVIRONMENT}
        new |= {name: value for name, value in after.options.items() if name not in ENVIRONMENT}
    old, new = {**before.software, **old}, {**after.software, **new}
    changes = [
        Change(name, old.get(name, NOT_RECORDED), new.get(name, NOT_RECORDED))
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    # IMAGE=qcow2 and the image qcow2 are one change.
    found = [replace(one, name=one.name.upper()) for one in changes if one.name in ENVIRONMENT]
    return [one for one in changes if one not in found]


def _environment(run: PastRun) -> dict[str, str]:
    return {name: getattr(run.setting, name) for name in ENVIRONMENT}


def _cells(run: PastRun) -> dict[str, Cell]:
    return {order.name: order.cells[0] for one in series([run]) for order in one.orders}


def median_of(cell: Cell | None, figure: str) -> float | None:
    """The median of a figure (`margin_ms`, `blackout_ms`) of a cell, if there is one."""
    values = cell.values(figure) if cell else []
    return statistics.median(values) if values else None


def lost_text(cell: Cell) -> str:
    """Lost writes of the cases of a cell: a number, or the least and the most."""
    found = sorted({lost for case in cell.cases if (lost := case.writes["lost"]) is not None})
    return "-" if not found else " to ".join(map(str, {found[0]: 0, found[-1]: 0}))


def verdict_text(cell: Cell) -> str:
    """The verdicts of a cell, with numbers where there are several cases."""
    if len(cell.cases) == 1:
        return cell.cases[0].verdict
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(cell.verdicts.items()))


def usual_pair(runs: tuple[PastRun, ...]) -> Comparison | None:
    """The newest run beside the newest one before it that was as expected, else the one before.

    Both have one setting, if an earlier run has that of the newest.
    """
    if len(runs) < 2:
        return None
    *earlier, newest = runs
    like = [run for run in earlier if run.setting == newest.setting] or earlier
    good = [run for run in like if run.as_expected]
    return compare((good or like)[-1], newest)
