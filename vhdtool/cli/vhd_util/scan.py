"""`vhd-util scan`: one line for each image of a directory or a volume group."""

import errno
import glob
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vhdtool.cli.vhd_util.conventions import Options, WrongArguments, errno_of, explain, parse
from vhdtool.cli.vhd_util.lvm_volumes import Volume, volume_name, volumes_of_group
from vhdtool.cli.vhd_util.table import COMMANDS
from vhdtool.errors import VhdtoolError
from vhdtool.image.chain.locate_parent import find_parent, locator_paths
from vhdtool.image.edit.batmap_fields import BatmapFields, read_batmap_fields
from vhdtool.image.metadata.read import Metadata, read_metadata
from vhdtool.storage import FileStorage, Storage
from vhdtool.storage.paths import persistent_path
from vhdtool.vhd.footer import DIFFERENCING
from vhdtool.vhd.header import NO_UUID, Header

_NONE = BatmapFields()


@dataclass(slots=True)
class Target:
    """An image to scan: a file, or a volume, of which the first bytes are on a device."""

    name: str
    size: int
    open: Callable[[], Storage]
    raw: bool = False


@dataclass(slots=True)
class Found:
    """The fields of a line of output."""

    name: str
    capacity: int = 0
    size: int = 0
    hidden: int = 0
    parent: str | None = None
    marks: BatmapFields = _NONE
    error: int = 0
    message: str = ""
    raw_parent: bool = False


def scan(arguments: list[str]) -> int:
    options, names = _parse(arguments)
    try:
        targets = list(_targets(options, names))
    except (VhdtoolError, OSError) as error:
        explain(error)
        print(f"scan failed: {-errno_of(error)}. Check syslog for details", file=sys.stderr)
        return errno_of(error)
    found = []
    code = 0
    while targets:
        target = targets.pop(0)
        one = _read_target(target, options)
        found.append(one)
        if "p" not in options or one.error:
            _show(one, options, 0)
        if "a" in options and one.parent is not None:
            code = _add_parent(one, found, targets, options) or code
        if one.error:
            code = one.error
            if "c" not in options:
                break
    if "p" in options:
        _trees([one for one in found if not one.error], options)
    return 0 if "c" in options else code


def _parse(arguments: list[str]) -> tuple[Options, list[str]]:
    flags, names, skip = [], [], False
    for one in arguments:
        if skip or (one.startswith("-") and one != "-"):
            flags.append(one)
            # The value of an option is the next argument if nothing follows its letter.
            skip = not skip and one[-1] in "ml" and not set(one[1:-1]) & set("ml")
        else:
            names.append(one)
    options = parse("scan", flags, COMMANDS["scan"].letters)
    if "m" not in options and not names:
        raise WrongArguments
    if "p" in options:
        options.pop("f", None)
    return options, names


def _targets(options: Options, names: list[str]) -> Iterator[Target]:
    pattern = options.get("m")
    if "l" in options:
        volumes = volumes_of_group(options["l"])
        for wanted in [*([pattern] if pattern else []), *names]:
            for one in volumes:
                if one.matches(wanted):
                    yield _volume(one)
        return
    paths = []
    if pattern is not None:
        expanded = _expand_braces(pattern)
        paths = [path for one in expanded for path in sorted(glob.glob(one))]
        if not paths:
            _require_a_directory(pattern, expanded)
    for path in [*paths, *names]:
        try:
            yield _file(path)
        except OSError as error:
            print(f"vhd={path} scan-error={-errno_of(error)} error-message='{_FAILED}'")
            if "c" not in options:
                raise


_FAILED = "failure scanning target"


def _require_a_directory(pattern: str, expanded: list[str]) -> None:
    """A pattern may match nothing only if it has wildcards, in a directory that is there."""
    for one in expanded:
        folder = os.path.dirname(one) or "."
        wild = glob.has_magic(one)
        if wild and glob.has_magic(folder):
            continue
        try:
            os.stat(os.path.join(folder, "") if wild else one)
        except OSError as error:
            number = errno_of(error)
            if wild and number != errno.ENOTDIR:
                # As glob(3), which reports the directory that it cannot read, and gives up.
                print(f"vhd={folder} scan-error={number} error-message='{_FAILED}'")
                number = errno.EIO
            print(f"vhd={pattern} scan-error={-number} error-message='{_FAILED}'")
            raise OSError(number, error.strerror, folder if wild else one) from None


