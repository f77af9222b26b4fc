"""The tables on the terminal: one line a case, then the cases that were not as expected.

On a narrow terminal headings are folded, or verdicts and times are two tables, so that no cell
wraps. A pipe has no width, and no heading is folded there. Colours only repeat what the text says.
"""

from collections import Counter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from vhdtool.report.case import PHASES, Case
from vhdtool.report.lenient_json import integer, items, mapping, number, text
from vhdtool.report.run import Run
from vhdtool.report.wording import milliseconds, percent

PHASE_HEADINGS = ("qui-\nesce", "deacti-\nvate", "trans-\nfer", "acti-\nvate", "re-\nsume")
SOAK_WIDTH = 110
SOAK_WHOLE = 130
"""A console of this width gets the soak table's headings on one line."""
NO_TERMINAL = 1000
"""The width of a console that is none: as wide as any table here."""
KINDS = 5
"""Kinds of findings shown for a case."""
LOG_LINES = 5
MANY_CASES = 40
"""A run with more cases and a soak.json shows the soak table alone."""
STYLES = {
    "consistent": "green",
    "corrupt": "red",
    "refused": "magenta",
    "inconclusive": "yellow",
    "error": "bold yellow",
}


def print_tables(run: Run, console: Console) -> None:
    """Print the tables of a run, and explain the cases that were not as expected."""
    if run.cases and not (run.soak and len(run.cases) > MANY_CASES):
        for table in case_tables(run.cases, console):
            console.print(table)
            console.print()
    for order in dict.fromkeys(
        f"{case.strategy}: {case.given}" for case in run.cases if case.given
    ):
        console.print(Text(order), soft_wrap=True)
        console.print()
    if run.soak:
        console.print(soak_table(run.soak, console.width))
        for line in soak_lines(run.soak):
            console.print(Text(line), soft_wrap=True)
    for case in run.cases:
        if not case.as_expected:
            console.print(explanation(case), soft_wrap=True)
    for note in run.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


def case_names(cases: tuple[Case, ...]) -> list[str]:
    """Name each case by its strategy, with seed and number where that is ambiguous."""
    once = Counter((case.strategy, case.guard) for case in cases)
    seeded = Counter((case.strategy, case.guard, case.seed) for case in cases)
    nth = Counter[tuple[str, bool, int | None]]()
    names = []
    for case in cases:
        if once[case.strategy, case.guard] == 1:
            names.append(case.strategy)
        elif seeded[case.strategy, case.guard, case.seed] == 1:
            names.append(f"{case.strategy} s{case.seed}")
        else:
            key = (case.strategy, case.guard, case.seed)
            nth[key] += 1
            names.append(f"{case.strategy} s{case.seed} #{nth[key]}")
    return names


def case_tables(cases: tuple[Case, ...], console: Console) -> list[Table]:
    """The widest form that fits the console: one table, or two below each other."""
    forms = [
        _one_table(cases, 1, whole=True),
        _one_table(cases, 1),
        _one_table(cases, 0),
        _two_tables(cases, 1),
    ]
    for form in forms:
        if all(_width(table, console) <= console.width for table in form):
            return form
    return _two_tables(cases, 0)


def _width(table: Table, console: Console) -> int:
    unlimited = console.options.update(max_width=1000)
    return Measurement.get(console, unlimited, table).maximum


def _one_table(cases: tuple[Case, ...], gap: int, whole: bool = False) -> list[Table]:
    """`whole`: each heading is on one line."""
    table = _table("", gap, "case", "guard", "expected", "verdict", _heading("as\nexp.", whole))
    times = [_heading(text, whole) for text in ("margin\nms", "blackout\nms")]
    phases = PHASES if whole else PHASE_HEADINGS
    _figures(table, "acked", "lost", *times, *phases, "tries")
    for name, case in zip(case_names(cases), cases, strict=True):
        figures = [*_counts(case), _margin(case), *_blackout(case), _count(case.attempts)]
        table.add_row(name, *_verdict(case), *figures)
    return [table]


def _heading(text: str, whole: bool) -> str:
    return text.replace("\n", " ") if whole else text


def _two_tables(cases: tuple[Case, ...], gap: int) -> list[Table]:
    verdicts = _table("", gap, "case", "guard", "expected", "verdict", "as\nexp.")
    _figures(verdicts, "acked", "lost", "tries")
    times = _table("", gap, "case", "guard")
    _figures(times, "margin\nms", "blackout\nms", *PHASE_HEADINGS)
    for name, case in zip(case_names(cases), cases, strict=True):
        verdicts.add_row(name, *_verdict(case), *_counts(case), _count(case.attempts))
        times.add_row(name, case.guard_setting, _margin(case), *_blackout(case))
    return [verdicts, times]


