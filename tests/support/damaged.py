"""A corpus of damaged images: one for each code that the check can find, by that code.

Every image is called `image.vhd`, is made in a folder of its own, and has blocks of 512 KiB. What
else the folder needs (a parent, a journal) is in it. `found_codes` reads from the sources which
codes there are, so that a code without an image is noticed.
"""

import ast
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.support.vhd_images import UUID_ONE, Picture
from vhdtool.image.check import image as check_module
from vhdtool.image.create.differencing import ParentFacts, create_child, snapshot
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.disk.base import ZeroParent
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.journal.transaction import change_journal_path
from vhdtool.image.journal.undo import Change, write_journal
from vhdtool.image.metadata.ends import read_ends
from vhdtool.storage import FileStorage
from vhdtool.vhd.batmap import BatmapHeader
from vhdtool.vhd.bits import set_bits
from vhdtool.vhd.footer import FIXED, Footer
from vhdtool.vhd.geometry import Geometry
from vhdtool.vhd.header import SIZE as HEADER_SIZE
from vhdtool.vhd.header import Header, Locator
from vhdtool.vhd.units import KILLED, SECTOR, vhd_time

MIB = 1 << 20
BLOCK = 512 << 10
SIZE = 4 * MIB
KID = b"kid!" * 768
"""What `child_of` writes into block 1: whole sectors."""
Build = Callable[[Path], None]
Bytes = bytearray


def sound(batmap: bool = True) -> Picture:
    """Blocks out of order, full and sparse, and a free one between."""
    picture = Picture(SIZE, BLOCK, batmap)
    picture.add(3, fill=0x43)
    picture.add(0, (0, 8), (1016, 8), fill=0x40)
    picture.add(5, (5, 1), fill=0x45)
    return picture


# -- images that are drawn part by part


def _drawn(change: Callable[[Picture], object], footer: bool = True, batmap: bool = True) -> Build:
    """The sound image, but for what `change` does to its parts."""

    def build(folder: Path) -> None:
        picture = sound(batmap)
        change(picture)
        (folder / "image.vhd").write_bytes(picture.draw(footer).getvalue())

    return build


def _footers(**fields: object) -> Build:
    def change(picture: Picture) -> None:
        picture.footer = picture.copy = replace(picture.footer, **fields)  # type: ignore[arg-type]

    return _drawn(change)


def _copy(change: Callable[[Footer], Footer | None]) -> Build:
    def edit(picture: Picture) -> None:
        picture.copy = change(picture.footer)

    return _drawn(edit)


def _claims_full(block: int) -> Build:
    return _drawn(lambda picture: set_bits(picture.batmap_bits, block, 1))


def _claims_less(picture: Picture) -> None:
    picture.batmap_bits[:] = bytes(len(picture.batmap_bits))


def _gap(sectors: int) -> Build:
    return _drawn(lambda picture: picture.add(7, (0, 8), gap=sectors))


def _tail(picture: Picture) -> None:
    picture.end += 64


def _beyond(picture: Picture) -> None:
    """A table with room for more, and a block there that no guest can see."""
    picture.header = replace(picture.header, max_entries=12)
    picture.add(10, (0, 8), fill=0x50)


# -- images of which bytes are changed


def _patched(edit: Callable[[Bytes], Bytes | None], footer: bool = True) -> Build:
    """The sound image's bytes, changed in place or replaced."""

    def build(folder: Path) -> None:
        raw = Bytes(sound().draw(footer).getvalue())
        (folder / "image.vhd").write_bytes(edit(raw) or raw)

    return build


def _flip(*places: int) -> Callable[[Bytes], None]:
    """Each byte another one; places below 0 count from the end."""

    def edit(raw: Bytes) -> None:
        for place in places:
            raw[place] ^= 0x5A

    return edit


def _header(**fields: object) -> Build:
    def edit(raw: Bytes) -> None:
        place = slice(SECTOR, SECTOR + HEADER_SIZE)
        raw[place] = replace(Header.unpack(bytes(raw[place])), **fields).pack()  # type: ignore[arg-type]

    return _patched(edit)


