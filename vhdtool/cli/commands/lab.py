"""`vhdtool lab`: runs the cases of a lab whose hosts are up."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vhdtool.lab.options import RunOptions

EPILOG = """\b
Exit codes: 0 every verdict is as expected; 1 a verdict is not;
125 inconclusive, an error in the lab, or wrong usage.
"""


@click.group()
def lab() -> None:
    """Migrate a writing guest between two hosts, and judge its disk."""


@lab.command(epilog=EPILOG)
@click.option(
    "--config", required=True, type=click.Path(path_type=Path), help="JSON file of the playbooks."
)
@click.pass_context
def run(ctx: click.Context, config: Path) -> None:
    """Run the cases of a configuration.

    The playbook migrate.yml writes the configuration and calls this command. The hosts must have
    been provisioned. The run directory gets verdict.json and a directory for each case.

    Example: vhdtool lab run --config runs/latest/config.json
    """
    from vhdtool.lab.campaign import Lab
    from vhdtool.lab.config import LabConfig
    from vhdtool.oracle.packing import pack_run
    from vhdtool.oracle.run import exit_code
    from vhdtool.oracle.verdict import judge_case
    from vhdtool.report.lifecycle import begin, end, ended_early

    settings = LabConfig.load(config)
    begin(settings.run_dir, [name for name, *_ in settings.planned()])
    lab = Lab(settings, judge_case, click.echo)
    with ended_early(settings.run_dir, lab.verdicts):
        lab.run()
        verdict = end(settings.run_dir, lab.verdicts)
    if settings.pack:
        pack_run(settings.run_dir)
    ctx.exit(exit_code(verdict))


@lab.command("begin")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.argument("text", metavar="JSON")
def begin_(run_dir: Path, text: str) -> None:
    """Begin the record of a run.

    JSON has the options of the run, as for `validate`. RUN_DIR gets verdict.json, junit.xml and
    report.html, which say that the run has not finished. In a directory `runs` the link `latest` is
    set to it. The playbooks call this command first.

    Example: vhdtool lab begin runs/mine '{"migration_strategies": "activate"}'
    """
    from vhdtool.report.lifecycle import begin

    begin(run_dir, [name for name, *_ in _options(text).planned()])


@lab.command("end")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--error", required=True, help="Why the run did not finish.")
def end_(run_dir: Path, error: str) -> None:
    """End the record of a failed run, unless it has a verdict.

    Example: vhdtool lab end runs/mine --error "alpha: unreachable"
    """
    from vhdtool.report.lifecycle import end_unless_ended

    end_unless_ended(run_dir, error)


@lab.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--keep", required=True, type=int, metavar="N", help="How many runs to keep.")
@click.pass_context
def prune(ctx: click.Context, run_dir: Path, keep: int) -> None:
    """Remove old runs beside the current run RUN.

    Removes the runs that are older than the newest N and were as expected. A run that was not as
    expected or has not finished stays, as do the newest one that was as expected, one that has a
    file `keep`, the one that `latest` names, and whatever has another name than the lab gives. The
    playbooks call this command with KEEP_RUNS. The exit code is 1 if a run could not be removed.

    Example: vhdtool lab prune runs/latest --keep 30
    """
    from vhdtool.report.history.retention import remove_old_runs

    done = remove_old_runs(run_dir, keep)
    if done.sentence:
        click.echo(done.sentence)
    ctx.exit(1 if done.failed else 0)


@lab.command()
@click.argument("text", metavar="JSON")
def validate(text: str) -> None:
    """Check the options of a run.

    JSON is an object of the variables of the role `migration`. Prints nothing if all are valid,
    else one line for the first that is not, with exit code 125. The playbooks call this command
    first.

    Example: vhdtool lab validate '{"migration_seed": 7, "migration_strategies": "activate"}'
    """
    _options(text)


def _options(text: str) -> "RunOptions":
    """Parse the options of a run from a JSON object. Raises UsageError."""
    from vhdtool.errors import UsageError
    from vhdtool.lab.options import RunOptions

    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise UsageError("not an object of options")
    return RunOptions.of_playbook(given)


@lab.command()
def strategies() -> None:
    """List the strategies, their steps and their expected verdicts."""
    from vhdtool.lab.strategies import STRATEGIES

    for strategy in STRATEGIES.values():
        click.echo(f"{strategy.name} ({strategy.label}): {strategy.summary}")
        click.echo(
            f"  expected: {strategy.expected(False)} with the guard off, "
            f"{strategy.expected(True)} with it on"
        )
        for leg in strategy.legs:
            parts = [" ".join(map(str, part)) or "nothing" for part in leg.parts]
            fault = f" · FAULT {leg.fault} · {' '.join(map(str, leg.recover))}" if leg.fault else ""
            back = " (back)" if leg.back else ""
            middle = f"{parts[0]} · SUSPENDED · {parts[1]}{fault}"
            click.echo(f"  {middle}" + (f" · RESUME · {parts[2]}" if not fault else "") + back)