def _table(title: str, gap: int, *columns: str) -> Table:
    """An empty table; columns are `gap` + 1 spaces apart."""
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, gap, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column != "case", vertical="bottom")
    return table


def _figures(table: Table, *columns: str) -> None:
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)


def _verdict(case: Case) -> list[RenderableType]:
    met = Text("yes", "green") if case.as_expected else Text("NO", "bold red")
    return [case.guard_setting, case.expected, Text(case.verdict, STYLES[case.verdict]), met]


def _counts(case: Case) -> list[RenderableType]:
    lost = case.writes["lost"]
    return [_count(case.writes["acked"]), Text(_count(lost), "red" if lost else "")]


def _margin(case: Case) -> Text:
    late = case.margin_ms is not None and case.margin_ms < 0
    return Text(milliseconds(case.margin_ms), "red" if late else "")


def _blackout(case: Case) -> list[RenderableType]:
    return [milliseconds(case.blackout_ms[key]) for key in ("total", *PHASES)]


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def explanation(case: Case) -> Text:
    """Why a case was not as expected, its findings, and the command that repeats it."""
    lines = Text()
    lines.append(f"{case.directory or case.strategy}: ", "bold")
    lines.append(f"expected {case.expected}, got {case.verdict}. {case.why}")
    if case.error:
        what, log = case.error
        # The findings of a record that breaks off are not the reason.
        lines.append("" if what in case.why else f"\n  {what}")
        for line in log[-LOG_LINES:]:
            lines.append(f"\n  | {line}", "dim")
    else:
        for line in _first_findings(case):
            lines.append(f"\n  {line}")
    if case.reproduce:
        lines.append(f"\n  again: {case.reproduce}")
    return lines


def _first_findings(case: Case) -> list[str]:
    """The first finding of each kind: ten lost writes would hide one wrong BAT entry."""
    first = {(one.oracle, one.code): one for one in reversed(case.findings)}
    shown = list(first.values())[::-1][:KINDS]
    lines = [f"{one.oracle} {one.code}: {one.message}" for one in shown]
    if len(case.findings) > len(shown):
        lines.append(f"{len(case.findings)} findings in all, see report.html")
    return lines


def soak_table(soak: dict[str, Any], width: int) -> Table:
    """One line a strategy: runs as expected, the bound, and medians."""
    table = _table(f"soak, N = {integer(soak.get('n')) or 0}; times in ms, median / p90", 1)
    wide, whole = width >= SOAK_WIDTH, width >= SOAK_WHOLE
    for column in ("strategy", "guard", "expected"):
        table.add_column(column, no_wrap=True, vertical="bottom")
    _figures(table, "as exp.", _heading("fails\nbelow", whole), "blackout")
    if wide:
        _figures(table, "deactivate", "transfer", "activate")
    _figures(table, _heading("margin\nmin", whole))
    for entry in map(mapping, items(soak.get("strategies"))):
        row = [
            text(entry.get("name"), "?"),
            "on" if entry.get("guard") is True else "off",
            text(entry.get("expected"), "?"),
            f"{integer(entry.get('as_expected')) or 0}/{integer(entry.get('runs')) or 0}",
            percent(number(entry.get("bound_95"))),
            _pair(entry.get("blackout_ms")),
        ]
        if wide:
            phases = mapping(entry.get("phases_ms"))
            row += [_pair(phases.get(key)) for key in ("deactivate", "transfer", "activate")]
        row.append(milliseconds(number(mapping(entry.get("margin_ms")).get("min"))))
        table.add_row(*row)
    return table


def _pair(spread: object) -> str:
    values = mapping(spread)
    middle, high = number(values.get("median")), number(values.get("p90"))
    return "-" if middle is None else f"{milliseconds(middle)} / {milliseconds(high)}"


def soak_lines(soak: dict[str, Any]) -> list[str]:
    """The meaning of the bound, the ratios, and whether the limits were met."""
    lines = ["fails below: upper 95 % bound on the rate of runs that are not as expected"]
    for name, ratio in mapping(soak.get("ratios")).items():
        value = number(ratio)
        lines.append(f"{text(name)}: {'-' if value is None else f'{value:.2f}'}")
    for target in map(mapping, items(soak.get("targets"))):
        value, limit = number(target.get("value")), number(target.get("limit"))
        if value is not None and limit is not None:
            unit = text(target.get("unit"))
            result = "met" if target.get("met") is True else "NOT MET"
            lines.append(
                f"{text(target.get('what'))}: {value:.2f} {unit}".rstrip()
                + f" (limit {limit:g}): {result}"
            )
    return lines
