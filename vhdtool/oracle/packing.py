"""Packs the images of a run's cases in place, and unpacks them.

An image is replaced only after the packed one was written, synced, read back and compared; both
have the same bytes and the same holes, so the verdict is the same. After a crash both may exist:
the case is inconclusive until the run is packed or unpacked again.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.oracle.evidence.files import names_in
from vhdtool.oracle.evidence.json_fields import TornRecord
from vhdtool.oracle.evidence.record import PACKED
from vhdtool.oracle.readers.image_view import FileView, View
from vhdtool.oracle.readers.packed import PackedView, open_view, write_all, write_packed
from vhdtool.oracle.run import is_case, no_case

IMAGES = ("image.vhd", "image.qcow2", "image.raw")
_COMPARED = 1 << 20
_TEMPORARY = ".new"


@dataclass
class Packing:
    """What was done: images, and their bytes before and after, as `cp` and `tar` count them."""

    images: int = 0
    before: int = 0
    after: int = 0
    left: tuple[str, ...] = ()
    """Cases that were left alone: without case.json a case may be under way."""


def pack_run(directory: Path) -> Packing:
    """Pack every image of a run or a case. Raises UsageError, also where an image cannot be.

    The lab writes case.json after the image. Without it the image may still grow, and what is
    written after its removal would be lost.
    """
    done = Packing()
    for case in _cases(directory):
        if not os.path.lexists(case / "case.json"):
            done.left += (case.name,)
            continue
        for name in IMAGES:
            if os.path.lexists(case / name):
                _replace(case / name, Path(f"{case / name}{PACKED}"), done)
    return done


def unpack_run(directory: Path) -> Packing:
    """Restore every image of a run or a case. Raises UsageError, also where one is damaged."""
    done = Packing()
    for case in _cases(directory):
        for name in IMAGES:
            packed = Path(f"{case / name}{PACKED}")
            if os.path.lexists(packed):
                _replace(packed, case / name, done)
    return done


def _cases(directory: Path) -> Iterator[Path]:
    """The directories of cases: of a run, of its failed attempts, or the one given."""
    path = directory.resolve()
    if is_case(path):
        yield path
        return
    found = [
        folder / name
        for folder in (path, path / "failed")
        for name in names_in(folder)
        if is_case(folder / name)
    ]
    if not found:
        raise no_case(directory)
    yield from found


def _replace(source: Path, target: Path, done: Packing) -> None:
    """Write `target` from `source`, compare the two, and remove `source`."""
    temporary = Path(f"{target}{_TEMPORARY}")
    try:
        with closing(open_view(source)) as view:
            if os.path.lexists(target):
                with closing(open_view(target)) as other:
                    _compare(view, other)
            else:
                _write(view, temporary, target)
        done.before += os.stat(source).st_size
        done.after += os.stat(target).st_size
        done.images += 1
        os.unlink(source)
    except (OSError, TornRecord) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        verb = "packed" if target.name.endswith(PACKED) else "unpacked"
        raise UsageError(f"{source}: cannot be {verb} ({why}); it is left as it was") from error


def _write(view: FileView | PackedView, temporary: Path, target: Path) -> None:
    """Write `target` whole or not at all, with the bytes and holes of `view`."""
    temporary.unlink(missing_ok=True)
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            if isinstance(view, FileView):
                write_packed(view, fd)
            else:
                _write_sparse(view, fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        packed = isinstance(view, FileView)
        with closing(PackedView(temporary) if packed else FileView(temporary)) as written:
            _compare(view, written)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _write_sparse(view: View, fd: int) -> None:
    os.ftruncate(fd, view.size())
    for start, end in view.extents():
        for offset in range(start, end, _COMPARED):
            data = view.pread(offset, min(_COMPARED, end - offset))
            write_all(fd, data, offset)


def _compare(one: View, other: View) -> None:
    """Raises TornRecord unless both have the same size and data."""
    if one.size() != other.size():
        raise TornRecord("the packed and the plain image differ in size")
    for view in (one, other):
        for start, end in view.extents():
            for offset in range(start, end, _COMPARED):
                length = min(_COMPARED, end - offset)
                if one.pread(offset, length) != other.pread(offset, length):
                    raise TornRecord(f"the packed and the plain image differ at {offset}")
