"""`vhdtool report`: a run's verdict as JUnit XML, HTML and a table."""

import io
import os
import sys
from pathlib import Path

import click

from vhdtool.errors import UsageError


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--soak",
    is_flag=True,
    help="Write soak.json (medians, and a bound on the failure rate) even for single runs.",
)
@click.option(
    "--draw",
    metavar="CASE",
    multiple=True,
    help="Draw this case, such as activate-on-s7, in a report that leaves out most drawings.",
)
def report(run_dir: Path, soak: bool, draw: tuple[str, ...]) -> None:
    """Write a run's verdict as JUnit XML and HTML, and print a table.

    RUN_DIR is a run such as runs/latest. The files are RUN_DIR/junit.xml and RUN_DIR/report.html,
    and soak.json and soak.html if cases were repeated. Of more than 40 cases the page draws those
    that tell most; --draw adds another. The exit code is 0 when they could be written, whatever
    the verdict: `vhdtool judge` has an exit code for that.
    """
    from rich.console import Console

    from vhdtool.report.output.files import write_files
    from vhdtool.report.output.soak import has_repeats, write_soak
    from vhdtool.report.output.table import NO_TERMINAL, print_tables
    from vhdtool.report.run import load_run
    from vhdtool.report.wording import headline

    if soak or has_repeats(run_dir):
        write_soak(run_dir)
    run = load_run(run_dir)
    known = {case.directory for case in run.cases}
    for name in draw:
        if name not in known:
            raise UsageError(f"{run_dir}: has no case {name!r}; name a directory of a case in it")
    xml, html = write_files(run, draw=draw)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A record may hold characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="replace")
    # Behind the playbooks' pipe may be a terminal; they say how wide it is.
    pipe = not sys.stdout.isatty() and not os.environ.get("COLUMNS")
    console = Console(highlight=False, width=NO_TERMINAL if pipe else None)
    print_tables(run, console)
    click.echo(headline(run.cases, run.as_expected, run.error))
    click.echo(f"report: {html}")
    if run.soak:
        click.echo(f"soak:   {run.path / 'soak.html'}")
    click.echo(f"junit:  {xml}")
