"""Where the parent of a differencing disk is: locators first, the name in the header last."""

import os
import re
from collections.abc import Iterator
from uuid import UUID

from vhdtool.errors import CorruptImage, VhdtoolError
from vhdtool.image.checks.locators import LARGEST
from vhdtool.image.metadata import read_ends
from vhdtool.storage import FileStorage, Storage
from vhdtool.storage.names import lasting_path
from vhdtool.vhd.header import NO_UUID, Header
from vhdtool.vhd.locators import decode_locator, url_decoded

_DRIVE = re.compile(r"^[A-Za-z]:")


class ParentMissing(CorruptImage):
    """The parent is nowhere where the child says it is."""


class ParentMismatch(CorruptImage):
    """A file is where the parent should be, but it is another disk."""


def locator_paths(storage: Storage, header: Header) -> list[tuple[str, str]]:
    """(code, path) of each locator that can be read, in the header's order."""
    found = []
    for locator in header.locators:
        if not locator.used or not 0 < locator.length <= LARGEST:
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
    name = header.parent_name_text.replace("\\", "/")
    if name and "\0" not in name:
        paths.append(name)
    tried = [*paths, *(url_decoded(path) for path in paths)]
    tried += [os.path.basename(path) for path in tried]
    # A symbolic link to the child lives elsewhere than the child that its paths start from.
    directory = os.path.dirname(lasting_path(child))
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
    if wrong is not None:
        raise ParentMismatch(
            f"{child}: {wrong} is not its parent: that has the uuid {header.parent_uuid}, "
            f"this {_uuid(wrong) or 'none'}"
        )
    raise ParentMissing(
        f"{child}: its parent cannot be found (tried {', '.join(tried) or 'nothing: no path'}); "
        "set its place with `vhdtool modify --parent`"
    )


def _uuid(path: str) -> UUID | None:
    try:
        with FileStorage(path) as storage:
            best = read_ends(storage).best
            return best.uuid if best is not None else None
    except VhdtoolError:
        return None
