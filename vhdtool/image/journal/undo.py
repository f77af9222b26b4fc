"""The format of journals: the data that a change overwrites, so that it can be undone."""

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from itertools import pairwise

from vhdtool.errors import UsageError
from vhdtool.image.journal.new_file import new_file
from vhdtool.storage import FileStorage, Storage
from vhdtool.vhd.units import SECTOR

SCHEMA = 2
CHUNK = 1 << 20
_LONGEST_RECORD = 64 << 20
"""Bytes; bounds the search for the end of the JSON line, as a block device may hold any data."""


@dataclass(frozen=True, slots=True)
class Change:
    """Data to write at a byte offset; without data the offset is the new length of the file."""

    description: str
    offset: int
    data: bytes | None = None


class ForeignJournal(UsageError):
    """Raised for a complete journal of another state of the image, or of another version."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change in a journal: `length` bytes of old data at byte `journal_offset`."""

    offset: int
    """Byte offset in the image."""
    journal_offset: int
    length: int
    new_length: int
    digest: str
    """Digest of the new data; "" for a new length of the file."""


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal that was read."""

    size: int | None
    """Length of the image before the change; None where the change does not alter it."""
    sizes: tuple[int, int]
    """Smallest and largest length of the image during the change."""
    steps: list[Step]


def write_journal(path: str, storage: Storage, changes: list[Change]) -> None:
    """Save the data that the changes will overwrite in a new file; it is durable on return.

    The file is one line of JSON, then the old data of each change. The length of the image is
    saved only if the changes alter it: a server may extend it meanwhile (LockMode.RELINK).
    Raises ImageExists for an existing journal, which belongs to another change.
    """
    size = storage.size()
    old, new, sizes = [], [], [size]
    for change in changes:
        data = change.data
        length = size - change.offset if data is None else len(data)
        old.append([change.offset, max(min(length, size - change.offset), 0)])
        new.append([0, ""] if data is None else [length, _digest(data)])
        sizes.append(change.offset if data is None else max(sizes[-1], change.offset + length))
    old_size = None if set(sizes) == {size} else size
    extremes = [min(sizes), max(sizes)]
    record = {"schema": SCHEMA, "image": storage.name, "size": old_size, "sizes": extremes}
    record |= {"old": old, "new": new}
    head = json.dumps(record).encode() + b"\n"
    # A storage manager may reserve a volume for the journal.
    with new_file(path, overwrite=_is_device(path)) as journal:
        journal.pwrite(0, head)
        end = len(head)
        for offset, length in old:
            _copy(storage, offset, journal, end, length)
            end += length
        journal.truncate(end)


def drop_journal(path: str) -> None:
    """Remove a journal; on a block device its first sector is zeroed."""
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
    """Apply all changes in order; each is durable before the next begins."""
    for change in changes:
        if change.data is None:
            storage.truncate(change.offset)
        else:
            storage.pwrite(change.offset, change.data)
        storage.flush()


def undo(storage: Storage, path: str) -> None:
    """Restore the old data from the journal at `path`.

    Raises UsageError for an incomplete journal, ForeignJournal for one of another state.
    """
    with FileStorage(path) as file:
        journal = read_journal(file)
        require_same_state(storage, file, journal)
        # A repair may write an offset twice; the oldest data has to be restored last.
        for step in reversed(journal.steps):
            _copy(file, step.journal_offset, storage, step.offset, step.length)
            storage.flush()
    if journal.size is not None:
        storage.truncate(journal.size)
        storage.flush()


def require_same_state(storage: Storage, file: FileStorage, journal: Journal) -> None:
    """Raise ForeignJournal if the image was replaced by a backup or used after the change.

    Each step was durable before the next began, so in the right state at most one step is neither
    applied nor untouched.
    """
    smallest, largest = journal.sizes
    same = journal.size is None or smallest <= storage.size() <= largest
    spans = sorted((one.offset, one.offset + one.new_length) for one in journal.steps)
    if same and all(one[1] <= other[0] for one, other in pairwise(spans)):
        same = sum(not _is_old_or_new(storage, file, one) for one in journal.steps) <= 1
    if not same:
        raise ForeignJournal(
            f"{file.name}: belongs to another state of {storage.name}, which was replaced or "
            "changed since; if the image is right as it is, remove the journal"
        )


def _is_old_or_new(storage: Storage, file: FileStorage, step: Step) -> bool:
    """Whether the image has the new or the old data of a step."""
    if not step.digest or _digest(storage.pread(step.offset, step.new_length)) == step.digest:
        return True
    old = file.pread(step.journal_offset, step.length)
    return storage.pread(step.offset, step.length) == old


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_journal(journal: FileStorage) -> Journal:
    """Read a journal. Raises UsageError where incomplete, ForeignJournal of another version."""
    line = b""
    while b"\n" not in line and len(line) < _LONGEST_RECORD:
        chunk = journal.pread(len(line), CHUNK)
        if not chunk:
            break
        line += chunk
    line = line.split(b"\n", 1)[0]
    try:
        record = json.loads(line)
        if record["schema"] != SCHEMA:
            raise ForeignJournal(f"{journal.name}: an undo journal of another version of vhdtool")
        size = None if record["size"] is None else int(record["size"])
        smallest, largest = (int(one) for one in record["sizes"])
        old = [(int(a), int(b)) for a, b in record["old"]]
        new = [(int(a), str(b)) for a, b in record["new"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{journal.name}: not an undo journal, or incomplete") from None
    steps = []
    end = len(line) + 1
    for (offset, length), (new_length, digest) in zip(old, new, strict=False):
        steps.append(Step(offset, end, length, new_length, digest))
        end += length
    complete = end <= journal.size() if journal.is_block_device else end == journal.size()
    if (
        not complete
        or len(old) != len(new)
        or any(min(one.offset, one.length, one.new_length) < 0 for one in steps)
    ):
        raise UsageError(f"{journal.name}: not an undo journal, or incomplete")
    return Journal(size, (smallest, largest), steps)


def repair_journal_path(image: str | os.PathLike[str]) -> str:
    """The default path of the journal of `vhdtool repair`."""
    return f"{os.fspath(image)}.undo"
