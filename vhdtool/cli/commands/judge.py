"""`vhdtool judge`: the verdict of a run or a case, derived from its record."""

import json
from pathlib import Path
from typing import Any

import click

from vhdtool.cli.arguments import json_option
from vhdtool.oracle.run import exit_code, is_case, judge_run

EPILOG = """\b
Examples:
  vhdtool judge runs/latest
  vhdtool judge runs/latest/overlap-off-s1 --json
  git bisect run vhdtool judge runs/latest

\b
Exit codes: 0 every verdict is as expected; 1 a verdict is not;
125 inconclusive, an error in the lab, or wrong usage.
"""


@click.command(epilog=EPILOG)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def judge(ctx: click.Context, directory: Path, as_json: bool) -> None:
    """Judge a run, or one case of it, from its record alone.

    Connects to no host and writes nothing. The JSON is verdict.json, or the entry of a case.
    """
    verdict: dict[str, Any] = judge_run(directory)
    if as_json:
        shown = verdict["strategies"][0] if is_case(directory) else verdict
        click.echo(json.dumps(shown, indent=1))
    else:
        for entry in verdict["strategies"]:
            _print(entry)
        if verdict["error"]:
            click.echo(f"the run did not finish: {verdict['error']}")
        click.echo("as expected" if verdict["as_expected"] else "NOT as expected")
    ctx.exit(exit_code(verdict))


def _print(entry: dict[str, Any]) -> None:
    """Two lines a case: its verdict, and the reason."""
    as_expected = entry["verdict"] == entry["expected"]
    mark = "ok " if as_expected else "BAD"
    expected = "" if as_expected else f" (expected: {entry['expected'] or 'unknown'})"
    writes, planted = entry["writes"], entry["planted"]
    click.echo(
        f"{mark} {entry['case']}: {entry['verdict']}{expected}  "
        f"acked {writes['acked']} ({writes['acked_after_resume']} after), lost {writes['lost']}, "
        f"planted {planted['caught']}/{planted['faults']}"
    )
    click.echo(f"    {entry['why']}")
