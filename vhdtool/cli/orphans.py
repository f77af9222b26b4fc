"""Blocks that no BAT entry names: into files, and a word of warning where a command drops them."""

import json
import os
from contextlib import suppress

from vhdtool.image.newfile import new_file
from vhdtool.image.salvage import Stray
from vhdtool.storage import StorageError

INDEX = "orphans.json"


def export_orphans(stray: list[Stray], folder: str) -> None:
    """A file for each orphan, and one that says where each was. Without orphans nothing is made.

    Raises StorageError, or ImageExists when the directory has such files already: nothing is left
    of what was written then.
    """
    if not stray:
        return
    known = os.path.isdir(folder)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise StorageError(folder, "make the directory", error.errno or 0) from None
    made: list[str] = []
    try:
        table = []
        for one in stray:
            name = _name(one)
            with new_file(os.path.join(folder, name)) as target:
                one.copy(target)
            made.append(name)
            table.append({"file": name, **one.as_dict()})
        with new_file(os.path.join(folder, INDEX)) as target:
            target.pwrite(0, json.dumps(table, indent=2).encode() + b"\n")
    except BaseException:
        with suppress(OSError):
            for name in made:
                os.unlink(os.path.join(folder, name))
            if not known:
                os.rmdir(folder)
        raise


def _name(one: Stray) -> str:
    """Where it was found, and which block it may be. Parents may have orphans at one place."""
    image = os.path.basename(one.storage.name)
    guess = f"-maybe-block-{one.orphan.guest}" if one.orphan.guest is not None else ""
    return f"{image}-sector-{one.orphan.entry}{guess}.raw"
