"""Where the parent of a differencing disk is: locators first, the name in the header last."""

import os
import re
from collections.abc import Iterator
from uuid import UUID

from vhdtool.errors import CorruptImage, VhdtoolError
from vhdtool.image.check.regions import LARGEST_LOCATOR
from vhdtool.image.metadata.ends import read_ends
from vhdtool.storage import FileStorage, Storage
from vhdtool.storage.paths import persistent_path
from vhdtool.vhd.header import NO_UUID, Header
from vhdtool.vhd.locators import decode_locator, url_decoded

_MOST_ALIKE = 16
_DRIVE = re.compile(r"^[A-Za-z]:")


class ParentMissing(CorruptImage):
    """The parent is nowhere where the child says it is."""


class ParentMismatch(CorruptImage):
    """A file is where the parent should be, but it is another disk."""


def locator_paths(storage: Storage, header: Header) -> list[tuple[str, str]]:
    """(code, path) of each locator that can be read, in the header's order."""
    found = []
    for locator in header.locators:
        if not locator.used or not 0 < locator.length <= LARGEST_LOCATOR:
            continue
        raw = storage.pread(locator.offset, locator.length)
        path = decode_locator(locator.code, raw)
        if path is not None and "\0" not in path:
            found.append((locator.code.decode("latin-1"), path))
    return found


def candidates(child: str, storage: Storage, header: Header) -> Iterator[str]:
    """Paths to try, best first, each once. `child` is the child's own path.

    Relative paths start at the child's directory. Of a path with a drive letter only the
    base name is of use here.
    """
    paths = [path for _, path in locator_paths(storage, header)]
    paths += [name.replace("\\", "/") for name in header.parent_names]
    tried = [*paths, *(url_decoded(path) for path in paths)]
    tried += [os.path.basename(path) for path in tried]
    # A symbolic link to the child lives elsewhere than the child that its paths start from.
    directory = os.path.dirname(persistent_path(child))
    seen = set()
    for path in tried:
        if not path or _DRIVE.match(path):
            continue
        full = os.path.normpath(os.path.join(directory, path))
        if full not in seen:
            seen.add(full)
            yield full


def find_parent(child: str, storage: Storage, header: Header) -> str:
    """The path of the parent. Raises ParentMissing, or ParentMismatch for another disk there."""
    wrong: str | None = None
    tried = []
    for path in candidates(child, storage, header):
        tried.append(path)
        if not os.path.exists(path):
            continue
        if header.parent_uuid == NO_UUID or _uuid(path) == header.parent_uuid:
            return path
        wrong = wrong or path
    if header.parent_uuid != NO_UUID:
        # Names of Windows keep their case but do not go by it. Only the uuid makes that safe.
        for path in (other for one in tried for other in _in_another_case(one)):
            if _uuid(path) == header.parent_uuid:
                return path
    if wrong is not None:
        raise ParentMismatch(
            f"{child}: {wrong} is not its parent: that has the uuid {header.parent_uuid}, "
            f"this {_uuid(wrong) or 'none'}; set its place with `vhdtool modify --parent`"
        )
    raise ParentMissing(
        f"{child}: its parent cannot be found (tried {', '.join(tried) or 'nothing: no path'}); "
        "set its place with `vhdtool modify --parent`"
    )


def _in_another_case(path: str) -> list[str]:
    """The files that a system without regard to case would find at an absolute path."""
    found = ["/"]
    for part in path.split("/"):
        if part:
            found = [os.path.join(one, name) for one in found for name in _alike(one, part)]
            del found[_MOST_ALIKE:]
    return [one for one in found if not os.path.isdir(one)]


def _alike(directory: str, name: str) -> list[str]:
    """Names in a directory that are `name` but for their case; a directory of that name alone."""
    if os.path.isdir(os.path.join(directory, name)):
        return [name]
    try:
        return [one for one in os.listdir(directory) if one.casefold() == name.casefold()]
    except OSError:
        return []


def _uuid(path: str) -> UUID | None:
    try:
        with FileStorage(path) as storage:
            ends = read_ends(storage)
            best = ends.best or ends.agreed
            return best.uuid if best is not None else None
    except VhdtoolError:
        return None