def _entry(block: int, sector: int) -> Build:
    def edit(raw: Bytes) -> None:
        at = sound().header.bat_offset + 4 * block
        raw[at : at + 4] = sector.to_bytes(4, "big")

    return _patched(edit)


_OVERLAP = _entry(6, sound().blocks[3] + 1000)


def _batmap_header(**fields: int) -> Build:
    def edit(raw: Bytes) -> None:
        at = sound().header.bat_end
        raw[at : at + SECTOR] = replace(
            BatmapHeader.unpack(bytes(raw[at : at + SECTOR])),
            **fields,  # type: ignore[arg-type]
        ).pack()

    return _patched(edit)


def _batmap_damaged(raw: Bytes) -> None:
    """Bits that say too much, under a checksum that does not fit."""
    raw[sound().header.bat_end + SECTOR] = 0xFF


def _no_batmap(raw: Bytes) -> None:
    at = sound().header.bat_end
    raw[at : at + SECTOR] = bytes(SECTOR)


def _block_over_batmap(folder: Path) -> None:
    """As QEMU's driver places the first block of an image that has none."""
    picture = Picture(SIZE, BLOCK)
    picture.has_batmap = False
    picture.add(2, (0, 8))
    picture.blocks[2] = picture.header.bat_end // SECTOR
    picture.end = picture.layout.end_sector(picture.blocks[2])
    (folder / "image.vhd").write_bytes(picture.draw().getvalue())


def _cut(sectors: int, footer: bool) -> Callable[[Bytes], Bytes]:
    """The last block loses its end; `footer`: a footer ends the file all the same."""

    def edit(raw: Bytes) -> Bytes:
        end = len(raw) - SECTOR
        return raw[: end - sectors * SECTOR] + (raw[end:] if footer else b"")

    return edit


