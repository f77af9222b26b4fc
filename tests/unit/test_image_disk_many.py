"""Requests served together give what they give one by one, also when some of them fail."""

import errno
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.shims import plain_bytes, verdict
from vhdtool.errors import LeaseLost
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.disk.hooks import Hooks
from vhdtool.nbd.many import ManyOpener, ManyRequests, Piece
from vhdtool.storage import FileStorage, MemoryStorage, StorageError
from vhdtool.storage.aio import DEPTH, Arena, Many, Transfer
from vhdtool.vhd.units import SECTOR

BLOCK = 512 << 10
SIZE = 16 * BLOCK


class Rig:
    """A disk on a file that bypasses the page cache, with a queue."""

    def __init__(self, path: Path) -> None:
        self.path = path
        create_dynamic(path, SIZE, block_bytes=BLOCK)
        self.storage = FileStorage(path, writable=True, direct=True)
        if not self.storage.direct:
            pytest.skip("the temporary directory's file system has no O_DIRECT")
        self.ask: Callable[[], None] = lambda: None
        hooks = Hooks(may_write_metadata=self._asked)
        self.disk = DynamicDisk(self.storage, hooks=hooks)
        self.opener = ManyOpener()
        many = self.opener.open(self.disk)
        assert many is not None
        self.many: ManyRequests = many
        self.model = bytearray(SIZE)

    def _asked(self) -> None:
        self.ask()

    def add(self, write: bool, offset: int, data: bytes) -> None:
        view = self.many.room(len(data))
        assert view is not None
        view[:] = data if write else b"?" * len(data)
        self.many.add(Piece(write, offset, view))

    def writes(self, *requests: tuple[int, bytes]) -> list[Exception | None]:
        for offset, data in requests:
            self.add(True, offset, data)
        done = self.many.finish()
        for piece in done:
            if piece.error is None:
                self.model[piece.offset : piece.offset + len(piece.view)] = piece.view
        self.many.clear()
        return [piece.error for piece in done]

    def closed(self) -> bytes:
        """What the closed image holds; it must be consistent."""
        self.opener.close()
        self.disk.close()
        image = MemoryStorage(self.path.read_bytes())
        assert verdict(image).findings == []
        return plain_bytes(image)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path / "d.vhd")
    yield one
    one.storage.close()


@pytest.mark.parametrize("seed", range(3))
def test_together_is_as_one_by_one(rig: Rig, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(30):
        writing = dice.random() < 0.6
        taken: set[int] = set()
        for _ in range(dice.randrange(1, 20)):
            sectors = dice.choice((1, 8, 8, 8, 64, 1024, 1500))
            first = dice.randrange(SIZE // SECTOR - sectors)
            span = set(range(first, first + sectors))
            if span & taken:
                continue
            taken |= span
            write = writing and dice.random() < 0.8
            rig.add(write, first * SECTOR, dice.randbytes(sectors * SECTOR))
        expected = bytes(rig.model)
        for piece in rig.many.finish():
            assert piece.error is None
            data = bytes(piece.view)
            if piece.write:
                rig.model[piece.offset : piece.offset + len(data)] = data
            else:
                assert data == expected[piece.offset : piece.offset + len(data)]
        rig.many.clear()
    assert rig.disk.read(0, SIZE) == rig.model
    assert rig.closed() == rig.model


def test_one_bitmap_write_for_many_writes_of_a_block(rig: Rig) -> None:
    rig.writes((0, b"a" * SECTOR))
    asked = 0

    def ask() -> None:
        nonlocal asked
        asked += 1

    rig.ask = ask
    rig.writes(*((n * 4096, b"b" * 4096) for n in range(1, 20)))
    assert asked == 1
    assert rig.closed() == rig.model


def test_a_lost_lease_fails_the_writes_whose_bits_are_missing(rig: Rig) -> None:
    rig.writes((0, b"a" * 8192))

    def no() -> None:
        raise LeaseLost("stolen")

    rig.ask = no
    errors = rig.writes((0, b"b" * 4096), (8192, b"c" * 4096))
    assert [type(error) for error in errors] == [LeaseLost, LeaseLost]
    rig.ask = lambda: None
    assert rig.disk.read(8192, 4096) == bytes(4096)
    assert rig.writes((8192, b"d" * 4096)) == [None]
    rig.model[:4096] = b"b" * 4096  # data in its place needs no bit
    assert rig.closed() == rig.model


@pytest.mark.parametrize("result", [-errno.EIO, -errno.EINVAL, 512, 0])
def test_what_the_kernel_did_not_do_is_done_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, result: int
) -> None:
    rig.writes((0, b"a" * BLOCK))

    def refuses(self: Many, fd: int, transfers: list[Transfer]) -> None:
        for one in transfers:
            one.done = result

    monkeypatch.setattr(Many, "run", refuses)
    assert rig.writes((0, b"b" * 4096), (8192, b"c" * 4096)) == [None, None]
    rig.add(False, 0, bytes(4096))
    rig.add(False, 8192, bytes(4096))
    assert [bytes(piece.view[:1]) for piece in rig.many.finish()] == [b"b", b"c"]
    assert rig.closed() == rig.model


def test_a_bitmap_that_cannot_be_read_fails_its_own_requests_only(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request has its answer, or the client would wait for ever."""
    assert rig.writes((0, b"a" * SECTOR), (BLOCK, b"b" * SECTOR)) == [None, None]
    bitmap = rig.disk.bat[1] * SECTOR
    rig.disk._map._bitmaps.clear()
    pread = FileStorage.pread

    def broken(self: FileStorage, offset: int, length: int) -> bytes:
        if offset == bitmap:
            raise StorageError(self.name, "read it", errno.EIO)
        return pread(self, offset, length)

    monkeypatch.setattr(FileStorage, "pread", broken)
    for offset in (0, BLOCK, 0):
        rig.add(False, offset, bytes(SECTOR))
    done = rig.many.finish()
    assert [type(piece.error) for piece in done] == [type(None), StorageError, type(None)]
    assert bytes(done[0].view) == bytes(done[2].view) == b"a" * SECTOR


def test_room_ends_with_the_queue_and_with_the_memory(rig: Rig) -> None:
    for _ in range(DEPTH):
        assert not rig.many.full(512)
        rig.add(False, 0, bytes(512))
    assert rig.many.full(512)
    assert rig.many.room(512) is None
    rig.many.finish()
    rig.many.clear()
    assert not rig.many.full(512)
    assert rig.many.full(1 << 30)


def test_memory_and_buffered_files_are_served_one_by_one(tmp_path: Path) -> None:
    create_dynamic(tmp_path / "d.vhd", SIZE)
    with FileStorage(tmp_path / "d.vhd", writable=True) as storage:
        assert ManyOpener().open(DynamicDisk(storage)) is None
    memory = MemoryStorage((tmp_path / "d.vhd").read_bytes())
    assert ManyOpener().open(DynamicDisk(memory)) is None


def test_arena_pieces_are_aligned_and_apart() -> None:
    arena = Arena(64 << 10)
    one, two = arena.take(512), arena.take(5000)
    assert one is not None
    assert two is not None
    one[:] = b"1" * 512
    two[:] = b"2" * 5000
    assert bytes(one) == b"1" * 512
    assert arena.take(64 << 10) is None
    arena.clear()
    assert arena.has(64 << 10)
