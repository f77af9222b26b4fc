"""Several writes to an image that take effect together, with a journal beside the image."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep

from vhdtool.errors import UncleanImage, UsageError, VhdtoolError
from vhdtool.image.journal.overlay import OverlayStorage
from vhdtool.image.journal.undo import (
    Change,
    ForeignJournal,
    apply,
    drop_journal,
    read_journal,
    require_same_state,
    undo,
    write_journal,
)
from vhdtool.leases.claim import claimed, writer_of
from vhdtool.storage import FileStorage, Storage
from vhdtool.storage.image_lock import ImageInUse, LockMode
from vhdtool.storage.paths import persistent_path

_PATIENCE = 5.0
"""Seconds to wait for the end of a change, which takes milliseconds."""


def change_journal_path(image: str | os.PathLike[str]) -> str:
    """The path of the journal that exists while a change is in progress."""
    # The image's persistent path: by another name an interrupted change would not be found.
    return f"{persistent_path(image)}.journal"


def apply_journalled(
    storage: Storage,
    journal: str,
    changes: list[Change],
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Apply all changes or, after a crash and `recover`, none.

    `prepare` is called first; it writes to free space only, or behind the end of the file.
    Raises ImageExists when another change was interrupted: recover first.
    """
    write_journal(journal, storage, changes)
    try:
        prepare()
        apply(storage, changes)
    except (VhdtoolError, KeyboardInterrupt, SystemExit):
        # A full disk, or Ctrl-C: restore the old state while the image is still claimed.
        undo(storage, journal)
        drop_journal(journal)
        raise
    drop_journal(journal)


def recover(storage: Storage, journal: str) -> bool:
    """Undo a change that was interrupted; returns False when there was none.

    A journal that is incomplete is removed: its change had not begun. Raises ForeignJournal for
    a journal of another image, or of another state of this one.
    """
    if not os.path.exists(journal):
        return False
    try:
        undo(storage, journal)
    except ForeignJournal:
        raise
    except UsageError:
        drop_journal(journal)
        return False
    drop_journal(journal)
    return True


@contextmanager
def writable_image(
    path: str | os.PathLike[str],
    mode: LockMode = LockMode.EXCLUSIVE,
    force_epoch: int | None = None,
) -> Iterator[FileStorage]:
    """Claim an image for a change (see `claimed`), and open it for writing.

    Raises ImageInUse or ActivationRefused while another process uses it, and UncleanImage when an
    earlier change was interrupted.
    """
    with claimed(path, mode, force_epoch) as storage:
        require_no_journal(path, locked=True)
        yield storage


def require_no_journal(path: str | os.PathLike[str], locked: bool = False) -> None:
    """Raise UncleanImage when an earlier change of the image was interrupted.

    Waits for a change in progress, unless the caller has `locked` the image. Raises ImageInUse
    when it does not end.
    """
    if is_interrupted(path, locked):
        raise UncleanImage(
            f"{os.fspath(path)}: an earlier change was interrupted; `vhdtool repair` undoes it"
        )


def is_interrupted(path: str | os.PathLike[str], locked: bool = False) -> bool:
    """Whether an earlier change was interrupted. Waits and raises as `require_no_journal` does."""
    journal, end = change_journal_path(path), monotonic() + _PATIENCE
    while os.path.exists(journal):
        user = "" if locked else writer_of(path)
        if not user:
            # The change may have ended between the two tests.
            return os.path.exists(journal)
        if monotonic() > end:
            raise ImageInUse(user)
        sleep(0.01)
    return False


def require_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise UncleanImage where an old journal would later be applied to a new image."""
    journal = change_journal_path(path)
    if os.path.exists(journal):
        raise UncleanImage(
            f"{journal}: a change of an image of this name was interrupted; undo it with "
            "`vhdtool repair`, or remove the journal"
        )


def restored_storage(storage: FileStorage) -> Storage:
    """A view of the image without the effects of an interrupted change.

    Returns `storage` itself where no change was interrupted. Raises ImageInUse while a change is
    in progress, and ForeignJournal.
    """
    if is_interrupted(storage.name):
        try:
            return RestoredStorage(storage, change_journal_path(storage.name))
        except ForeignJournal:
            raise
        except UsageError:
            # The journal is incomplete, so the change had not begun.
            pass
    return storage


class RestoredStorage(OverlayStorage):
    """An image as it will be once its journal is undone. Read-only; nothing is written."""

    def __init__(self, inner: Storage, journal: str) -> None:
        with FileStorage(journal) as file:
            record = read_journal(file)
            require_same_state(inner, file, record)
            old = [(one.offset, file.pread(one.journal_offset, one.length)) for one in record.steps]
        # A change may write an offset twice; the oldest data counts.
        super().__init__(inner, old[::-1], record.size)

    def close(self) -> None:
        with suppress(VhdtoolError):
            super().close()
