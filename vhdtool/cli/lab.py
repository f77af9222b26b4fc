"""`vhdtool lab`: runs the cases of a lab whose hosts are up."""

import json
import os
from pathlib import Path

import click

EPILOG = """\b
Exit codes: 0 every verdict is the expected one; 1 one is not;
125 inconclusive, an error in the lab, or wrong usage.
"""


@click.group()
def lab() -> None:
    """Migrate a writing guest between two hosts, and judge what happened to its disk."""


@lab.command(epilog=EPILOG)
@click.option("--config", required=True, type=click.Path(path_type=Path), help="JSON; see docs.")
@click.pass_context
def run(ctx: click.Context, config: Path) -> None:
    """Run every case that the configuration asks for.

    The playbook migrate.yml writes the configuration and calls this; the hosts must have been
    provisioned. Leaves a directory a case and verdict.json in the run directory.

    Example: vhdtool lab run --config runs/latest/config.json
    """
    from vhdtool.handover.config import LabConfig
    from vhdtool.handover.lab import Lab
    from vhdtool.oracle.run import exit_code, judge_run
    from vhdtool.oracle.verdict import judge_case

    settings = LabConfig.load(config)
    judged = Lab(settings, judge_case, click.echo).run()
    verdict = judge_run(settings.run_dir, {entry["case"]: entry for entry in judged})
    path = settings.run_dir / "verdict.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(verdict, indent=1) + "\n")
    os.replace(temporary, path)
    ctx.exit(exit_code(verdict))


@lab.command()
@click.argument("words", metavar="JSON")
def validate(words: str) -> None:
    """Check the options of a run, given as an object of the role's variables.

    Says nothing when they make sense; one line and exit 125 for the first that does not. The
    playbooks ask this before they make anything.

    Example: vhdtool lab validate '{"migration_seed": 7, "migration_strategies": "activate"}'
    """
    from vhdtool.errors import UsageError
    from vhdtool.handover.options import RunOptions

    try:
        given = json.loads(words)
    except ValueError as error:
        raise UsageError(f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise UsageError("not an object of options")
    RunOptions.of_playbook(given)


@lab.command()
def strategies() -> None:
    """List the strategies: their steps, and what they are expected to do to the disk."""
    from vhdtool.handover.strategies import STRATEGIES

    for strategy in STRATEGIES.values():
        click.echo(f"{strategy.name}: {strategy.option}")
        click.echo(
            f"  expected: {strategy.expected(False)} with the guard off, "
            f"{strategy.expected(True)} with it on"
        )
        for leg in strategy.legs:
            parts = [" ".join(map(str, part)) for part in (leg.before, leg.switch, leg.after)]
            fault = f" · FAULT {leg.fault} · {' '.join(map(str, leg.recover))}" if leg.fault else ""
            back = " (back)" if leg.back else ""
            middle = f"{parts[0]} · SUSPENDED · {parts[1]}{fault}"
            click.echo(f"  {middle}" + (f" · RESUME · {parts[2]}" if not fault else "") + back)
