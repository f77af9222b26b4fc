"""`vhdtool repair`: footers, sizes, batmap and leaked space."""

import os
import shlex
from typing import TYPE_CHECKING

import click

from vhdtool.cli.arguments import force_option, image_argument, json_option
from vhdtool.cli.findings import colored, finding_lines, next_steps
from vhdtool.cli.output import print_json
from vhdtool.errors import UsageError

if TYPE_CHECKING:
    from vhdtool.image.chain.check import ChainReport
    from vhdtool.image.edit.repair import Plan
    from vhdtool.image.metadata.findings import Finding
    from vhdtool.storage import FileStorage


@click.command()
@image_argument
@click.option("--dry-run", is_flag=True, help="Print the repair only.  [default]")
@click.option("--yes", is_flag=True, help="Write the repair.")
@click.option("--drop-orphans", is_flag=True, help="Discard orphan blocks too.")
@click.option(
    "--rebuild-header",
    is_flag=True,
    help="Rebuild a lost header, if the rest of the image proves it.",
)
@click.option(
    "--parent",
    type=click.Path(),
    help="With --rebuild-header: the parent of a child that does not name it any more.",
)
@click.option(
    "--undo", "undo_from", type=click.Path(), help="Undo the repair of this undo journal."
)
@click.option(
    "--journal", type=click.Path(), help="Path of the undo journal.  [default: IMAGE.undo]"
)
@force_option()
@json_option
@click.pass_context
def repair(
    context: click.Context,
    image: str,
    dry_run: bool,
    yes: bool,
    drop_orphans: bool,
    rebuild_header: bool,
    parent: str | None,
    undo_from: str | None,
    journal: str | None,
    force_epoch: int | None,
    as_json: bool,
) -> None:
    """Repair footers, sizes, batmap and leaked space.

    Guest data stays as it is. Without --yes the repair is only printed. An undo journal keeps
    everything that is overwritten or cut. No other program may have the image open. Orphan blocks,
    which no BAT entry names, stay unless --drop-orphans is given.

    --rebuild-header shows the header that footer, BAT, batmap and blocks prove, what proves it, and
    what `check` says of the image with it; --yes writes it. Where more than one is possible, or
    blocks are damaged or left over, nothing is written.

    \b
    Exit codes:
      0  `check` finds nothing any more
      1  failed
      2  damage that cannot be repaired; nothing was written
      3  repairs are possible (--yes), or another command is needed, which is named

    \b
    Example: vhdtool repair disk.vhd --yes
             vhdtool repair disk.vhd --rebuild-header
    """
    from vhdtool.image.chain.check import check_chain
    from vhdtool.image.edit.repair import plan, write_repair
    from vhdtool.image.journal.transaction import change_journal_path, recover
    from vhdtool.image.journal.undo import undo
    from vhdtool.leases.claim import claimed, writer_of
    from vhdtool.storage import FileStorage
    from vhdtool.storage.image_lock import ImageInUse

    if dry_run and (yes or undo_from is not None):
        raise UsageError("--dry-run excludes --yes and --undo")
    if rebuild_header and (drop_orphans or undo_from is not None):
        raise UsageError("--rebuild-header excludes --drop-orphans and --undo")
    if parent is not None and not rebuild_header:
        raise UsageError("--parent needs --rebuild-header; `vhdtool modify` sets another parent")
    writes = yes or undo_from is not None
    if not writes and (who := writer_of(image)):
        raise ImageInUse(f"{who}; repair the image when it has finished")
    with claimed(image, force_epoch=force_epoch) if writes else FileStorage(image) as storage:
        pending = os.path.exists(change_journal_path(image))
        if undo_from is not None:
            undo(storage, undo_from)
            click.echo(f"{image}: restored to its state before the repair")
            return
        if pending and not yes:
            click.echo(f"{image}: a change was interrupted; --yes undoes it")
            context.exit(3)
        if pending and recover(storage, change_journal_path(image)):
            click.echo(f"{image}: undid the interrupted change", err=as_json)
        if rebuild_header:
            context.exit(_rebuild_header(image, storage, parent, yes, journal, as_json))
        result = plan(storage, drop_orphans)
        written = write_repair(storage, result.changes, journal) if yes and result.changes else None
    report = check_chain(image)
    code = 2 if result.unrepairable else 3 if result.changes and not written else report.exit_code
    left = _left(report, None if written else result)
    if as_json:
        print_json(
            {
                "image": image,
                "exit_code": code,
                "written": written is not None,
                "journal": written,
                "changes": [
                    {"what": one.description, "offset": one.offset} for one in result.changes
                ],
                "left": [one.as_dict() for one in left],
                "advice": report.advice() if left else [],
            }
        )
    else:
        _print(image, result, written, left)
        for line in next_steps(report.advice() if left else []):
            click.echo(line)
    context.exit(code)


