"""Locating the parent of a differencing image.

The locators are tried first, then the parent's name in the header.
"""

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

_MOST_MATCHES = 16
"""Bound on the paths that differ from a locator's path in case only."""
_DRIVE = re.compile(r"^[A-Za-z]:")


class ParentMissing(CorruptImage):
    """Raised when no path in a child leads to a file."""


class ParentMismatch(CorruptImage):
    """Raised when the paths in a child lead to another disk than its parent."""


def locator_paths(storage: Storage, header: Header) -> list[tuple[str, str]]:
    """(code, path) of each locator that can be read, in the header's order."""
    paths = []
    for locator in header.locators:
        if not locator.used or not 0 < locator.length <= LARGEST_LOCATOR:
            continue
        raw = storage.pread(locator.offset, locator.length)
        path = decode_locator(locator.code, raw)
        if path is not None and "\0" not in path:
            paths.append((locator.code.decode("latin-1"), path))
    return paths


def candidates(child: str, storage: Storage, header: Header) -> Iterator[str]:
    """Paths to try, best first, without duplicates. `child` is the path of the child itself.

    Relative paths start at the directory of the child. A path with a drive letter is reduced to
    its base name.
    """
    paths = [path for _, path in locator_paths(storage, header)]
    paths += [name.replace("\\", "/") for name in header.parent_names]
    tried = [*paths, *(url_decoded(path) for path in paths)]
    tried += [os.path.basename(path) for path in tried]
    # Relative paths start at the child itself, and not at a symbolic link to it.
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
    """The path of the parent. Raises ParentMissing, or ParentMismatch for another disk."""
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
        # Windows ignores case. Without a uuid to compare, a path in another case is no proof.
        for path in (other for one in tried for other in _in_any_case(one)):
            if _uuid(path) == header.parent_uuid:
                return path
    if wrong is not None:
        raise ParentMismatch(
            f"{child}: {wrong} is not its parent: the parent has the uuid {header.parent_uuid}, "
            f"this file {_uuid(wrong) or 'none'}; set the path with `vhdtool modify --parent`"
        )
    raise ParentMissing(
        f"{child}: its parent cannot be found (tried {', '.join(tried) or 'nothing: no path'}); "
        "set the path with `vhdtool modify --parent`"
    )


def _in_any_case(path: str) -> list[str]:
    """The files that a system that ignores case would find at an absolute path."""
    paths = ["/"]
    for part in path.split("/"):
        if part:
            paths = [os.path.join(one, name) for one in paths for name in _matches(one, part)]
            del paths[_MOST_MATCHES:]
    return [one for one in paths if not os.path.isdir(one)]


def _matches(directory: str, name: str) -> list[str]:
    """The names in a directory that equal `name` except for case; a subdirectory `name` alone."""
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
