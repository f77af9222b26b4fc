"""The undo journal: what stood where a repair writes, so that it can be taken back."""

import json
import os
import stat
from dataclasses import dataclass

from vhdtool.errors import UsageError
from vhdtool.image.newfile import new_file
from vhdtool.storage import FileStorage, Storage
from vhdtool.vhd.units import SECTOR

SCHEMA = 1
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes to write at a byte offset; or, without data, the new length of the file."""

    what: str
    offset: int
    data: bytes | None = None


def write_journal(path: str, storage: Storage, changes: list[Change]) -> None:
    """Keeps what the changes will overwrite in a new file that is durable on return.

    The file is one line of JSON, then the old bytes of each change. It keeps the file's
    length only where the changes alter it: a server may let it grow meanwhile (LockMode.RELINK).
    Raises ImageExists when the journal is there already: it belongs to another repair.
    """
    size = storage.size()
    old = []
    kept = None
    for change in changes:
        length = size - change.offset if change.data is None else len(change.data)
        if change.data is None or change.offset + length > size:
            kept = size
        old.append([change.offset, max(min(length, size - change.offset), 0)])
    record = {"schema": SCHEMA, "image": storage.name, "size": kept, "old": old}
    head = json.dumps(record).encode() + b"\n"
    # A storage manager may set a whole volume aside for the journal.
    with new_file(path, overwrite=_is_device(path)) as journal:
        journal.pwrite(0, head)
        place = len(head)
        for offset, length in old:
            _copy(storage, offset, journal, place, length)
            place += length
        journal.truncate(place)


def drop_journal(path: str) -> None:
    """Removes a journal; on a block device its start is wiped."""
    if not _is_device(path):
        os.unlink(path)
        return
    with FileStorage(path, writable=True) as device:
        device.pwrite(0, bytes(SECTOR))
        device.flush()


def _is_device(path: str) -> bool:
    return os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)


def _copy(source: Storage, at: int, target: Storage, to: int, length: int) -> None:
    for skip in range(0, length, CHUNK):
        data = source.pread(at + skip, min(CHUNK, length - skip))
        if any(data):
            target.pwrite(to + skip, data)
        elif data:
            target.zero(to + skip, len(data))


def apply(storage: Storage, changes: list[Change]) -> None:
    """Does all changes in order, each durable before the next."""
    for change in changes:
        if change.data is None:
            storage.truncate(change.offset)
        else:
            storage.pwrite(change.offset, change.data)
        storage.flush()


def undo(storage: Storage, path: str) -> None:
    """Puts back what the journal at `path` kept. Raises UsageError when it is not whole."""
    with FileStorage(path) as journal:
        size, steps = read_journal(journal)
        # A repair may write a place twice: the oldest state is the one to come back to.
        for offset, place, length in reversed(steps):
            _copy(journal, place, storage, offset, length)
    if size is not None:
        storage.truncate(size)
    storage.flush()


def read_journal(journal: FileStorage) -> tuple[int | None, list[tuple[int, int, int]]]:
    """(old size, [(offset in the image, place in the journal, length)]); None: it stays."""
    line = journal.pread(0, CHUNK).split(b"\n", 1)[0]
    try:
        record = json.loads(line)
        size = None if record["size"] is None else int(record["size"])
        old = [(int(a), int(b)) for a, b in record["old"]]
        known = record["schema"] == SCHEMA
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{journal.name}: not an undo journal, or not whole") from None
    if not known:
        raise UsageError(f"{journal.name}: an undo journal of another version")
    steps = []
    place = len(line) + 1
    for offset, length in old:
        steps.append((offset, place, length))
        place += length
    whole = place <= journal.size() if journal.is_block_device else place == journal.size()
    if not whole or any(offset < 0 or n < 0 for offset, _, n in steps):
        raise UsageError(f"{journal.name}: not an undo journal, or not whole")
    return size, steps


def journal_path(image: str | os.PathLike[str]) -> str:
    """Where the journal of a repair goes unless the user says otherwise."""
    return f"{os.fspath(image)}.undo"
