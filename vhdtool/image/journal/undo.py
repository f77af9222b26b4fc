"""The undo journal: what stood where a repair writes, so that it can be taken back."""

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
_LONGEST = 64 << 20
"""Bytes of the line of JSON; a journal's block device may have anything in it."""


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes to write at a byte offset; or, without data, the new length of the file."""

    what: str
    offset: int
    data: bytes | None = None


class ForeignJournal(UsageError):
    """A whole journal, but of another state of the image, or of another version of vhdtool."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change as the journal has it: offset in the image, place and length of the old bytes."""

    offset: int
    place: int
    length: int
    new_length: int
    digest: str
    """Of the new bytes; "" for a new length of the file."""


@dataclass(frozen=True, slots=True)
class Journal:
    """`size`: the file's length before; None where no change alters it. `sizes`: the least and the
    largest that it has on the way."""

    size: int | None
    sizes: tuple[int, int]
    steps: list[Step]


def write_journal(path: str, storage: Storage, changes: list[Change]) -> None:
    """Keeps what the changes will overwrite in a new file that is durable on return.

    The file is one line of JSON, then the old bytes of each change. It keeps the file's
    length only where the changes alter it: a server may let it grow meanwhile (LockMode.RELINK).
    Raises ImageExists when the journal is there already: it belongs to another repair.
    """
    size = storage.size()
    old, new, sizes = [], [], [size]
    for change in changes:
        data = change.data
        length = size - change.offset if data is None else len(data)
        old.append([change.offset, max(min(length, size - change.offset), 0)])
        new.append([0, ""] if data is None else [length, _digest(data)])
        sizes.append(change.offset if data is None else max(sizes[-1], change.offset + length))
    kept = None if set(sizes) == {size} else size
    between = [min(sizes), max(sizes)]
    record = {"schema": SCHEMA, "image": storage.name, "size": kept, "sizes": between}
    record |= {"old": old, "new": new}
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
    """Puts back what the journal at `path` kept.

    Raises UsageError when it is not whole, ForeignJournal when it is not of the image as it is now.
    """
    with FileStorage(path) as file:
        journal = read_journal(file)
        require_same_state(storage, file, journal)
        # A repair may write a place twice: the oldest state is the one to come back to.
        for step in reversed(journal.steps):
            _copy(file, step.place, storage, step.offset, step.length)
            storage.flush()
    if journal.size is not None:
        storage.truncate(journal.size)
        storage.flush()


def require_same_state(storage: Storage, file: FileStorage, journal: Journal) -> None:
    """Raises ForeignJournal unless the changes are the last that happened to the image, in part at
    least.

    Each was durable before the next: at most one of them is neither done nor undone. Somebody may
    have put a backup in the place of the image, or used it since.
    """
    least, largest = journal.sizes
    own = journal.size is None or least <= storage.size() <= largest
    spans = sorted((one.offset, one.offset + one.new_length) for one in journal.steps)
    if own and all(one[1] <= other[0] for one, other in pairwise(spans)):
        own = sum(not _is_known(storage, file, one) for one in journal.steps) <= 1
    if not own:
        raise ForeignJournal(
            f"{file.name}: is the journal of a change of another state of {storage.name}, which "
            "was replaced or changed since; if the image is right as it is, remove the journal"
        )


def _is_known(storage: Storage, file: FileStorage, step: Step) -> bool:
    """Whether a change is done, or not begun."""
    if not step.digest or _digest(storage.pread(step.offset, step.new_length)) == step.digest:
        return True
    return storage.pread(step.offset, step.length) == file.pread(step.place, step.length)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_journal(journal: FileStorage) -> Journal:
    """Raises UsageError when it is not whole, ForeignJournal when another version wrote it."""
    line = b""
    while b"\n" not in line and len(line) < _LONGEST and (more := journal.pread(len(line), CHUNK)):
        line += more
    line = line.split(b"\n", 1)[0]
    try:
        record = json.loads(line)
        if record["schema"] != SCHEMA:
            raise ForeignJournal(f"{journal.name}: an undo journal of another version of vhdtool")
        size = None if record["size"] is None else int(record["size"])
        least, largest = (int(one) for one in record["sizes"])
        old = [(int(a), int(b)) for a, b in record["old"]]
        new = [(int(a), str(b)) for a, b in record["new"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{journal.name}: not an undo journal, or not whole") from None
    steps = []
    place = len(line) + 1
    for (offset, length), (new_length, digest) in zip(old, new, strict=False):
        steps.append(Step(offset, place, length, new_length, digest))
        place += length
    whole = place <= journal.size() if journal.is_block_device else place == journal.size()
    if (
        not whole
        or len(old) != len(new)
        or any(min(one.offset, one.length, one.new_length) < 0 for one in steps)
    ):
        raise UsageError(f"{journal.name}: not an undo journal, or not whole")
    return Journal(size, (least, largest), steps)


def repair_journal_path(image: str | os.PathLike[str]) -> str:
    """Where the journal of a repair goes unless the user says otherwise."""
    return f"{os.fspath(image)}.undo"
