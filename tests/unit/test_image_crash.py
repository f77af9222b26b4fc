"""Power cuts: after each prefix, reordering and torn write the image is repairable and whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.crash import survives
from tests.support.recording_storage import Operation, RecordingStorage
from tests.support.vhd_images import Picture
from vhdtool.errors import NotAVhd
from vhdtool.image.chain.layers import Layer, Reader
from vhdtool.image.chain.open import open_chain
from vhdtool.image.check.image import check
from vhdtool.image.create.differencing import ParentFacts, locator_table, snapshot, with_parent
from vhdtool.image.create.empty import create_dynamic, locators_offset, new_footer, write_empty
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.edit import coalesce as coalescing
from vhdtool.image.edit import modify as modifying
from vhdtool.image.edit import resize as resizing
from vhdtool.image.edit.repair import plan
from vhdtool.image.journal.transaction import RestoredStorage, recover
from vhdtool.image.journal.undo import apply
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage, MemoryStorage, Storage
from vhdtool.storage.base import BorrowedStorage
from vhdtool.vhd.footer import DIFFERENCING, DYNAMIC
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import SECTOR

MIB = 1 << 20
BLOCK = 512 << 10


class Recorded(RecordingStorage):
    """Stands in for a file; keeps with each operation what journal there was."""

    is_block_device = False

    def __init__(self, inner: MemoryStorage, journal: Path) -> None:
        self.journals: list[bytes | None] = []
        self._journal = journal
        super().__init__(inner, self._look)

    def _look(self, operation: Operation) -> None:
        if operation.kind != "flush":
            known = self._journal.exists()
            self.journals.append(self._journal.read_bytes() if known else None)

    def __enter__(self) -> "Recorded":
        return self


def filled(size: int = 8 * MIB, blocks: tuple[int, ...] = (0, 3, 1)) -> MemoryStorage:
    picture = Picture(size, BLOCK)
    for block in blocks:
        picture.add(block, (0, 16), (1000, 24), fill=65 + block)
    return picture.draw()


def read_all(disk: Storage, size: int | None = None) -> bytes:
    reader = Reader([Layer(disk, read_metadata(disk))])
    return reader.read(0, reader.size if size is None else size)


def left_over(disk: Storage) -> list[str]:
    """Faults that a repair must not leave; leaked space in the middle goes with a convert.

    A block whose BAT entry was not written in time stays until somebody gives it up.
    """
    apply(disk, plan(disk, drop_orphans=True).changes)
    found = check(disk).findings
    return [one.code for one in found if one.severity != "info" and one.code != "leaked-block"]


def record(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    start: MemoryStorage,
    work: Callable[[Path], object],
) -> Recorded:
    """Runs `work` on a file, and what it writes on a recording of the same bytes."""
    path = tmp_path / "a.vhd"
    if not path.exists():
        path.write_bytes(start.getvalue())
    inner = start.copy()
    recorded = Recorded(inner, tmp_path / "a.vhd.journal")

    @contextmanager
    def writable(name: object, *_: object) -> Iterator[Recorded]:
        yield recorded
        # Who reads it back looks at the file.
        path.write_bytes(inner.getvalue())

    monkeypatch.setattr(module, "writable_image", writable)
    work(path)
    return recorded


def judged(
    recorded: Recorded,
    start: MemoryStorage,
    tmp_path: Path,
    before: bytes,
    limit: int = 120,
    after: bytes | None = None,
    orphans: bool = True,
) -> int:
    """Each crash: the check loses nothing, and a repair brings a consistent image.

    `after`: what the disk may show instead of `before`, all of it or nothing. Without `orphans`
    no crash may leave what looks like a block whose entry was lost.
    """
    shown = (before,) if after is None else (before, after)
    journal = tmp_path / "crashed.journal"
    size = len(before)

    def judge(disk: MemoryStorage, durable: int) -> None:
        left = recorded.journals[durable] if durable < len(recorded.journals) else None
        journal.unlink(missing_ok=True)
        if left is not None:
            journal.write_bytes(left)
        seen: Storage = disk if left is None else RestoredStorage(disk, str(journal))
        report = check(seen, "unclean")
        assert report.exit_code in (0, 3), report.findings
        assert orphans or not report.orphans, report.findings
        assert read_all(seen, size) in shown
        recover(disk, str(journal))
        apply(disk, plan(disk).changes)
        assert left_over(disk) == []
        assert read_all(disk, size) in shown

    return survives(start, recorded.log, judge, limit)


@pytest.mark.parametrize("size", [9 * MIB, 700 * MIB, 5 * MIB])
def test_resize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    start = filled()
    before = read_all(start)
    recorded = record(tmp_path, monkeypatch, resizing, start, lambda p: resizing.resize(p, size))
    assert check(recorded).findings == []
    assert judged(recorded, start, tmp_path, before[:size], orphans=False) > 10


def test_shrink_that_moves_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Picture(8 * MIB, BLOCK)
    picture.add(12, (0, 8), fill=0)
    picture.add(0, fill=65)
    picture.add(11, fill=0)
    picture.add(2, (7, 9), fill=66)
    start = picture.draw()
    before = read_all(start, 4 * MIB)
    recorded = record(tmp_path, monkeypatch, resizing, start, lambda p: resizing.resize(p, 4 * MIB))
    assert check(recorded).findings == []
    assert judged(recorded, start, tmp_path, before, orphans=False) > 10


def test_modify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = filled()
    before = read_all(start)
    recorded = record(
        tmp_path, monkeypatch, modifying, start, lambda p: modifying.modify_footer(p, hidden=True)
    )
    assert judged(recorded, start, tmp_path, before) > 2


@pytest.mark.parametrize("deep", [False, True])
def test_new_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deep: bool) -> None:
    create_dynamic(tmp_path / "p.vhd", 8 * MIB)
    snapshot(tmp_path / "p.vhd", tmp_path / "a.vhd")
    start = MemoryStorage((tmp_path / "a.vhd").read_bytes())
    folder = tmp_path / ("x" * 200) / ("y" * 200) if deep else tmp_path / "x"
    folder.mkdir(parents=True)
    (tmp_path / "p.vhd").rename(folder / "p.vhd")
    recorded = record(
        tmp_path,
        monkeypatch,
        modifying,
        start,
        lambda p: modifying.modify_parent(p, folder / "p.vhd"),
    )
    assert check(recorded).findings == []
    assert judged(recorded, start, tmp_path, bytes(8 * MIB)) > 3


def test_throwing_all_data_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = filled()
    recorded = record(tmp_path, monkeypatch, modifying, start, modifying.discard_blocks)
    before = read_all(start)
    assert read_all(recorded) == bytes(len(before))
    assert judged(recorded, start, tmp_path, before, after=bytes(len(before))) > 20


def test_coalesce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child shows stays the same at every moment, and so does the parent's rest."""
    start = filled()
    parent, child = tmp_path / "a.vhd", tmp_path / "child.vhd"
    parent.write_bytes(start.getvalue())
    snapshot(parent, child)
    below = open_chain(parent)
    disk = DynamicDisk(FileStorage(child, writable=True), parent=below)
    disk.write(3 * BLOCK + 512, b"new" * 3000)
    disk.write(9 * BLOCK, b"kid" * 3000)
    disk.close()
    below.close()
    recorded = record(
        tmp_path, monkeypatch, coalescing, start, lambda p: coalescing.coalesce(child)
    )
    top = MemoryStorage(child.read_bytes())
    layer = Layer(top, read_metadata(top))

    def shown(disk: Storage) -> bytes:
        reader = Reader([layer, Layer(disk, read_metadata(disk))])
        return reader.read(0, reader.size)

    before = shown(start)
    assert read_all(recorded) == before

    def judge(disk: MemoryStorage, durable: int) -> None:
        assert check(disk, "unclean").exit_code in (0, 3)
        assert shown(disk) == before
        apply(disk, plan(disk).changes)
        assert check(disk).exit_code in (0, 3)
        assert shown(disk) == before
        assert left_over(disk) == []
        assert shown(disk) == before

    assert survives(start, recorded.log, judge, 120) > 10


