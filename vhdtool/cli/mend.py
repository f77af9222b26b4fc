"""`vhdtool repair`."""

import os

import click

from vhdtool.cli.options import image_argument, json_option, print_json
from vhdtool.errors import UsageError


@click.command()
@image_argument
@click.option("--dry-run", is_flag=True, help="Only say what would be written (default).")
@click.option("--yes", is_flag=True, help="Write. Without it nothing is changed.")
@click.option("--undo", "undo_from", type=click.Path(), help="Take a repair back: its journal.")
@click.option("--journal", type=click.Path(), help="The undo journal.  [default: IMAGE.undo]")
@json_option
@click.pass_context
def repair(
    context: click.Context,
    image: str,
    dry_run: bool,
    yes: bool,
    undo_from: str | None,
    journal: str | None,
    as_json: bool,
) -> None:
    """Mend footers, batmap and leaked tail; guest data is never touched.

    Without --yes it only says what it would write. What it overwrites is kept in an undo
    journal. No other program may have the image open. Exit codes: 0 nothing is left to repair;
    1 failed; 2 damage that cannot be repaired, nothing written; 3 repairs are possible (--yes).

    \b
    Example: vhdtool repair disk.vhd --yes
    """
    from vhdtool.image.journal import journal_beside, recover
    from vhdtool.image.repair import plan
    from vhdtool.image.undo import apply, journal_path, undo, write_journal
    from vhdtool.storage import FileStorage

    if dry_run and (yes or undo_from is not None):
        raise UsageError("--dry-run goes with neither --yes nor --undo")
    pending = os.path.exists(journal_beside(image))
    with FileStorage(image, writable=yes or undo_from is not None) as storage:
        if undo_from is not None:
            undo(storage, undo_from)
            click.echo(f"{image}: as it was before the repair")
            return
        if pending and not yes:
            click.echo(f"{image}: a change was interrupted; --yes takes it back")
            context.exit(3)
        if pending and recover(storage, journal_beside(image)):
            click.echo(f"{image}: the interrupted change was taken back", err=as_json)
        result = plan(storage)
        if yes and result.changes:
            journal = journal or journal_path(image)
            write_journal(journal, storage, result.changes)
            apply(storage, result.changes)
    done = yes and bool(result.changes)
    code = 2 if result.hopeless else 3 if result.changes and not done else 0
    if as_json:
        print_json(
            {
                "image": image,
                "exit_code": code,
                "written": done,
                "journal": journal if done else None,
                "changes": [{"what": one.what, "offset": one.offset} for one in result.changes],
                "left": [one.as_dict() for one in result.hopeless],
            }
        )
        context.exit(code)
    for one in result.hopeless:
        click.echo(f"cannot be repaired: {one.code}: {one.message}")
    for change in result.changes:
        click.echo(f"{'done' if done else 'would'}: {change.what} (byte {change.offset})")
    if result.hopeless:
        click.echo(f"{image}: nothing was written; see `vhdtool read --salvage`")
    elif not result.changes:
        click.echo(f"{image}: nothing to repair")
    elif done:
        click.echo(f"{image}: repaired; take it back with --undo {journal}")
    else:
        click.echo(f"{image}: nothing was written; --yes does it")
    context.exit(code)
