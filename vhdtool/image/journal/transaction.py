"""Changes of several sectors that count as one: an undo journal beside the image guards them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep

from vhdtool.errors import UncleanImage, UsageError, VhdtoolError
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
from vhdtool.leases.claim import claimed, who_has
from vhdtool.storage import FileStorage, Storage
from vhdtool.storage.base import ReadOnlyStorage
from vhdtool.storage.image_lock import ImageInUse, LockMode
from vhdtool.storage.paths import persistent_path

_PATIENCE = 5.0
"""Seconds; a change that is apply_journalled takes milliseconds, so a longer one is stopped."""


def change_journal_path(image: str | os.PathLike[str]) -> str:
    """Where the journal of a change under way is."""
    # By the real name: under another one an interrupted change would not be seen.
    return f"{persistent_path(image)}.journal"


def apply_journalled(
    storage: Storage,
    journal: str,
    changes: list[Change],
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Applies all changes or, after a crash and `recover`, none.

    `prepare` writes before that to free space, or behind the end of the file.
    Raises ImageExists when another change was interrupted: recover first.
    """
    write_journal(journal, storage, changes)
    try:
        prepare()
        apply(storage, changes)
    except (VhdtoolError, KeyboardInterrupt, SystemExit):
        # A full disk, or Ctrl-C: what is there already is put back while it still can be.
        undo(storage, journal)
        drop_journal(journal)
        raise
    drop_journal(journal)


def recover(storage: Storage, journal: str) -> bool:
    """Takes back a change that was interrupted; False when there was none.

    A journal that is not whole was never acted upon, and is removed. Raises ForeignJournal for one
    of another image, or of another state of this one.
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
    """A storage for changing an image that nobody else may use meanwhile: see `claimed`.

    Raises ImageInUse or ActivationRefused while somebody has it, and UncleanImage when an earlier
    change was interrupted.
    """
    with claimed(path, mode, force_epoch) as storage:
        require_no_journal(path, ours=True)
        yield storage


def require_no_journal(path: str | os.PathLike[str], ours: bool = False) -> None:
    """Raises UncleanImage when an earlier change of the image was interrupted.

    Waits for one that is under way, unless the lock is `ours`. Raises ImageInUse when it does not
    end.
    """
    if is_interrupted(path, ours):
        raise UncleanImage(
            f"{os.fspath(path)}: an earlier change was interrupted; `vhdtool repair` takes it back"
        )


def is_interrupted(path: str | os.PathLike[str], ours: bool = False) -> bool:
    """Whether an earlier change of the image was interrupted; the rest as `require_no_journal`."""
    journal, end = change_journal_path(path), monotonic() + _PATIENCE
    while os.path.exists(journal):
        who = "" if ours else who_has(path)
        if not who:
            # It may have ended between the two looks.
            return os.path.exists(journal)
        if monotonic() > end:
            raise ImageInUse(who)
        sleep(0.01)
    return False


def require_replaceable(path: str | os.PathLike[str]) -> None:
    """Raises UncleanImage where an old journal would be played back into a new image."""
    journal = change_journal_path(path)
    if os.path.exists(journal):
        raise UncleanImage(
            f"{journal}: a change of an image of this name was interrupted; take it back with "
            "`vhdtool repair`, or remove the journal"
        )


def restored_storage(storage: FileStorage) -> Storage:
    """The image as its journal will restore it where a change was interrupted, or as it is.

    Raises ImageInUse where somebody is changing it now, and ForeignJournal.
    """
    if is_interrupted(storage.name):
        try:
            return RestoredStorage(storage, change_journal_path(storage.name))
        except ForeignJournal:
            raise
        except UsageError:
            # Torn before anything was changed.
            pass
    return storage


class RestoredStorage(ReadOnlyStorage):
    """What an image will be once its journal is played back; nothing is written."""

    def __init__(self, inner: Storage, journal: str) -> None:
        self.inner = inner
        self.name = inner.name
        self._kept: list[tuple[int, bytes]] = []
        with FileStorage(journal) as file:
            read = read_journal(file)
            require_same_state(inner, file, read)
            self._size = inner.size() if read.size is None else read.size
            for step in read.steps:
                self._kept.append((step.offset, file.pread(step.place, step.length)))

    def pread(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        if end <= offset:
            return b""
        data = bytearray(self.inner.pread(offset, end - offset).ljust(end - offset, b"\0"))
        for place, old in reversed(self._kept):
            first, last = max(place, offset), min(place + len(old), end)
            if first < last:
                data[first - offset : last - offset] = old[first - place : last - place]
        return bytes(data)

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        with suppress(VhdtoolError):
            self.inner.close()
