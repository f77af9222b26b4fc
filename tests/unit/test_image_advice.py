"""Each `help:` line of the check, tried on the image that it is printed for."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.damaged import BLOCK, CORPUS, SIZE, sound
from vhdtool.cli.main import run
from vhdtool.image.chain.check import ChainReport, check_chain
from vhdtool.image.check import advice as words
from vhdtool.image.check.advice import advice_for
from vhdtool.image.journal.transaction import change_journal_path
from vhdtool.vhd.header import SIZE as HEADER_SIZE
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR


def severe(report: ChainReport) -> set[str]:
    found = [*report.links, *(one for each in report.reports for one in each.findings)]
    return {one.code for one in found if one.severity != "info"}


def right_parent(folder: Path) -> Path:
    """An image with the uuid of the parent that the child was made for."""
    header = Header.unpack((folder / "image.vhd").read_bytes()[SECTOR : SECTOR + HEADER_SIZE])
    picture = sound()
    picture.footer = picture.copy = replace(picture.footer, uuid=header.parent_uuid)
    path = folder / "found" / "right.vhd"
    path.parent.mkdir()
    path.write_bytes(picture.draw().getvalue())
    return path


def mended(folder: Path, code: str) -> bool:
    return code not in severe(check_chain(folder / "image.vhd"))


def repair(folder: Path, code: str) -> bool:
    return run(["repair", "--yes", str(folder / "image.vhd")]) in (0, 3) and mended(folder, code)


def salvage(folder: Path, code: str) -> bool:
    image, out = str(folder / "image.vhd"), folder / "new.raw"
    copied = run(["read", "--salvage", image, "-o", str(out)])
    converted = run(["convert", "--salvage", image, str(folder / "new.vhd")])
    read = copied in (0, 2) and converted in (0, 2) and out.stat().st_size > 0
    return read and run(["damage", image]) in (0, 2)


def salvage_all(folder: Path, code: str) -> bool:
    image, out = str(folder / "image.vhd"), folder / "lost"
    words = ["read", "--salvage", image, "--orphans", str(out), "-o", str(folder / "raw")]
    return run(words) == 2 and any(out.glob("*.raw")) and run(["damage", image]) == 2


def orphans(folder: Path, code: str) -> bool:
    image, out = str(folder / "image.vhd"), folder / "lost"
    copied = run(["read", "--salvage", image, "--orphans", str(out), "-o", str(folder / "raw")])
    given_up = run(["repair", image, "--drop-orphans", "--yes"])
    return copied == 2 and any(out.glob("*.raw")) and given_up in (0, 3) and mended(folder, code)


def relink(folder: Path, code: str) -> bool:
    parent = right_parent(folder)
    done = run(["modify", str(folder / "image.vhd"), "--parent", str(parent)])
    return done == 0 and mended(folder, code)


def resize(folder: Path, code: str) -> bool:
    size = SIZE if code == "size-odd" else 12 * BLOCK
    return run(["resize", str(folder / "image.vhd"), str(size)]) == 0 and mended(folder, code)


def coalesce(folder: Path, code: str) -> bool:
    """Layer by layer: the image's data is in its parent then, which takes its place."""
    image = folder / "image.vhd"
    for number in (29, 28):
        if run(["coalesce", str(image)]):
            return False
        shutil.move(folder / f"{number}.vhd", image)
    return mended(folder, code)


def compact(folder: Path, code: str) -> bool:
    done = run(["convert", str(folder / "image.vhd"), str(folder / "new.vhd")])
    return done == 0 and check_chain(folder / "new.vhd").exit_code == 0


def rebuild_header(folder: Path, code: str) -> bool:
    words = ["repair", str(folder / "image.vhd"), "--rebuild-header"]
    return run(words) == 3 and run([*words, "--yes"]) in (0, 3) and mended(folder, code)


def without_journal(folder: Path, code: str) -> bool:
    Path(change_journal_path(folder / "image.vhd")).unlink()
    return mended(folder, code)


HELPS: dict[str, Callable[[Path, str], bool]] = {
    words.REPAIR: repair,
    words.SALVAGE: salvage,
    words.ORPHANS: orphans,
    words.SALVAGE_ALL: salvage_all,
    words.RELINK: relink,
    words.RESIZE: resize,
    words.COALESCE: coalesce,
    words.COMPACT: compact,
    words.REBUILD_HEADER: rebuild_header,
    words.JOURNAL: without_journal,
}


@pytest.mark.parametrize("code", CORPUS)
def test_the_advice_for_each_finding_helps(code: str, tmp_path: Path) -> None:
    CORPUS[code](tmp_path)
    image = str(tmp_path / "image.vhd")
    report = check_chain(image)
    if code not in severe(report):
        return
    told = advice_for(code)
    assert report.advice()
    if told.format(image=image) in report.advice():
        assert HELPS[told](tmp_path, code), told
    # Whatever is printed first is right for the image as a whole.
    again = tmp_path / "again"
    again.mkdir()
    CORPUS[code](again)
    image = str(again / "image.vhd")
    first = check_chain(image).advice()[0]
    named = next(one for one in HELPS if one.format(image=image) == first)
    assert HELPS[named](again, code), named