@pytest.mark.parametrize("whole", [False, True])
def test_write_path(whole: bool) -> None:
    """Flushed writes are there after every crash; others are there, partly or not at all.

    A block that was allocated since the last flush may have lost its end with the file's length
    (a file system may commit the one without the other); nothing else may be damaged.
    """
    start = filled()
    recorded = RecordingStorage(start.copy())
    disk = DynamicDisk(BorrowedStorage(recorded), whole=whole)
    model = bytearray(read_all(start))
    # (operations that were durable, content then, writes that were acknowledged by the flush)
    flushed = [(0, bytes(model), 0)]
    writes = [
        (0, 700),
        (5 * BLOCK - 512, 1024),
        (3 * BLOCK + 40960, 4096),
        (12 * BLOCK, 3 * 4096),
        (12 * BLOCK + 8192, 8192),
        (7 * BLOCK + 1, 9),
    ]
    for number, (offset, length) in enumerate(writes, 1):
        model[offset : offset + length] = bytes([number]) * length
        disk.write(offset, bytes([number]) * length)
        if number % 2 == 0:
            disk.flush()
            done = sum(1 for step in recorded.log if step.kind != "flush")
            flushed.append((done, bytes(model), number))
    disk.close()

    def judge(crashed: MemoryStorage, durable: int) -> None:
        _, known, count = [one for one in flushed if one[0] <= durable][-1]
        open_blocks = {offset // BLOCK for offset, _ in writes[count:]}
        open_blocks |= {(offset + length - 1) // BLOCK for offset, length in writes[count:]}
        worst = [one for one in check(crashed, "unclean").findings if one.severity == "corrupt"]
        assert worst == []
        reader = Reader([Layer(crashed, read_metadata(crashed))])
        for block in set(range(16)) - open_blocks:
            place = block * BLOCK
            assert reader.read(place, BLOCK) == known[place : place + BLOCK]
        apply(crashed, plan(crashed).changes)
        assert left_over(crashed) == []

    assert survives(start, recorded.log, judge, 400) > 50


@pytest.mark.parametrize("child", [False, True])
def test_creation_leaves_no_vhd_or_a_whole_one(child: bool) -> None:
    """Also on a device, where no name hides what is not ready.

    Only a cut between the first footer and the header leaves a VHD without its header there.
    """
    size, parent = (
        8 * MIB,
        ParentFacts("/images/base.vhd", UUID(int=7), 8 * MIB, 5, ("/images/base.vhd",)),
    )
    header = Header(size // BLOCK, BLOCK)
    raw = b""
    if child:
        table, raw = locator_table("/images/a.vhd", parent.path, locators_offset(header, True), 512)
        header = with_parent(header, parent, table)
    footer = new_footer(size, DIFFERENCING if child else DYNAMIC)
    recorded = RecordingStorage(MemoryStorage())
    write_empty(recorded, footer, header, True, raw)
    assert check(recorded).findings == []
    seen: list[object] = []

    def judge(disk: MemoryStorage, durable: int) -> None:
        try:
            report = check(disk, "unclean")
        except NotAVhd:
            seen.append(None)
            return
        seen.append(report.exit_code)
        if not Header.unpack(disk.pread(SECTOR, 1024).ljust(1024, b"\0")).valid:
            assert report.exit_code == 2
            return
        assert report.exit_code in (0, 3), report.findings
        apply(disk, plan(disk).changes)
        assert left_over(disk) == []
        assert read_metadata(disk).header == Header.unpack(header.pack())

    survives(MemoryStorage(), recorded.log, judge)
    assert None in seen
    assert 0 in seen
