"""`vhdtool history`: the runs of a directory side by side."""

import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vhdtool.cli.output import print_json

if TYPE_CHECKING:
    from vhdtool.report.history.runs import PastRun

EPILOG = """\b
Examples:
  vhdtool history
  vhdtool history --diff 20261101T021700.000Z latest
  vhdtool history runs --diff 20261101T021700.000Z latest -o changes.html
  vhdtool history runs --json | jq '.settings[].orders[] | {name, status}'
"""


@click.command(epilog=EPILOG)
@click.argument("directory", metavar="[RUNS]", type=click.Path(path_type=Path), required=False)
@click.option(
    "--diff",
    "pair",
    nargs=2,
    type=click.Path(),
    metavar="RUN RUN",
    help="Compare two runs: directories, or names of runs in RUNS. In the page if RUNS is given.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Path of the page, by default RUNS/history.html.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="JSON on standard output; a page with --output only."
)
def history(
    directory: Path | None, pair: tuple[str, str] | None, output: Path | None, as_json: bool
) -> None:
    """Show the runs of a directory side by side.

    RUNS is the directory that holds the runs, by default `runs`. Prints how often each order was
    not as expected, with bounds, and writes a page: the verdicts run by run, rates, margin and
    blackout over time, and two runs compared. A directory that is no run is named and left out.
    The exit code is 0 when that could be done, whatever the verdicts.
    """
    from vhdtool.report.history import as_json as values
    from vhdtool.report.history.compare import compare, usual_pair
    from vhdtool.report.history.runs import read_runs
    from vhdtool.report.history.summary import comparison_lines, summary_lines

    runs_dir, chosen = directory or Path("runs"), None
    if pair:
        chosen = compare(*(_find(runs_dir, name) for name in pair))
        if as_json:
            print_json(values.comparison(chosen))
        else:
            _print(comparison_lines(chosen))
        if not (directory or output):
            return  # two runs of anywhere, whatever is beside them
        runs = read_runs(runs_dir)
    else:
        runs = read_runs(runs_dir)
        if as_json:
            print_json(values.history(runs))
        else:
            _print(summary_lines(runs))
    if output or not as_json:
        # Here, since nothing else needs a template engine.
        from vhdtool.report.history.page import write_page

        page = output or runs_dir / "history.html"
        write_page(page, runs, chosen or usual_pair(runs.runs))
        click.echo(f"page: {page}", err=as_json)


def _find(runs_dir: Path, name: str) -> "PastRun":
    """A run by its name in the directory, or by its path. Raises UsageError."""
    from vhdtool.errors import UsageError
    from vhdtool.oracle.evidence.json_fields import TornRecord
    from vhdtool.report.history.runs import read_run

    inside = runs_dir / name
    path = inside if os.sep not in name and inside.is_dir() else Path(name)
    if not path.is_dir():
        raise UsageError(f"{name}: no such run, neither in {runs_dir} nor as a directory")
    try:
        return read_run(path.resolve())
    except TornRecord as error:
        raise UsageError(f"{name}: {error}; give the directory of a run") from None


def _print(lines: Iterable[str]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A record may hold characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="replace")
    for line in lines:
        click.echo(line)