def _expand_braces(pattern: str) -> list[str]:
    """Expand `{a,b}` as a shell does, the innermost pair first."""
    end = pattern.find("}")
    start = pattern.rfind("{", 0, end) if end >= 0 else -1
    if start < 0:
        return [pattern]
    head, tail = pattern[:start], pattern[end + 1 :]
    return [
        whole
        for part in pattern[start + 1 : end].split(",")
        for whole in _expand_braces(f"{head}{part}{tail}")
    ]


def _file(path: str, raw: bool = False) -> Target:
    return Target(path, os.stat(path).st_size, lambda: FileStorage(path), raw)


def _volume(one: Volume, raw: bool = False) -> Target:
    return Target(one.name, one.size, one.open, raw)


def _read_target(target: Target, options: Options) -> Found:
    name = os.path.realpath(target.name) if "p" in options and "l" not in options else target.name
    one = Found(name, target.size, target.size, hidden=1)
    if target.raw:
        return one
    try:
        storage = target.open()
        try:
            meta = read_metadata(storage)
            one.capacity, one.hidden = meta.size, meta.footer.hidden
            one.marks = read_batmap_fields(meta)
            if meta.footer.disk_type == DIFFERENCING and meta.header is not None:
                one.raw_parent = meta.header.parent_uuid == NO_UUID
                one.parent = _parent(target, storage, meta, meta.header, options)
        finally:
            storage.close()
    except VhdtoolError as error:
        explain(error)
        one.error, one.message = errno_of(error), "opening file"
    return one


def _parent(
    target: Target, storage: Storage, meta: Metadata, header: Header, options: Options
) -> str:
    if "l" in options:
        # The parent is known by name only: its volume may be inactive.
        paths = [path for _, path in locator_paths(storage, header)]
        return volume_name(header.parent_name_text or (paths[0] if paths else ""))
    if "f" in options and header.parent_name_text:
        return header.parent_name_text
    try:
        return persistent_path(find_parent(target.name, storage, header))
    except VhdtoolError:
        paths = [path for _, path in locator_paths(storage, header)]
        return paths[0] if paths else header.parent_name_text


def _add_parent(one: Found, found: list[Found], targets: list[Target], options: Options) -> int:
    assert one.parent is not None
    base = os.path.basename(one.parent)
    known = [one.name for one in found] + [target.name for target in targets]
    if any(base == os.path.basename(name) for name in known):
        return 0
    if "l" in options:
        for volume in volumes_of_group(options["l"]):
            if volume.name == one.parent:
                targets.append(_volume(volume, one.raw_parent))
                return 0
        number = errno.ENOENT
    else:
        # In fast mode only the name is known; the parent is expected beside the child.
        path = os.path.join(os.path.dirname(os.path.realpath(one.name)), one.parent)
        try:
            targets.append(_file(path, one.raw_parent))
            return 0
        except OSError as error:
            number = errno_of(error)
    print(f"vhd={one.parent} scan-error={-number} error-message='{_FAILED}'")
    return 0


def _show(one: Found, options: Options, indent: int, note: str = "") -> None:
    pad = " " * indent
    if one.error:
        print(f"{pad}vhd={one.name} scan-error={-one.error} error-message='{one.message}'")
        return
    name, parent = one.name, one.parent
    if "v" not in options:
        name = os.path.basename(name)
        parent = os.path.basename(parent) if parent is not None else None
    text = f"{pad}vhd={name} capacity={one.capacity} size={one.size} hidden={one.hidden} "
    if "M" in options:
        key = one.marks.key[1].hex() if one.marks.key is not None else "none"
        text += f"marker={one.marks.marker} keyhash={key} "
    print(f"{text}parent={parent or 'none'}{note}")


def _trees(images: list[Found], options: Options) -> None:
    """Print trees: hidden roots first, children indented below their parent."""
    images.sort(key=lambda one: one.name)
    by_name = {one.name: one for one in images}
    shown: set[str] = set()

    def tree(one: Found, depth: int) -> None:
        if one.name in shown:
            return
        shown.add(one.name)
        missing = one.parent is not None and one.parent not in by_name
        _show(one, options, depth * 3, " (not found in scan)" if missing else "")
        children = [child for child in images if child.parent == one.name]
        for child in sorted(children, key=lambda child: child.hidden):
            tree(child, depth + 1)

    roots = [one for one in images if one.parent is None or one.parent not in by_name]
    for one in sorted(roots, key=lambda root: -root.hidden):
        tree(one, 0)
    for one in images:
        tree(one, 0)
