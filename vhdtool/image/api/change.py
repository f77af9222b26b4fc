"""Repairing and resizing closed images."""

import os
from dataclasses import dataclass

from vhdtool.errors import CorruptImage, ImageExists
from vhdtool.image.api.image import Path
from vhdtool.image.chain.check import ChainReport, check_chain
from vhdtool.image.edit.repair import Plan, plan
from vhdtool.image.edit.resize import resize as resize_image
from vhdtool.image.journal.transaction import change_journal_path, is_interrupted, recover
from vhdtool.image.journal.undo import apply, repair_journal_path, undo, write_journal
from vhdtool.image.metadata.findings import NoTruthValue
from vhdtool.leases.claim import claimed
from vhdtool.storage import FileStorage, Storage


@dataclass(frozen=True, slots=True)
class Repair(NoTruthValue):
    """What a repair changed, or would change."""

    changes: list[str]
    """A description of each change, in order; empty where there was nothing to repair."""
    journal: str | None
    """The file that `undo_repair` needs; None where nothing was written."""
    report: ChainReport
    """The check of the image and its parents afterwards."""


def repair(
    path: Path,
    *,
    dry_run: bool = False,
    drop_orphans: bool = False,
    journal: Path | None = None,
    force_epoch: int | None = None,
) -> Repair:
    """Repair footers, sizes, batmap and leaked space; guest data stays as it is.

    An undo journal (at `journal`, or IMAGE.undo) keeps what is overwritten. Orphan blocks stay
    unless `drop_orphans`. With `dry_run` nothing is written.
    Raises CorruptImage where a repair cannot help: nothing was written, and `salvage` reads the
    rest. Raises ImageExists for an earlier undo journal, LockedError, NotAVhd or StorageError.
    """
    if dry_run:
        changes = ["undo an interrupted change"] if is_interrupted(path) else []
        if not changes:
            with FileStorage(path) as storage:
                changes = [one.description for one in _repairable(storage, drop_orphans).changes]
        return Repair(changes, None, check_chain(path))
    done, written = [], None
    with claimed(path, force_epoch=force_epoch) as storage:
        if recover(storage, change_journal_path(path)):
            done.append("undo an interrupted change")
        planned = _repairable(storage, drop_orphans)
        if planned.changes:
            written = os.fspath(journal) if journal is not None else repair_journal_path(path)
            if os.path.isfile(written):
                raise ImageExists(
                    f"{written}: is the undo journal of an earlier repair; move it, or choose "
                    "another name"
                )
            write_journal(written, storage, planned.changes)
            apply(storage, planned.changes)
            done += [one.description for one in planned.changes]
    return Repair(done, written, check_chain(path))


def _repairable(storage: Storage, drop_orphans: bool) -> Plan:
    result = plan(storage, drop_orphans)
    if result.unrepairable:
        first = result.unrepairable[0]
        raise CorruptImage(
            f"{storage.name}: cannot be repaired ({first.code}: {first.message}); nothing was "
            "written; `vhdtool check` says what helps"
        )
    return result


def undo_repair(path: Path, journal: Path | None = None, *, force_epoch: int | None = None) -> None:
    """Restore the state of an image before a repair, from its undo journal, which stays.

    Raises UsageError for another file than a journal, or one of another state of the image,
    LockedError or StorageError.
    """
    with claimed(path, force_epoch=force_epoch) as storage:
        undo(storage, os.fspath(journal) if journal is not None else repair_journal_path(path))


def resize(path: Path, size: int, *, force_epoch: int | None = None) -> int:
    """Change the virtual size of a closed image; returns it, rounded up to 512 bytes.

    Shrinking reads the data to be cut off and refuses unless it is zero. After a crash `repair`
    restores the old size. Raises UsageError, or as `open` does for writing.
    """
    if force_epoch is not None:
        with claimed(path, force_epoch=force_epoch):
            pass
    return resize_image(path, size).current_size