def _rebuild_header(
    image: str,
    storage: "FileStorage",
    parent: str | None,
    yes: bool,
    journal: str | None,
    as_json: bool,
) -> int:
    """Show, and with `yes` write, the header that the image proves; return the exit code."""
    from vhdtool.image.edit.rebuild_header import plan_header
    from vhdtool.image.edit.repair import write_repair

    rebuilt, change = plan_header(storage, parent)
    written = write_repair(storage, [change], journal) if yes else None
    code = rebuilt.report.exit_code if written else 3
    if as_json:
        value = {
            "image": image,
            "exit_code": code,
            "written": written is not None,
            "journal": written,
            "changes": [{"what": change.description, "offset": change.offset}],
            "header": rebuilt.header.as_dict(),
            "evidence": rebuilt.evidence,
            "left": [one.as_dict() for one in rebuilt.report.findings if one.severity != "info"],
        }
        print_json(value)
        return code
    for line in rebuilt.evidence:
        click.echo(f"evidence: {line}")
    click.echo(f"{'done' if written else 'would'}: {change.description} (byte {change.offset})")
    for line in finding_lines(rebuilt.report.findings):
        click.echo(f"then: {line}")
    click.echo(f"{image}: with it `check` says: {colored(rebuilt.report.verdict)}")
    quoted = shlex.quote(image)
    if not written:
        words = f"--rebuild-header{f' --parent {shlex.quote(parent)}' if parent else ''} --yes"
        click.echo(f"next: vhdtool repair {quoted} {words}: nothing was written yet")
    else:
        undo = f"--undo {shlex.quote(written)}"
        click.echo(f"next: vhdtool check {quoted}; `vhdtool repair {quoted} {undo}` undoes it")
    return code


def _print(image: str, result: "Plan", written: str | None, left: list["Finding"]) -> None:
    """Print what was repaired or would be, and what is left; `written` is the undo journal."""
    for line in finding_lines(left, {"corrupt": "cannot be repaired", "unclean": "left"}):
        click.echo(line)
    for change in result.changes:
        click.echo(f"{'done' if written else 'would'}: {change.description} (byte {change.offset})")
    if written:
        click.echo(f"{image}: repaired; --undo {written} restores it")
    elif result.changes:
        click.echo(f"{image}: nothing was written; --yes writes it")
    elif left:
        click.echo(f"{image}: nothing was written: repair cannot help")
    else:
        click.echo(f"{image}: nothing to repair")


def _left(report: "ChainReport", before: "Plan | None") -> list["Finding"]:
    """Findings that stay after the repair; `before` is the plan of a repair that was not done."""
    from vhdtool.image.check.advice import REPAIRABLE

    found = [*report.links, *(one for each in report.reports for one in each.findings)]
    left = [one for one in found if one.severity != "info"]
    if before is None or before.unrepairable:
        return left
    repaired = REPAIRABLE | {"orphan-block"} if before.drop_orphans else REPAIRABLE
    return [one for one in left if one.code not in repaired]
