"""Each command on each damaged image of the corpus: it refuses and changes nothing, or is right.

A command is right when it exits with 0, what the guest sees afterwards is what could be trusted
before, and the check finds nothing worse than before. It is wrong when it exits with 0 although
data is lost. The second axis, HOLDERS, is who else has the image open meanwhile.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import vhdtool
from tests.support.damaged import BLOCK, CORPUS, KID, MIB, MORE, SIZE, child_of, write_block
from vhdtool.cli.main import run as vhdtool_run
from vhdtool.cli.vhd_util.main import run as vhd_util_run
from vhdtool.errors import VhdtoolError
from vhdtool.image.chain.check import check_chain
from vhdtool.image.check.admission import TOLERATED_BY_READERS
from vhdtool.image.check.advice import REPAIRABLE_DAMAGE
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.disk.open import open_disk
from vhdtool.image.journal.transaction import change_journal_path, recover
from vhdtool.image.journal.undo import ForeignJournal
from vhdtool.image.salvage.open import open_salvage
from vhdtool.storage import FileStorage

DAMAGED = {**CORPUS, **MORE}
LOOKED_AT = 10 * MIB
"""Bytes of a disk that are compared."""
Shown = Callable[[bytes], bytes]
"""What the guest sees afterwards, of what it saw before."""


def same(before: bytes) -> bytes:
    return before


@dataclass(frozen=True)
class Command:
    """One thing to do with `image`, a path. `run` returns an exit code."""

    name: str
    run: Callable[[Path], int]
    shows: Shown | None = same
    """What the disk at `result` shows afterwards; None: no matter."""
    result: Callable[[Path], Path] = field(default=lambda image: image)
    ignores: bool = False
    """It makes a new disk in the place of the image, whatever that was."""
    mends: frozenset[str] = frozenset()
    """Codes of damage that it takes away, without a loss."""
    fields: bool = False
    """It reads no guest data through the chain: damage of parents does not concern it."""


def tool(*words: object) -> Callable[[Path], int]:
    """A command line of vhdtool; IMAGE, NEW, KID, SOUND and OUT are paths beside the image."""
    return lambda image: vhdtool_run(_words(image, words))


def util(*words: object) -> Callable[[Path], int]:
    """The same of vhd-util."""
    return lambda image: vhd_util_run(_words(image, words))


def _words(image: Path, words: tuple[object, ...]) -> list[str]:
    names = {"IMAGE": image, "BASE": image.with_name("base.vhd"), "JOURNAL": beside(image, "j")}
    for name in ("NEW.vhd", "NEW.raw", "SOUND.vhd"):
        names[name] = beside(image, name)
    if "SOUND.vhd" in words:
        create_dynamic(names["SOUND.vhd"], SIZE, BLOCK)
        write_block(names["SOUND.vhd"], 1, b"sound" * 100)
    if "KID" in words:
        names["KID"] = child_of(image)
    return [str(names.get(str(word), word)) for word in words]


def beside(image: Path, name: str) -> Path:
    return image.with_name(name.lower())


def new(image: Path) -> Path:
    return beside(image, "NEW.vhd")


def raw(image: Path) -> Path:
    return beside(image, "NEW.raw")


def with_block(number: int, data: bytes) -> Shown:
    def shown(before: bytes) -> bytes:
        at = number * BLOCK
        return before[:at] + data + before[at + len(data) :]

    return shown


def sized(size: int) -> Shown:
    return lambda before: before[:size].ljust(size, b"\0")


def only(data: bytes) -> Shown:
    return lambda before: with_block(1, data)(bytes(SIZE))


def written_by_library(image: Path) -> int:
    with vhdtool.open(image, writable=True) as disk:
        disk.write(2 * BLOCK, b"library" * 100)
    return 0


def snapshot_by_library(image: Path) -> int:
    vhdtool.snapshot(image, new(image))
    return 0


def served(image: Path) -> int:
    storage = FileStorage(image, writable=True)
    try:
        disk = open_disk(storage, str(image), whole=True)
    except BaseException:
        storage.close()
        raise
    disk.write(2 * BLOCK, b"server" * 100)
    disk.finish()
    disk.abandon()
    return 0


WRITERS = [
    Command("resize-larger", tool("resize", "IMAGE", 8 * MIB), sized(8 * MIB)),
    Command("resize-smaller", tool("resize", "IMAGE", 3 * MIB), sized(3 * MIB)),
    Command("resize-far", tool("resize", "IMAGE", 70 * MIB), sized(LOOKED_AT)),
    Command("coalesce-into-it", tool("coalesce", "KID"), with_block(1, KID)),
    Command(
        "coalesce-from-it", tool("coalesce", "IMAGE"), result=lambda i: i.with_name("base.vhd")
    ),
    Command("fill", tool("fill", "IMAGE")),
    Command("modify-hidden", tool("modify", "IMAGE", "--hidden"), fields=True),
    Command("modify-time", tool("modify", "IMAGE", "--timestamp", 1_700_000_000), fields=True),
    Command(
        "modify-parent",
        tool("modify", "IMAGE", "--parent", "BASE"),
        fields=True,
    ),
    Command("repair", tool("repair", "IMAGE", "--yes"), fields=True, mends=REPAIRABLE_DAMAGE),
    Command(
        "create", tool("create", "IMAGE", SIZE, "--force"), lambda _: bytes(SIZE), ignores=True
    ),
    Command(
        "snapshot-over-it",
        tool("snapshot", "SOUND.vhd", "IMAGE", "--force"),
        only(b"sound" * 100),
        ignores=True,
    ),
    Command(
        "convert-over-it",
        tool("convert", "SOUND.vhd", "IMAGE", "--force"),
        only(b"sound" * 100),
        ignores=True,
    ),
    Command("convert-in-place", tool("convert", "IMAGE", "IMAGE", "--force")),
    Command("library-write", written_by_library, with_block(2, b"library" * 100)),
    Command("serve", served, with_block(2, b"server" * 100)),
    Command(
        "util-create", util("create", "-n", "IMAGE", "-s", 4), lambda _: bytes(SIZE), ignores=True
    ),
    Command(
        "util-snapshot-over-it",
        util("snapshot", "-n", "IMAGE", "-p", "SOUND.vhd"),
        only(b"sound" * 100),
        ignores=True,
    ),
    Command("util-hidden", util("set", "-n", "IMAGE", "-f", "hidden", "-v", 1), fields=True),
    Command("util-marker", util("set", "-n", "IMAGE", "-f", "marker", "-v", 7), fields=True),
    Command(
        "util-repair",
        util("repair", "-n", "IMAGE"),
        fields=True,
        mends=REPAIRABLE_DAMAGE,
    ),
    Command("util-resize", util("resize", "-n", "IMAGE", "-s", 8, "-j", "JOURNAL"), sized(8 * MIB)),
    Command("util-resize-fast", util("resize", "-n", "IMAGE", "-s", 4, "-f"), sized(4 * MIB)),
    Command("util-fill", util("fill", "-n", "IMAGE")),
    Command("util-coalesce", util("coalesce", "-n", "KID"), with_block(1, KID)),
    Command(
        "util-parent",
        util("modify", "-n", "IMAGE", "-p", "BASE"),
        None,
        fields=True,
    ),
    Command("util-file-size", util("modify", "-n", "IMAGE", "-s", 16 * MIB), fields=True),
    Command("util-zero", util("modify", "-n", "IMAGE", "-z"), None, fields=True),
    Command("util-revert", util("revert", "-n", "IMAGE", "-j", "JOURNAL")),
    Command("util-key", util("key", "-s", "-n", "IMAGE", "-H", "ab" * 32), fields=True),
]
READERS = [
    Command("snapshot", tool("snapshot", "IMAGE", "NEW.vhd"), result=new),
    Command("create-child", tool("create", "--parent", "IMAGE", "NEW.vhd"), result=new),
    Command("library-snapshot", snapshot_by_library, result=new),
    Command(
        "util-snapshot", util("snapshot", "-n", "NEW.vhd", "-p", "IMAGE"), result=new, fields=True
    ),
    Command("convert", tool("convert", "IMAGE", "NEW.vhd"), result=new),
    Command("convert-fixed", tool("convert", "--fixed", "IMAGE", "NEW.vhd"), result=new),
    Command("convert-raw", tool("convert", "IMAGE", "NEW.raw"), result=raw),
    Command("read", tool("read", "IMAGE", "-o", "NEW.raw"), result=raw),
]

Hold = Callable[[Path], AbstractContextManager[object]]
HOLDERS: dict[str, Hold] = {"alone": lambda image: nullcontext()}
"""Who has the image open while the command runs. Under a holder the same must be true."""


@pytest.fixture(params=HOLDERS)
def hold(request: pytest.FixtureRequest) -> Hold:
    return HOLDERS[request.param]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Before]":
    """Damaged images that need no other file, as they are before any command."""
    found = {}
    for name, build in DAMAGED.items():
        folder = tmp_path_factory.mktemp(name)
        build(folder)
        if [path.name for path in folder.iterdir()] == ["image.vhd"]:
            found[name] = looked_at(folder / "image.vhd")
    return found


@dataclass(frozen=True)
class Before:
    """An image as it was: its files, what could be trusted of it, and what the check said."""

    files: dict[str, bytes]
    shown: bytes
    lost: bool
    codes: frozenset[str]
    """Of what is corrupt, in the image and its chain."""
    own: frozenset[str]
    """Of what is corrupt in the image's own file."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def looked_at(image: Path) -> Before:
    files = files_of(image.parent)
    shown, lost = b"", True
    try:
        with open_salvage(image) as salvage:
            lost = bool(salvage.lost() or salvage.notes)
            shown = salvage.read(0, min(salvage.size, LOOKED_AT))
    except VhdtoolError:
        pass
    try:
        report = check_chain(image)
    except VhdtoolError:
        return Before(files, shown, True, frozenset({"no-vhd"}), frozenset({"no-vhd"}))
    own, *parents = (
        frozenset(one.code for one in each.findings if one.severity == "corrupt")
        for each in report.reports
    )
    links = frozenset(one.code for one in report.links if one.severity == "corrupt")
    return Before(files, shown, lost, own.union(links, *parents), own)


