"""Write by write: what each personality does to the file, pinned against docs and facts."""

from collections.abc import Callable

import pytest

from tests.support.faulty_storage import FaultyStorage
from tests.support.recording_storage import Operation, RecordingStorage
from tests.support.shims import BLOCK, SIZE, empty_image, plain_bytes, verdict
from tests.support.vhd_images import tapdisk2_disk
from vhdtool.errors import LeaseLost, SplitBrain
from vhdtool.image.disk.base import Hooks
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.disk.preallocation import FIRST_AHEAD
from vhdtool.image.metadata.read import read_block_tables
from vhdtool.storage import MemoryStorage, StorageError
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.header import Header
from vhdtool.vhd.units import KILLED, SECTOR, UNUSED

LAYOUT = BlockLayout(BLOCK)
BAT = Header(1).bat_offset
Step = tuple[str, int, int]


def steps(storage: RecordingStorage) -> list[Step]:
    """(kind, sector, sectors) of what was done, and forgets it."""
    done = [(s.kind, s.offset // SECTOR, s.length // SECTOR) for s in storage.log]
    storage.log.clear()
    return done


def places(image: MemoryStorage) -> tuple[int, int, int]:
    """(sector where data ends in an empty image, entry of its first block, sector behind it)."""
    end = image.size() // SECTOR - 1
    entry = LAYOUT.next_entry(end)
    return end, entry, LAYOUT.end_sector(entry)


def data_of(entry: int, sector: int = 0) -> int:
    return LAYOUT.data_sector(entry) + sector


def bat_sector(block: int) -> int:
    return BAT // SECTOR + block * 4 // SECTOR


def batmap_writes(disk: DynamicDisk) -> list[Step]:
    head = read_block_tables(disk.storage).batmap
    assert head is not None
    return [
        ("write", head.offset // SECTOR, head.sectors),
        ("write", disk.header.bat_end // SECTOR, 1),
    ]


# guarded


def test_guarded_a_new_block_is_durable_before_its_bat_entry() -> None:
    storage = RecordingStorage(image := empty_image())
    end, entry, behind = places(image)
    room = behind - end + (FIRST_AHEAD - 1) * LAYOUT.stride
    disk = DynamicDisk(storage)
    disk.write(200 * BLOCK + 2 * SECTOR, bytes([1]) * SECTOR)
    assert steps(storage) == [
        ("zero", end, room),  # takes the footer away
        ("flush", 0, 0),
        ("write", bat_sector(200), 1),
        ("write", data_of(entry, 2), 1),
        ("write", entry, 1),
    ]
    disk.write(0, bytes([1]) * SECTOR)
    entry = LAYOUT.next_entry(behind)
    assert steps(storage) == [
        ("write", bat_sector(0), 1),
        ("write", data_of(entry), 1),
        ("write", entry, 1),
    ]


def test_guarded_a_whole_block_needs_no_write_but_its_bat_entry() -> None:
    storage = RecordingStorage(image := empty_image())
    end, entry, behind = places(image)
    room = behind - end + (FIRST_AHEAD - 1) * LAYOUT.stride
    disk = DynamicDisk(storage, whole=True)
    disk.write(2 * SECTOR, bytes([1]) * SECTOR)
    assert steps(storage) == [
        ("zero", end, room),
        *(("write", entry + n * LAYOUT.stride, 1) for n in range(FIRST_AHEAD)),
        ("flush", 0, 0),
        ("write", bat_sector(0), 1),
        ("write", data_of(entry, 2), 1),
    ]
    disk.write(5 * SECTOR, bytes([2]) * SECTOR)
    assert steps(storage) == [("write", data_of(entry, 5), 1)]
    disk.allocate(1)
    disk.allocate(1)
    assert steps(storage) == [("write", bat_sector(1), 1)]
    assert disk.bat[1] == LAYOUT.next_entry(behind)
    assert disk.read(BLOCK, BLOCK) == bytes(BLOCK)


def whole_disk(storage: RecordingStorage) -> DynamicDisk:
    disk = DynamicDisk(storage, whole=True)
    disk.allocate(9)  # the first room
    steps(storage)
    return disk


def test_guarded_blocks_asked_for_in_order_share_a_bat_write() -> None:
    """1, 2, 4, 4, ... at a time; never behind the BAT sector, nor over a block that has a place."""
    storage = RecordingStorage(image := empty_image())
    end = places(image)[0]
    disk = whole_disk(storage)
    for block in range(20, 40):
        disk.allocate(block)
    writes = [step for step in steps(storage) if step == ("write", bat_sector(0), 1)]
    assert len(writes) == 7  # 20, 21-22, 23-26, 27-30, ...
    assert sum(entry != UNUSED for entry in disk.bat) == 1 + 23
    entries = [disk.bat[block] for block in range(20, 43)]
    assert entries == [LAYOUT.next_entry(end) + n * LAYOUT.stride for n in range(1, 24)]
    for block in (123, 124, 126):
        disk.allocate(block)
    assert [entry == UNUSED for entry in disk.bat[122:130]] == [True, *[False] * 5, True, True]
    disk.allocate(63)
    disk.allocate(61)
    disk.allocate(62)
    assert disk.read(0, SIZE) == bytes(SIZE)
    disk.close()
    assert verdict(storage).findings == []


def test_guarded_random_writes_allocate_only_their_blocks() -> None:
    storage = RecordingStorage(empty_image())
    disk = whole_disk(storage)
    asked = [50, 3, 77, 20, 60]
    for block in asked:
        disk.allocate(block)
    assert [n for n, entry in enumerate(disk.bat) if entry != UNUSED] == sorted([9, *asked])


def test_guarded_the_last_partial_block_waits_for_a_write() -> None:
    storage = RecordingStorage(empty_image(size=6 * BLOCK + SECTOR))
    disk = DynamicDisk(storage, whole=True)
    for block in range(6):
        disk.allocate(block)
    assert disk.bat[6] == UNUSED


def test_guarded_a_row_ends_where_there_is_no_room() -> None:
    image = empty_image()
    limit = image.size() + 6 * LAYOUT.stride * SECTOR

    def fault(kind: str, offset: int, length: int) -> int | None:
        return 28 if kind == "zero" and offset + length > limit else None

    disk = DynamicDisk(FaultyStorage(image, fault), whole=True)
    for block in range(5):
        disk.allocate(block)
    placed = sum(entry != UNUSED for entry in disk.bat)
    assert 5 <= placed <= 6

    def three_more() -> None:
        for block in range(5, 8):
            disk.allocate(block)

    with pytest.raises(StorageError, match="No space left"):
        three_more()
    disk.write(0, bytes([1]) * SECTOR)
    disk.close()
    assert verdict(image).exit_code == 0
    assert plain_bytes(image)[:SECTOR] == bytes([1]) * SECTOR


def test_guarded_room_is_made_for_more_and_more_blocks() -> None:
    storage = RecordingStorage(empty_image())
    disk = DynamicDisk(storage)
    flushes = []
    for block in range(200):
        disk.write(block * BLOCK, bytes([1]) * SECTOR)
        if ("flush", 0, 0) in steps(storage):
            flushes.append(block)
    assert flushes == [0, 4, 12, 28, 60, 124, 188]


def test_guarded_preallocation_of_one_block_on_a_full_disk() -> None:
    image = empty_image()
    limit = image.size() + LAYOUT.stride * SECTOR

    def fault(kind: str, offset: int, length: int) -> int | None:
        return 27 if kind == "zero" and offset + length > limit else None

    disk = DynamicDisk(FaultyStorage(image, fault))
    disk.write(0, bytes([1]) * SECTOR)
    with pytest.raises(StorageError, match="File too large"):
        disk.write(BLOCK, bytes([1]) * SECTOR)
    disk.close()
    assert DynamicDisk(image).read(0, SECTOR) == bytes([1]) * SECTOR


def test_guarded_crash_leftovers_are_zeroed_before_reuse() -> None:
    image = empty_image()
    DynamicDisk(image).write(0, bytes([1]) * SECTOR)
    image.pwrite(image.size(), b"left over" * 512)
    storage = RecordingStorage(image)
    DynamicDisk(storage, unclean=True).write(BLOCK, bytes([2]) * SECTOR)
    assert [kind for kind, _, _ in steps(storage)][:2] == ["zero", "flush"]


def test_guarded_data_is_written_before_its_bits() -> None:
    storage = RecordingStorage(empty_image())
    disk = DynamicDisk(storage)
    disk.write(0, bytes([1]) * SECTOR)
    entry = disk.bat[0]
    steps(storage)
    disk.write(SECTOR, bytes([2]) * (2 * SECTOR))
    assert steps(storage) == [("write", data_of(entry, 1), 2), ("write", entry, 1)]
    disk.write(0, bytes([3]) * (3 * SECTOR))
    assert steps(storage) == [("write", data_of(entry), 3)]


def test_guarded_close_reads_the_bat_then_batmap_then_footer() -> None:
    storage = RecordingStorage(empty_image())
    disk = DynamicDisk(storage)
    disk.write(0, bytes([1]) * BLOCK)
    behind = LAYOUT.end_sector(disk.bat[0])
    steps(storage)
    reads = storage.reads
    assert disk.close() is True
    assert storage.reads > reads
    assert steps(storage) == [
        ("flush", 0, 0),
        *batmap_writes(disk),
        ("flush", 0, 0),
        ("write", behind, 1),
        ("truncate", behind + 1, 0),
        ("flush", 0, 0),
    ]
    assert disk.truncated_to == (behind + 1) * SECTOR == storage.size()


def test_guarded_close_writes_no_batmap_that_did_not_change() -> None:
    storage = RecordingStorage(empty_image())
    disk = DynamicDisk(storage)
    disk.write(0, bytes([1]) * SECTOR)
    behind = LAYOUT.end_sector(disk.bat[0])
    steps(storage)
    disk.close()
    assert [step for step in steps(storage) if step[0] == "write"] == [("write", behind, 1)]


def test_guarded_opening_writes_nothing() -> None:
    storage = RecordingStorage(empty_image())
    DynamicDisk(storage)
    DynamicDisk(storage, unclean=True)
    assert steps(storage) == []


class Device(RecordingStorage):
    """A block device: it keeps its length."""

    is_block_device = True


def on_device(spare: int) -> Device:
    """An empty image with its footer at the end of a device with `spare` sectors more."""
    image = empty_image()
    footer = image.pread(image.size() - SECTOR, SECTOR)
    image.zero(image.size() - SECTOR, SECTOR)
    image.truncate(image.size() + spare * SECTOR)
    image.pwrite(image.size() - SECTOR, footer)
    return Device(image)


def test_guarded_on_a_device_the_footer_stays_at_its_end() -> None:
    device = on_device(1000)
    size = device.size()
    disk = DynamicDisk(device)
    disk.write(0, bytes([1]) * SECTOR)
    assert [kind for kind, _, _ in steps(device)][:2] == ["zero", "flush"]
    disk.close()
    assert [s for s in steps(device) if s[0] != "flush"] == [("write", size // SECTOR - 1, 1)]
    assert device.size() == size
    assert DynamicDisk(device).read(0, SECTOR) == bytes([1]) * SECTOR


def test_guarded_on_a_device_a_block_never_lies_over_the_footer() -> None:
    device = on_device(3 * LAYOUT.stride)
    disk = DynamicDisk(device)
    for block in range(2):
        disk.write(block * BLOCK, bytes([1]) * BLOCK)
    with pytest.raises(StorageError, match="No space left"):
        disk.write(2 * BLOCK, bytes([1]) * (2 * BLOCK))
    disk.close()
    DynamicDisk(device)


# faithful


def test_faithful_a_new_block_on_a_local_file() -> None:
    """Zeroed gap, bitmap and data; BAT and the guest's data at once; the bitmap last. No fsync."""
    storage = RecordingStorage(image := empty_image())
    end, entry, behind = places(image)
    tapdisk2_disk(storage).write(2 * SECTOR, bytes([1]) * SECTOR)
    assert steps(storage) == [
        ("zero", end, behind - end),
        ("write", data_of(entry, 2), 1),
        ("write", bat_sector(0), 1),
        ("write", entry, 1),
    ]


@pytest.mark.parametrize("where", ["nfs", "device"])
def test_faithful_a_new_block_on_nfs_or_a_device(where: str) -> None:
    """Only gap and bitmap are zeroed: the last block may be physically short."""
    storage = RecordingStorage(empty_image()) if where == "nfs" else on_device(1000)
    disk = tapdisk2_disk(storage, preallocate=where != "nfs")
    end = read_block_tables(storage).end
    entry = LAYOUT.next_entry(end)
    disk.write(2 * SECTOR, bytes([1]) * SECTOR)
    assert steps(storage) == [
        ("zero", end, entry + 1 - end),
        ("write", data_of(entry, 2), 1),
        ("write", bat_sector(0), 1),
        ("write", entry, 1),
    ]
    if where == "nfs":
        assert storage.size() == data_of(entry, 3) * SECTOR
    else:
        disk.close()
        assert steps(storage)[0] == ("write", storage.size() // SECTOR - 1, 1)


def test_faithful_close_trusts_its_memory() -> None:
    """Footer at its own idea of the end, truncate, copy, batmap; then one fsync."""
    storage = RecordingStorage(empty_image())
    disk = tapdisk2_disk(storage)
    disk.write(0, bytes([1]) * BLOCK)
    behind = LAYOUT.end_sector(disk.bat[0])
    storage.pwrite(behind * SECTOR, bytes([9]) * BLOCK)  # another host's new block
    steps(storage)
    assert disk.close() is True
    assert steps(storage) == [
        ("write", behind, 1),
        ("truncate", behind + 1, 0),
        ("write", 0, 1),
        *batmap_writes(disk),
        ("flush", 0, 0),
    ]
    assert storage.size() == (behind + 1) * SECTOR


def test_faithful_close_writes_nothing_when_nothing_was_written() -> None:
    storage = RecordingStorage(empty_image())
    disk = tapdisk2_disk(storage)
    disk.read(0, BLOCK)
    assert disk.close() is False
    assert steps(storage) == []


def test_faithful_unpause_kills_the_last_sector_whatever_it_is() -> None:
    image = empty_image()
    tapdisk2_disk(image).write(0, bytes([1]) * BLOCK)
    storage = RecordingStorage(image)
    second = tapdisk2_disk(storage, kill_footer=True)
    assert steps(storage) == [("write", image.size() // SECTOR - 1, 1)]
    # No footer stood there: it was the guest's.
    assert second.read(BLOCK - SECTOR, SECTOR) == KILLED
    assert second.close() is True


def test_faithful_asks_nobody() -> None:
    def no() -> None:
        raise LeaseLost("asked")

    disk = tapdisk2_disk(empty_image(), kill_footer=True, hooks=Hooks(may_write_metadata=no))
    disk.write(0, bytes([1]) * BLOCK)
    disk.write(BLOCK, bytes([1]) * SECTOR)
    assert disk.close() is True


# the rules, for every metadata write


def a_life(disk: DynamicDisk) -> None:
    """Allocations, bits, and a close with batmap, footer and truncate."""
    disk.write(0, bytes([1]) * SECTOR)
    disk.write(2 * SECTOR, bytes([1]) * SECTOR)
    disk.write(130 * BLOCK, bytes([2]) * BLOCK)
    disk.close()


class Journal:
    """Questions and changes of one life, in order; says no from question `yes` + 1 on."""

    def __init__(self, yes: int = 1 << 30) -> None:
        self.image = empty_image()
        self.storage = RecordingStorage(self.image, self._seen)
        self.log: list[Operation | str] = []
        self.yes = yes

    def _seen(self, operation: Operation) -> None:
        if operation.kind != "flush":
            self.log.append(operation)

    def ask(self) -> None:
        self.log.append("ask")
        if self.log.count("ask") > self.yes:
            raise LeaseLost("stolen")

    def live(self, whole: bool) -> None:
        hooks = Hooks(may_write_metadata=self.ask)
        a_life(DynamicDisk(self.storage, hooks=hooks, whole=whole))


def test_every_metadata_write_asks_first() -> None:
    journal = Journal()
    journal.live(whole=False)
    blocks = {entry for entry in DynamicDisk(journal.image).bat if entry != UNUSED}
    asked, kinds = False, set()
    for step in journal.log:
        if isinstance(step, str):
            asked = True
            continue
        sector = step.offset // SECTOR
        footer = sector + 1 == journal.image.size() // SECTOR
        inside = any(data_of(entry) <= sector < LAYOUT.end_sector(entry) for entry in blocks)
        if step.kind == "write" and inside and not footer:
            continue  # the guest's data
        assert asked, f"{step.kind} of sector {sector} was not asked for"
        kinds.add((step.kind, sector))
        asked = False
    # One room, two bitmaps, two BAT sectors, the batmap and its header, footer, truncate.
    assert len(kinds) == 9


def test_the_bitmaps_of_a_room_are_asked_for_together() -> None:
    """They go to the disk at once, so one question right before them does."""
    journal = Journal()
    journal.live(whole=True)
    first = [step if isinstance(step, str) else step.kind for step in journal.log[:9]]
    assert first == ["ask", "zero", "ask", *["write"] * FIRST_AHEAD, "ask", "write"]


QUESTIONS = {False: 11, True: 9}


@pytest.mark.parametrize("whole", [False, True])
def test_the_number_of_questions_is_the_tests_below(whole: bool) -> None:
    journal = Journal()
    journal.live(whole)
    assert journal.log.count("ask") == QUESTIONS[whole]


@pytest.mark.parametrize(
    ("whole", "yes"), [(whole, yes) for whole, count in QUESTIONS.items() for yes in range(count)]
)
def test_a_lease_that_is_lost_at_any_question_ends_all_writing(whole: bool, yes: int) -> None:
    journal = Journal(yes)
    with pytest.raises(LeaseLost):
        journal.live(whole)
    assert journal.log[-1] == "ask"
    assert journal.log.count("ask") == yes + 1


def same_bat_sector(image: MemoryStorage) -> None:
    DynamicDisk(image, unclean=True).write(7 * BLOCK, bytes([9]) * SECTOR)


def other_bat_sector(image: MemoryStorage) -> None:
    DynamicDisk(image, unclean=True).write(200 * BLOCK, bytes([9]) * SECTOR)


def closed(image: MemoryStorage) -> None:
    DynamicDisk(image, unclean=True).close()


Other = Callable[[MemoryStorage], None]


@pytest.mark.parametrize("other", [same_bat_sector, other_bat_sector])
def test_a_first_allocation_notices_another_writer(other: Other) -> None:
    storage = RecordingStorage(image := empty_image())
    disk = DynamicDisk(storage)
    other(image)
    before = image.getvalue()
    with pytest.raises(SplitBrain, match="another host"):
        disk.write(4 * BLOCK, bytes([2]) * SECTOR)
    assert image.getvalue() == before
    assert steps(storage) == []


@pytest.mark.parametrize("other", [same_bat_sector, other_bat_sector, closed])
def test_a_later_allocation_notices_another_writer(other: Other) -> None:
    storage = RecordingStorage(image := empty_image())
    disk = DynamicDisk(storage)
    disk.write(3 * BLOCK, bytes([1]) * SECTOR)
    steps(storage)
    other(image)
    before = image.getvalue()
    with pytest.raises(SplitBrain, match="another host"):
        disk.write(4 * BLOCK, bytes([2]) * SECTOR)
    assert image.getvalue() == before
    assert steps(storage) == []


@pytest.mark.parametrize("other", [same_bat_sector, other_bat_sector, closed])
def test_a_close_notices_another_writer(other: Other) -> None:
    image = empty_image()
    disk = DynamicDisk(image)
    disk.write(3 * BLOCK, bytes([1]) * SECTOR)
    other(image)
    before = image.getvalue()
    with pytest.raises(SplitBrain, match="another host"):
        disk.close()
    assert image.getvalue() == before
