"""Repairing and resizing closed images."""

import os
from dataclasses import dataclass

from vhdtool.errors import CorruptImage
from vhdtool.image.api.image import Path
from vhdtool.image.chain.check import ChainReport, check_chain
from vhdtool.image.edit.rebuild_header import plan_header
from vhdtool.image.edit.repair import Plan, plan, write_repair
from vhdtool.image.edit.resize import resize as resize_image
from vhdtool.image.journal.transaction import change_journal_path, is_interrupted, recover
from vhdtool.image.journal.undo import Change, repair_journal_path, undo
from vhdtool.image.metadata.findings import NoTruthValue
from vhdtool.leases.claim import claimed
from vhdtool.storage import FileStorage, Storage

_UNDO = "undo an interrupted change"


@dataclass(frozen=True, slots=True)
class Repair(NoTruthValue):
    """The changes that a repair made, or would make."""

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
    rebuild_header: bool = False,
    parent: Path | None = None,
    journal: Path | None = None,
    force_epoch: int | None = None,
) -> Repair:
    """Repair footers, sizes, batmap and leaked space; guest data stays as it is.

    An undo journal (at `journal`, or IMAGE.undo) keeps what is overwritten. Orphan blocks stay
    unless `drop_orphans`. `rebuild_header` instead writes a lost header that the rest of the image
    proves; `parent` names the parent of a child that does not name it any more. With `dry_run`
    nothing is written.
    Raises CorruptImage where a repair cannot help: nothing was written, and `salvage` reads the
    rest. Raises ImageExists for an earlier undo journal, UsageError where the header is sound,
    LockedError, NotAVhd or StorageError.
    """

    def planned(storage: Storage) -> list[Change]:
        if rebuild_header:
            return [plan_header(storage, parent)[1]]
        return _repairable(storage, drop_orphans).changes

    if dry_run:
        changes = [_UNDO] if is_interrupted(path) else []
        if not changes:
            with FileStorage(path) as storage:
                changes = [one.description for one in planned(storage)]
        return Repair(changes, None, check_chain(path))
    done, written = [], None
    with claimed(path, force_epoch=force_epoch) as storage:
        if recover(storage, change_journal_path(path)):
            done.append(_UNDO)
        if steps := planned(storage):
            written = write_repair(storage, steps, journal)
            done += [one.description for one in steps]
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