def before_the_change(image: Path, folder: Path) -> Before:
    """As `looked_at`, but for an interrupted change: what a repair has to bring back."""
    if not Path(change_journal_path(image)).exists():
        return looked_at(image)
    aside = folder / "aside"
    shutil.copytree(image.parent, aside)
    with FileStorage(aside / image.name, writable=True) as storage:
        try:
            recover(storage, change_journal_path(aside / image.name))
        except ForeignJournal:
            # The image is what it should be, and a repair has nothing to bring back.
            Path(change_journal_path(aside / image.name)).unlink()
    restored = looked_at(aside / image.name)
    return Before(files_of(image.parent), restored.shown, False, frozenset(), frozenset())


def unharmed(before: Before, folder: Path) -> None:
    """Every file is as it was, and there is no new one but what the test itself made."""
    after = files_of(folder)
    assert set(after) - set(before.files) <= {"sound.vhd", "kid.vhd"}
    assert [name for name, data in before.files.items() if after.get(name) != data] == []


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("command", WRITERS + READERS, ids=lambda command: command.name)
def test_a_command_refuses_or_is_right(
    command: Command, name: str, hold: Hold, corpus: "dict[str, Before]", tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    image = folder / "image.vhd"
    if name in corpus:
        before = corpus[name]
        image.write_bytes(before.files["image.vhd"])
    else:
        DAMAGED[name](folder)
        before = before_the_change(image, tmp_path)
    with hold(image):
        try:
            code = command.run(image)
        except VhdtoolError:
            code = 1
    if code:
        unharmed(before, folder)
        return
    result = command.result(image)
    mended = before.codes <= command.mends
    if before.lost and not command.ignores and not mended:
        assert command.fields, "done, although data is lost"
        assert not before.own, "done, although the image itself is corrupt"
        assert before.codes <= looked_at(result).codes | {"parent-mismatch"}
        return
    expected = command.shows(before.shown) if command.shows is not None else None
    if result.suffix == ".raw":
        assert expected is not None
        assert result.read_bytes().rstrip(b"\0") == expected.rstrip(b"\0")
        assert result.stat().st_size in (len(expected), -(-len(expected) // 512) * 512)
        return
    after = looked_at(result)
    assert after.codes <= TOLERATED_BY_READERS & before.codes
    assert not after.lost
    if expected is not None:
        assert after.shown[: len(expected)] == expected
        assert not any(after.shown[len(expected) :])
