"""The whole program as one file that python3 runs: `vhdtool.pyz`, for a rescue shell."""

import importlib.util
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from vhdtool.errors import UsageError
from vhdtool.lab.hosts.bundle import write_archive

_START = b"#!/usr/bin/env python3\n"
_MAIN = b'''"""vhdtool, or vhd-util where the file is called so."""
import sys

if sys.version_info < (3, 11):
    sys.exit("vhdtool: needs Python 3.11 or later, this is %d.%d" % sys.version_info[:2])

if sys.argv[0].rpartition("/")[2].startswith("vhd-util"):
    from vhdtool.cli.vhd_util.main import main
else:
    from vhdtool.cli.main import main
main()
'''
_SUFFIXES = (".py", ".j2")


def write_program(out: Path) -> bool:
    """Write the program and click, with its license, as one file; False when it was there.

    Commands that need other packages (`report`, for example) name them. Raises UsageError where
    the sources are not files, because the program runs from such a file itself.
    """
    content = [("__main__.py", _MAIN)]
    for name in ("vhdtool", "click"):
        folder = _folder(name)
        content += [
            (f"{name}/{path.relative_to(folder)}", path.read_bytes())
            for path in folder.rglob("*")
            if path.suffix in _SUFFIXES
        ]
    content += _license()
    return write_archive(out, sorted(content), _START)


def _folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    folder = Path(found.origin).parent if found is not None and found.origin else Path()
    if not folder.is_dir() or not folder.name:
        raise UsageError(f"{name}: its sources are not here; use vhdtool as pip installs it")
    return folder


def _license() -> list[tuple[str, bytes]]:
    try:
        names = files("click") or []
    except PackageNotFoundError:
        return []
    return [
        ("licenses/click.txt", Path(str(one.locate())).read_bytes())
        for one in names
        if one.name.startswith("LICENSE")
    ][:1]