def _last_block(*runs: tuple[int, int]) -> Build:
    """The last block has these sectors, and is cut off behind the tenth; no footer."""

    def build(folder: Path) -> None:
        picture = sound()
        picture.add(7, *runs, fill=0x47)
        raw = picture.draw(footer=False).getvalue()
        (folder / "image.vhd").write_bytes(raw[: len(raw) - (BLOCK // SECTOR - 10) * SECTOR])

    return build


def _fixed(data: int, *, gap: int = 0, size: int = SIZE) -> Build:
    def build(folder: Path) -> None:
        footer = Footer(
            size, FIXED, Geometry.for_size(size), UUID_ONE, 1, original_size=size
        ).pack()
        (folder / "image.vhd").write_bytes(b"F" * data + b"G" * gap + footer)

    return build


# -- images with parents


def _child(damage: Callable[[Path], object] = lambda folder: None) -> Build:
    """A child with two blocks over `base.vhd`; then the damage."""

    def build(folder: Path) -> None:
        base, image = folder / "base.vhd", folder / "image.vhd"
        base.write_bytes(sound().draw().getvalue())
        os.utime(base, (1_600_000_000, 1_600_000_000))
        snapshot(base, image, block_bytes=BLOCK)
        write_block(image, 1, b"child" * 1000)
        damage(folder)

    return build


def write_block(image: Path, block: int, data: bytes) -> None:
    """Writes into a block of a child whose parent shows nothing there."""
    disk = DynamicDisk(FileStorage(image, writable=True), parent=ZeroParent())
    disk.write(block * BLOCK, data)
    disk.close()


def child_of(image: Path, name: str = "kid.vhd") -> Path:
    """A child with data over an image that may be too damaged to be a parent."""
    kid = image.with_name(name)
    stamp = vhd_time(os.stat(image).st_mtime)
    create_child(kid, ParentFacts(str(image), UUID_ONE, SIZE, stamp, (str(image),)), SIZE, BLOCK)
    write_block(kid, 1, KID)
    return kid


def _locators(**fields: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with FileStorage(folder / "image.vhd", writable=True) as storage:
            header = Header.unpack(storage.pread(SECTOR, HEADER_SIZE))
            first = replace(header.locators[0], **fields)  # type: ignore[arg-type]
            assert isinstance(first, Locator)
            header = replace(header, locators=(first, *header.locators[1:]))
            storage.pwrite(SECTOR, header.pack())

    return damage


def _another_parent(folder: Path) -> None:
    (folder / "base.vhd").unlink()
    create_dynamic(folder / "base.vhd", SIZE, BLOCK)


def _loop(folder: Path) -> None:
    """The base becomes a child of its own child."""
    image, base = folder / "image.vhd", folder / "base.vhd"
    uuid = Footer.unpack(base.read_bytes()[:SECTOR]).uuid
    own = Footer.unpack(image.read_bytes()[:SECTOR]).uuid
    facts = ParentFacts(str(image), own, SIZE, 0, (str(image),))
    create_child(folder / "new.vhd", facts, SIZE, BLOCK, uuid=uuid)
    (folder / "new.vhd").replace(base)


def _deep(folder: Path) -> None:
    for number in range(31):
        below = folder / f"{number - 1}.vhd" if number else folder / "base.vhd"
        if not number:
            below.write_bytes(sound().draw().getvalue())
        name = "image.vhd" if number == 30 else f"{number}.vhd"
        snapshot(below, folder / name, limit=0, skip_empty=False, block_bytes=BLOCK)


def _interrupted(folder: Path) -> None:
    image = folder / "image.vhd"
    image.write_bytes(sound().draw().getvalue())
    with FileStorage(image, writable=True) as storage:
        write_journal(
            change_journal_path(image), storage, [Change("x", SECTOR, bytes(HEADER_SIZE))]
        )
        storage.pwrite(SECTOR, bytes(HEADER_SIZE))


def _foreign(folder: Path) -> None:
    """A backup was put in the place of an image whose change had been interrupted."""
    _interrupted(folder)
    image = folder / "image.vhd"
    with FileStorage(image, writable=True) as storage:
        changes = [Change("x", SECTOR, bytes(HEADER_SIZE)), Change("y", 0, bytes(SECTOR))]
        Path(change_journal_path(image)).unlink()
        write_journal(change_journal_path(image), storage, changes)
    image.write_bytes(sound().draw().getvalue())
    with FileStorage(image, writable=True) as storage:
        end = read_ends(storage).footer
        assert end is not None
        footer = replace(end, timestamp=7).pack()
        storage.pwrite(0, footer)
        storage.pwrite(storage.size() - SECTOR, footer)


_QEMU = {"creator": b"qemu", "creator_version": 0x00050003}
_ODD = {"current_size": SIZE - 3, "original_size": SIZE - 3, "geometry": Geometry.for_size(SIZE)}

CORPUS: dict[str, Build] = {
    # footers
    "resize-pending": _footers(cookie=b"v_poison"),
    "footer-lost": _patched(_flip(100, -400)),
    "footers-stale": _patched(_flip(26, 26 - SECTOR)),
    "footer-checksum": _patched(_flip(-400)),
    "footer-killed": _patched(lambda raw: raw + KILLED, footer=False),
    "footer-missing": _patched(lambda raw: None, footer=False),
    "footer-copy-missing": _copy(lambda footer: None),
    "footer-copy-checksum": _patched(_flip(100)),
    "footers-differ": _copy(lambda footer: replace(footer, hidden=1)),
    "disk-type": _footers(disk_type=9),
    "footer-version": _footers(version=0x00020000),
    "features": _footers(features=0),
    "size-zero": _footers(current_size=0),
    "size-odd": _footers(**_ODD),
    "size-large": _footers(current_size=2041 << 30, original_size=2041 << 30),
    "flags": _footers(saved=7),
    "geometry": _footers(geometry=Geometry(1, 2, 3)),
    "size-disagrees": _footers(current_size=SIZE - SECTOR, original_size=SIZE, **_QEMU),
    # header and BAT
    "header-place": _footers(data_offset=1000),
    "header-cookie": _header(cookie=b"cxsparsX"),
    "header-proved": _patched(_flip(SECTOR)),
    "header-checksum": _patched(_flip(SECTOR + 900)),
    "header-version": _header(version=0x00020000),
    "header-next": _header(next_offset=0),
    "block-size": _header(block_bytes=BLOCK + 1),
    "bat-too-large": _header(max_entries=1 << 24),
    "bat-place": _header(bat_offset=1 << 40),
    "bat-too-small": _header(max_entries=2),
    "bat-zeroed": _entry(3, 0),
    "bat-past-end": _entry(3, 1 << 28),
    "bat-wraps": _entry(3, 0xFFFFFFF0),
    # where the blocks are
    "block-overlap": _OVERLAP,
    "block-on-metadata": _entry(3, 3),
    "block-beyond-size": _drawn(_beyond),
    "metadata-overlap": _batmap_header(offset=SECTOR),
    "leaked-block": _gap(3 * BLOCK // SECTOR),
    "leaked-tail": _drawn(_tail),
    "orphan-block": _drawn(lambda picture: picture.lose(0)),
    "fixed-too-short": _fixed(SIZE // 2),
    # what is in the blocks
    "data-past-end": _last_block((0, 8), (100, 8)),
    "block-short": _last_block((0, 8)),
    "batmap-overstates": _claims_full(0),
    "batmap-unallocated": _claims_full(2),
    "batmap-missing": _patched(_no_batmap),
    "batmap-overwritten": _block_over_batmap,
    "batmap-place": _batmap_header(offset=1 << 40),
    "batmap-checksum": _patched(_batmap_damaged),
    "batmap-version": _batmap_header(version=0x00020000),
    "batmap-behind": _drawn(_claims_less),
    # parents
    "locator": _child(_locators(offset=1 << 40)),
    "locator-code": _child(_locators(code=b"Oops")),
    "parent-missing": _child(lambda folder: (folder / "base.vhd").unlink()),
    "parent-mismatch": _child(_another_parent),
    "parent-loop": _child(_loop),
    "parent-time": _child(lambda folder: os.utime(folder / "base.vhd", (1, 1 << 30))),
    "chain-too-deep": _deep,
    "journal-pending": _interrupted,
    "journal-foreign": _foreign,
}
"""Code -> what makes an image of which the check says it."""

MORE: dict[str, Build] = {
    "cut-but-closed": _patched(_cut(1000, footer=True)),
    "cut-within-the-bitmap": _patched(_cut(1025, footer=False)),
    "fixed-with-a-tail": _fixed(SIZE, gap=4096),
    "fixed-without-footer": _patched(lambda raw: Bytes(b"F" * SIZE)),
    "damaged-parent": _child(
        lambda folder: shutil.copy(_made(folder, "block-overlap"), folder / "base.vhd")
    ),
    "damaged-fixed-parent": _child(
        lambda folder: shutil.copy(_made(folder, "fixed-too-short"), folder / "base.vhd")
    ),
}
"""Damage that shares its code with another image of the corpus, or that no check can see."""


def _made(folder: Path, code: str) -> Path:
    aside = folder / "aside"
    aside.mkdir()
    CORPUS[code](aside)
    return aside / "image.vhd"


def found_codes() -> set[str]:
    """Every code that the sources of the check give to a finding."""
    check = Path(check_module.__file__).parent
    codes = set()
    for path in [*check.glob("*.py"), check.parent / "chain" / "check.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            codes |= _codes_of(node)
    return codes


_GIVES = {"corrupt", "unclean", "info", "unclosed", "add", "Finding", "_leak"}


def _codes_of(node: ast.AST) -> set[str]:
    """The code of a call that makes a finding, and what is assigned to a variable `code`."""
    if isinstance(node, ast.Assign):
        pairs = [(node.targets[0], node.value)]
        if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
        return {
            text
            for target, value in pairs
            if isinstance(target, ast.Name) and target.id == "code"
            for text in _texts(value)
        }
    if isinstance(node, ast.Call) and node.args:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        first = node.args[0]
        if name in _GIVES and isinstance(first, ast.Constant | ast.IfExp):
            return _texts(first)
    return set()


def _texts(value: ast.expr) -> set[str]:
    if isinstance(value, ast.IfExp):
        return _texts(value.body) | _texts(value.orelse)
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return {value.value}
    return set()
