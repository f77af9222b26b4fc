"""`vhdtool report`: a run's verdict as JUnit, HTML and a table."""

from pathlib import Path

import click


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--soak",
    is_flag=True,
    help="First write soak.json: medians, and the bound that N runs allow to state.",
)
def report(run_dir: Path, soak: bool) -> None:
    """Write RUN_DIR/junit.xml and report.html, and print the table.

    RUN_DIR is a run such as runs/latest. The exit code says only whether the report was made;
    whether the run was as expected is the lab's and `vhdtool judge`'s to say.
    """
    from rich.console import Console

    from vhdtool.report import soak as statistics
    from vhdtool.report.build import write_files
    from vhdtool.report.record import load_run
    from vhdtool.report.table import show

    if soak:
        statistics.write(run_dir)
    run = load_run(run_dir)
    xml, html = write_files(run)
    console = Console(highlight=False)
    show(run, console)
    verdict = "as expected" if run.as_expected else "NOT as expected"
    click.echo(f"{len(run.cases)} cases, the run is {verdict}")
    click.echo(f"report: {html}")
    click.echo(f"junit:  {xml}")
