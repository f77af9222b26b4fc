"""Storage that fails, and power cuts: nothing that was acknowledged is lost."""

import errno
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.crash import survives
from tests.support.faulty_storage import FaultyStorage
from tests.support.recording_storage import RecordingStorage
from tests.support.shims import BLOCK, empty_image, plain_bytes, verdict
from tests.support.vhd_images import tapdisk2_disk
from vhdtool.errors import VhdtoolError
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.storage import MemoryStorage, StorageError
from vhdtool.vhd.units import SECTOR

SMALL = 24 * BLOCK
Plan = list[tuple[int, int, int]]
"""(first sector, sectors, fill byte) of writes."""


class Flaky:
    """Fails the operations whose numbers are in `bad`: errors that pass."""

    def __init__(self, bad: set[int], kinds: str = "write zero flush truncate read size") -> None:
        self.bad, self.kinds, self.number = bad, kinds.split(), 0
        self.on = True

    def __call__(self, kind: str, offset: int, length: int) -> int | None:
        if not self.on or kind not in self.kinds:
            return None
        self.number += 1
        return errno.ENOSPC if self.number in self.bad else None


class Model:
    """What the disk must hold; a failed write leaves its sectors unsure until they succeed."""

    def __init__(self) -> None:
        self.data = bytearray(SMALL)
        self.unsure: set[int] = set()

    def play(self, disk: DynamicDisk, plan: Plan) -> None:
        for first, count, fill in plan:
            count = min(count, SMALL // SECTOR - first)
            data = bytes([fill]) * (count * SECTOR)
            try:
                disk.write(first * SECTOR, data)
            except StorageError:
                self.unsure |= set(range(first, first + count))
            else:
                self.put(first, data)

    def put(self, first: int, data: bytes) -> None:
        self.data[first * SECTOR : first * SECTOR + len(data)] = data
        self.unsure -= set(range(first, first + len(data) // SECTOR))

    def fits(self, data: bytes) -> bool:
        return all(
            data[n * SECTOR : (n + 1) * SECTOR] == self.data[n * SECTOR : (n + 1) * SECTOR]
            for n in range(SMALL // SECTOR)
            if n not in self.unsure
        )

    def copy(self) -> "Model":
        twin = Model()
        twin.data, twin.unsure = bytearray(self.data), set(self.unsure)
        return twin


writes = st.lists(
    st.tuples(st.integers(0, SMALL // SECTOR - 1), st.integers(1, 40), st.integers(1, 255)),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("whole", [False, True])
@given(writes, st.sets(st.integers(1, 60), max_size=6), st.sampled_from([0, 512, 2048]))
@settings(max_examples=100, deadline=None)
def test_an_acknowledged_write_survives_errors_of_others(
    whole: bool, plan: Plan, bad: set[int], torn: int
) -> None:
    image, model = empty_image(size=SMALL), Model()
    fault = Flaky(bad, "write zero flush truncate")
    disk = DynamicDisk(FaultyStorage(image, fault, torn=torn), whole=whole)
    model.play(disk, plan)
    fault.on = False
    assert model.fits(disk.read(0, SMALL))
    disk.close()
    assert model.fits(plain_bytes(image))
    assert verdict(image).exit_code == 0, verdict(image).findings


@pytest.mark.parametrize("kind", [DynamicDisk, tapdisk2_disk])
def test_a_failed_bat_write_is_tried_again(kind: Callable[..., DynamicDisk]) -> None:
    """Memory must not say that the block is there: an acknowledged write would be in no BAT."""
    image = empty_image(size=SMALL)
    bat = DynamicDisk(image).header.bat_offset
    failing = True

    def fault(what: str, offset: int, length: int) -> int | None:
        return errno.EIO if failing and what == "write" and offset == bat else None

    disk = kind(FaultyStorage(image, fault))
    with pytest.raises(StorageError):
        disk.write(0, bytes([1]) * SECTOR)
    failing = False
    disk.write(0, bytes([2]) * SECTOR)
    disk.write(SECTOR, bytes([3]) * SECTOR)
    disk.close()
    assert plain_bytes(image)[: 2 * SECTOR] == bytes([2]) * SECTOR + bytes([3]) * SECTOR


def test_a_bat_write_that_failed_yet_happened_is_no_split_brain() -> None:
    image = empty_image(size=SMALL)
    bat = DynamicDisk(image).header.bat_offset
    failing = True

    def fault(what: str, offset: int, length: int) -> int | None:
        return errno.EIO if failing and what == "write" and offset == bat else None

    disk = DynamicDisk(FaultyStorage(image, fault, torn=SECTOR))
    with pytest.raises(StorageError):
        disk.write(0, bytes([1]) * SECTOR)
    failing = False
    disk.write(BLOCK, bytes([2]) * SECTOR)
    disk.write(SECTOR, bytes([3]) * SECTOR)
    disk.close()
    assert plain_bytes(image)[SECTOR : 2 * SECTOR] == bytes([3]) * SECTOR
    assert plain_bytes(image)[BLOCK : BLOCK + SECTOR] == bytes([2]) * SECTOR
    assert verdict(image).findings == []


@pytest.mark.parametrize("kind", [DynamicDisk, tapdisk2_disk])
def test_a_failed_bitmap_write_is_tried_again(kind: Callable[..., DynamicDisk]) -> None:
    image = empty_image(size=SMALL)
    entry, failing = 0, False

    def fault(what: str, offset: int, length: int) -> int | None:
        return errno.EIO if failing and what == "write" and offset == entry * SECTOR else None

    disk = kind(FaultyStorage(image, fault))
    disk.write(0, bytes([1]) * SECTOR)
    entry, failing = disk.bat[0], True
    with pytest.raises(StorageError):
        disk.write(SECTOR, bytes([2]) * SECTOR)
    failing = False
    disk.write(SECTOR, bytes([3]) * SECTOR)
    disk.close()
    assert plain_bytes(image)[SECTOR : 2 * SECTOR] == bytes([3]) * SECTOR


@given(writes, st.sets(st.integers(1, 12), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_close_that_failed_can_be_tried_again(plan: Plan, bad: set[int]) -> None:
    image, model = empty_image(size=SMALL), Model()
    fault = Flaky(bad)
    fault.on = False
    disk = DynamicDisk(FaultyStorage(image, fault))
    model.play(disk, plan)
    for _ in range(6):
        fault.on = True
        try:
            disk.finish()
        except StorageError:
            # The disk is as usable as before.
            fault.on = False
            model.play(disk, [(0, 1, 77), (300, 17, 78)])
        else:
            break
    fault.on = False
    disk.close()
    assert plain_bytes(image) == model.data
    assert verdict(image).exit_code == 0, verdict(image).findings


def test_a_full_disk_keeps_what_was_written() -> None:
    image, model = empty_image(size=SMALL), Model()
    limit = image.size() + 3 * BLOCK

    def fault(kind: str, offset: int, length: int) -> int | None:
        return errno.ENOSPC if kind in ("write", "zero") and offset + length > limit else None

    disk = DynamicDisk(FaultyStorage(image, fault))
    model.play(disk, [(block * 16, 16, block + 1) for block in range(24)])
    assert 0 < len(model.unsure) < SMALL // SECTOR
    assert model.fits(disk.read(0, SMALL))
    disk.close()
    assert model.fits(plain_bytes(image))
    assert verdict(image).exit_code == 0, verdict(image).findings


def busy_life(storage: RecordingStorage, seed: int, whole: bool) -> list[tuple[int, Model]]:
    """Writes and flushes; (changes made, what is durable since, what not) of each flush."""
    dice = random.Random(seed)
    disk = DynamicDisk(storage, whole=whole)
    now = Model()
    durable = [(0, Model())]
    for _ in range(14):
        first = dice.randrange(SMALL // SECTOR)
        count = min(dice.choice((1, 3, 16, 30)), SMALL // SECTOR - first)
        data = bytes([dice.randrange(1, 255)]) * (count * SECTOR)
        disk.write(first * SECTOR, data)
        now.put(first, data)
        durable[-1][1].unsure |= set(range(first, first + count))
        if dice.random() < 0.4:
            disk.flush()
            durable.append((sum(step.kind != "flush" for step in storage.log), now.copy()))
    disk.close()
    durable.append((sum(step.kind != "flush" for step in storage.log), now.copy()))
    return durable


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_power_cut_loses_nothing_that_was_flushed(seed: int, whole: bool) -> None:
    start = empty_image(size=SMALL)
    storage = RecordingStorage(start.copy())
    history = busy_life(storage, seed, whole)

    def judge(disk: MemoryStorage, durable: int) -> None:
        model = max((h for h in history if h[0] <= durable), key=lambda h: h[0])[1].copy()
        report = verdict(disk, "unclean")
        assert report.exit_code in (0, 3), report.findings
        assert model.fits(plain_bytes(disk))
        again = DynamicDisk(disk, unclean=True)
        model.play(again, [(SMALL // SECTOR - 1, 1, 99)])
        again.close()
        assert verdict(disk).exit_code == 0, verdict(disk).findings
        assert model.fits(plain_bytes(disk))

    assert survives(start, storage.log, judge, limit=150) > 60


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_killed_process_loses_nothing_that_was_acknowledged(seed: int, whole: bool) -> None:
    """kill -9 leaves every write that was made: each prefix of the log is a possible image."""
    start = empty_image(size=SMALL)
    storage = RecordingStorage(start.copy())
    disk = DynamicDisk(storage, whole=whole)
    dice = random.Random(seed)
    acknowledged: list[tuple[int, int, bytes]] = []
    for _ in range(12):
        first = dice.randrange(SMALL // SECTOR - 20)
        data = bytes([dice.randrange(1, 255)]) * (dice.choice((1, 3, 16)) * SECTOR)
        disk.write(first * SECTOR, data)
        acknowledged.append((len(storage.log), first, data))
    disk.close()
    for cut in range(len(storage.log) + 1):
        image, model = start.copy(), Model()
        for step in storage.log[:cut]:
            step.apply(image)
        for done, first, data in acknowledged:
            if done > cut:
                model.unsure = set(range(first, first + len(data) // SECTOR))
                break
            model.put(first, data)
        assert verdict(image, "unclean").exit_code in (0, 3)
        DynamicDisk(image, unclean=True).close()
        assert model.fits(plain_bytes(image))
        assert verdict(image).exit_code == 0, verdict(image).findings


def test_a_kill_before_the_batmap_checksum_is_repaired_at_close() -> None:
    """Nothing was allocated, so the old footer still ends the file: it looks closed."""
    start = empty_image(size=SMALL)
    disk = DynamicDisk(start)
    disk.write(0, bytes([1]) * (BLOCK - SECTOR))
    disk.close()
    storage = RecordingStorage(start.copy())
    disk = DynamicDisk(storage)
    disk.write(BLOCK - SECTOR, bytes([2]) * SECTOR)
    disk.close()
    seen = set()
    for cut in range(len(storage.log) + 1):
        image = start.copy()
        for step in storage.log[:cut]:
            step.apply(image)
        seen |= {one.code for one in verdict(image).findings}
        DynamicDisk(image, unclean=True).close()
        assert verdict(image).exit_code == 0, (cut, verdict(image).findings)
    assert "batmap-checksum" in seen


@given(writes, st.sets(st.integers(1, 80), max_size=8))
@settings(max_examples=60, deadline=None)
def test_only_our_errors_come_out_of_a_failing_storage(plan: Plan, bad: set[int]) -> None:
    try:
        disk = DynamicDisk(FaultyStorage(empty_image(size=SMALL), Flaky(bad), torn=512))
        for first, count, fill in plan:
            count = min(count, SMALL // SECTOR - first)
            disk.write(first * SECTOR, bytes([fill]) * (count * SECTOR))
            disk.write_zeroes(first * SECTOR, SECTOR)
            disk.trim(first * SECTOR, count * SECTOR)
            disk.read(first * SECTOR, count * SECTOR)
        disk.close()
    except VhdtoolError:
        pass
