"""An open dynamic disk is a bytearray that survives closing, and others read it the same."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.shims import BLOCK, SIZE, empty_image, plain_bytes, verdict
from tests.support.vhd_images import Picture, tapdisk2_disk
from vhdtool.errors import CorruptImage, NotAVhd, UncleanImage, UnsupportedImage, VhdtoolError
from vhdtool.image.disk import block_map as blockmap
from vhdtool.image.disk.base import Parent
from vhdtool.image.disk.block_map import BlockMap
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.disk.tapdisk2 import Tapdisk2
from vhdtool.image.metadata.read import read_block_tables
from vhdtool.ranges import DataRange
from vhdtool.storage import MemoryStorage, StorageError
from vhdtool.vhd.batmap import batmap_checksum
from vhdtool.vhd.bits import pack_flags, unpack_flags
from vhdtool.vhd.footer import DIFFERENCING, FIXED
from vhdtool.vhd.units import KILLED, SECTOR, UNUSED

SMALL = 24 * BLOCK
Kind = Callable[..., DynamicDisk]


def whole(storage: MemoryStorage, **options: Any) -> DynamicDisk:
    """As the shim opens it: a new block is full from the start."""
    return DynamicDisk(storage, whole=True, **options)


KINDS: list[Kind] = [DynamicDisk, whole, tapdisk2_disk]
Plan = list[tuple[str, int, int, int]]

places = st.integers(0, SMALL - 1)
lengths = st.one_of(st.integers(1, 700), st.integers(1, 3 * BLOCK), st.just(BLOCK))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), places, lengths, st.integers(1, 255)),
        st.tuples(st.just("sectors"), places, lengths, st.integers(1, 255)),
        st.tuples(st.just("zero"), places, lengths, st.just(0)),
        st.tuples(st.just("trim"), places, lengths, st.just(0)),
        st.tuples(st.sampled_from(["reopen", "finish"]), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=25,
)


class Below(Parent):
    """A parent full of a pattern."""

    def read(self, offset: int, length: int) -> bytes:
        return bytes((at // SECTOR) % 251 + 1 for at in range(offset, offset + length))

    def data_ranges(self, start: int, end: int) -> Iterator[DataRange]:
        yield end - start, True


def trimmed(
    before: bytes, after: bytes, offset: int, length: int, disk: DynamicDisk, parent: Below | None
) -> bool:
    """Whole sectors of the range are zeros now, or show the parent as before; all else is as it
    was."""
    first, end = -(-offset // SECTOR) * SECTOR, (offset + length) // SECTOR * SECTOR
    if isinstance(disk.policy, Tapdisk2) or end <= first:
        return after == before
    within = range(first, end, SECTOR)
    below = parent.read(0, len(before)) if parent is not None else bytes(len(before))
    good = all(
        not any(after[at : at + SECTOR])
        or after[at : at + SECTOR] == before[at : at + SECTOR] == below[at : at + SECTOR]
        for at in within
    )
    return good and after[:first] == before[:first] and after[end:] == before[end:]


def play(
    storage: MemoryStorage, kind: Kind, model: bytearray, plan: Plan, parent: Below | None = None
) -> None:
    disk = kind(storage, parent=parent)
    for what, offset, length, fill in plan:
        if what == "reopen":
            disk.close()
            assert verdict(storage).exit_code == 0
            disk = kind(storage, parent=parent)
            continue
        if what == "finish":
            disk.finish()
            continue
        if what == "sectors":
            offset -= offset % SECTOR
            length = max(SECTOR, length - length % SECTOR)
        length = min(length, len(model) - offset)
        if what == "trim":
            before = bytes(model)
            disk.trim(offset, length)
            model[:] = disk.read(0, len(model))
            assert trimmed(before, bytes(model), offset, length, disk, parent)
            continue
        data = bytes([fill]) * length
        if what == "zero":
            disk.write_zeroes(offset, length)
        else:
            disk.write(offset, memoryview(data))
        model[offset : offset + length] = data
        around, end = max(0, offset - 600), min(offset + length + 600, len(model))
        assert disk.read(around, end - around) == model[around:end]
    assert disk.read(0, len(model)) == model
    disk.close()


@pytest.mark.parametrize("kind", KINDS)
@given(plan=steps, batmap=st.booleans(), kept=st.sampled_from([1, 2, 4096]))
@settings(max_examples=60, deadline=None)
def test_a_disk_is_a_bytearray(kind: Kind, plan: Plan, batmap: bool, kept: int) -> None:
    image, model = empty_image(batmap, SMALL), bytearray(SMALL)
    before, blockmap.CACHED_BITMAPS = blockmap.CACHED_BITMAPS, kept
    try:
        play(image, kind, model, plan)
    finally:
        blockmap.CACHED_BITMAPS = before
    assert plain_bytes(image) == model
    assert verdict(image).findings == []


@given(plan=steps)
@settings(max_examples=40, deadline=None)
def test_a_child_shows_its_parent_where_nothing_was_written(plan: Plan) -> None:
    image = Picture(SMALL, BLOCK, disk_type=DIFFERENCING).draw()
    model = bytearray(Below().read(0, SMALL))
    play(image, DynamicDisk, model, plan, Below())
    assert DynamicDisk(image, parent=Below()).read(0, SMALL) == model


@given(st.binary(max_size=40), st.integers(0, 320))
def test_flags_are_the_bits(raw: bytes, count: int) -> None:
    flags = unpack_flags(raw, count)
    assert list(flags) == [
        int(n // 8 < len(raw) and bool(raw[n // 8] & 0x80 >> n % 8)) for n in range(count)
    ]
    packed = pack_flags(flags, max(1, len(raw)))
    assert unpack_flags(packed, min(count, len(packed) * 8)) == flags[: len(packed) * 8]


def test_the_batmap_says_full_only_where_the_bitmap_does() -> None:
    image = empty_image()
    disk = DynamicDisk(image)
    disk.write(0, bytes([1]) * BLOCK)
    disk.write(5 * BLOCK, bytes([2]) * (BLOCK - SECTOR))
    disk.close()
    again = DynamicDisk(image)
    assert read_block_tables(image).full[0] == 1
    assert sum(read_block_tables(image).full) == 1
    again.write(6 * BLOCK - SECTOR, bytes([2]) * SECTOR)
    again.close()
    assert sum(read_block_tables(image).full) == 2
    assert verdict(image).findings == []


def test_a_batmap_that_cannot_be_believed_is_not() -> None:
    picture = Picture(SMALL, BLOCK)
    picture.add(0, (0, 1))
    image = picture.draw()
    head = image.pread(picture.header.bat_end, SECTOR)
    image.pwrite(int.from_bytes(head[8:16], "big"), b"\xff")
    assert DynamicDisk(image).read(SECTOR, SECTOR) == bytes(SECTOR)


def test_extents_are_what_is_present() -> None:
    disk = DynamicDisk(empty_image())
    disk.write(BLOCK, bytes([1]) * (2 * BLOCK))
    disk.write(3 * BLOCK + SECTOR, bytes([1]) * SECTOR)
    assert disk.extents(0, 5 * BLOCK) == [
        (BLOCK, False),
        (2 * BLOCK, True),
        (SECTOR, False),
        (SECTOR, True),
        (2 * BLOCK - 2 * SECTOR, False),
    ]
    assert disk.extents(BLOCK + SECTOR, BLOCK, most=1) == [(BLOCK, True)]
    assert disk.extents(0, SIZE, most=1) == [(BLOCK, False)]


def test_a_whole_block_is_data_from_its_first_sector_on() -> None:
    image = empty_image()
    disk = whole(image)
    disk.write(3 * BLOCK + SECTOR, bytes([1]) * SECTOR)
    assert disk.extents(0, 5 * BLOCK) == [(3 * BLOCK, False), (BLOCK, True), (BLOCK, False)]
    disk.close()
    assert sum(read_block_tables(image).full) == 1
    assert plain_bytes(image)[3 * BLOCK : 4 * BLOCK].strip(b"\0") == bytes([1]) * SECTOR


def test_a_child_is_never_whole() -> None:
    """What nobody wrote there is the parent's, not zeros."""
    image = Picture(SMALL, BLOCK, disk_type=DIFFERENCING).draw()
    disk = whole(image, parent=Below())
    disk.write(0, bytes([1]) * SECTOR)
    assert disk.read(SECTOR, SECTOR) == Below().read(SECTOR, SECTOR)
    assert not disk.whole


def test_memory_keeps_a_bounded_number_of_bitmaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockmap, "CACHED_BITMAPS", 8)
    image = empty_image()
    blocks = BlockMap(read_block_tables(image), image)
    for block in range(100):
        blocks.set_bitmap(block, b"\x80" + bytes(SECTOR - 1))
    assert blocks.cached_bitmaps() == 8
    for block in range(100):
        blocks.set_bitmap(block, b"\xff" * SECTOR)
    assert blocks.cached_bitmaps() == 0


def test_nothing_is_written_when_nothing_was() -> None:
    image = empty_image()
    before = image.getvalue()
    disk = DynamicDisk(image)
    disk.read(0, SIZE)
    assert disk.close() is False
    assert image.getvalue() == before


def test_who_takes_over_an_unclean_image_leaves_it_closed() -> None:
    image = empty_image()
    DynamicDisk(image).write(0, bytes([1]) * SECTOR)
    with pytest.raises(UncleanImage, match="no footer at the end"):
        DynamicDisk(image)
    assert DynamicDisk(image, unclean=True).close() is True
    assert DynamicDisk(image).read(0, SECTOR) == bytes([1]) * SECTOR
    assert verdict(image).findings == []


def test_a_killed_footer_is_unclean() -> None:
    image = empty_image()
    tapdisk2_disk(image, kill_footer=True)
    assert image.pread(image.size() - SECTOR, SECTOR) == KILLED
    with pytest.raises(UncleanImage):
        DynamicDisk(image)


def overlapping(picture: Picture) -> None:
    picture.blocks[1] = picture.blocks[0] + 1


def over_the_bat(picture: Picture) -> None:
    picture.blocks[0] = picture.header.bat_offset // SECTOR


def over_the_header(picture: Picture) -> None:
    picture.blocks[0] = 1


def behind_the_end(picture: Picture) -> None:
    picture.blocks[1] = picture.end + 4096


@pytest.mark.parametrize("damage", [overlapping, over_the_bat, over_the_header, behind_the_end])
def test_an_image_that_writing_would_ruin_is_not_opened(damage: Callable[[Picture], None]) -> None:
    picture = Picture(SMALL, BLOCK)
    picture.add(0)
    picture.add(1)
    image = picture.draw()
    damage(picture)
    for block, sector in picture.blocks.items():
        image.pwrite(picture.header.bat_offset + 4 * block, sector.to_bytes(4, "big"))
    before = image.getvalue()
    with pytest.raises((CorruptImage, UncleanImage)):
        DynamicDisk(image)
    with pytest.raises(CorruptImage):
        DynamicDisk(image, unclean=True)
    assert image.getvalue() == before


def test_an_image_whose_tail_is_cut_off_is_not_opened() -> None:
    picture = Picture(SMALL, BLOCK)
    picture.add(0)
    image = picture.draw(footer=False)
    image.truncate(picture.blocks[0] * SECTOR + 4 * SECTOR)
    with pytest.raises(CorruptImage, match="data-past-end"):
        DynamicDisk(image, unclean=True)


def test_a_tail_cut_off_an_open_image_is_an_error_not_zeros() -> None:
    picture = Picture(SMALL, BLOCK)
    picture.add(0)
    image = picture.draw(footer=False)
    disk = DynamicDisk(image, unclean=True)
    image.truncate(picture.blocks[0] * SECTOR + 4 * SECTOR)
    assert disk.read(0, SECTOR) == b"A" * SECTOR
    with pytest.raises(CorruptImage, match="behind the end"):
        disk.read(0, BLOCK)


def test_kinds_that_have_no_blocks_are_told() -> None:
    with pytest.raises(UnsupportedImage, match="parent"):
        DynamicDisk(Picture(SMALL, BLOCK, disk_type=DIFFERENCING).draw())
    with pytest.raises(UnsupportedImage, match="fixed"):
        DynamicDisk(Picture(SMALL, BLOCK, disk_type=FIXED).draw())
    with pytest.raises(NotAVhd):
        DynamicDisk(MemoryStorage(bytes(4096)))


def test_a_bat_of_absurd_size_takes_no_memory() -> None:
    picture = Picture(SMALL, BLOCK)
    picture.header = type(picture.header)(0xFFFFFFFF, BLOCK)
    image = MemoryStorage(name="huge.vhd")
    image.pwrite(0, picture.footer.pack())
    image.pwrite(SECTOR, picture.header.pack())
    image.pwrite(20 << 30, picture.footer.pack())
    with pytest.raises(UnsupportedImage, match="4294967295 entries"):
        DynamicDisk(image)


@pytest.mark.parametrize("kind", KINDS)
def test_requests_past_the_end_touch_nothing(kind: Kind) -> None:
    disk = kind(empty_image(size=SMALL))
    for offset, length in ((SMALL, 1), (-1, 2), (0, SMALL + 1), (SMALL - 512, 1024)):
        with pytest.raises(ValueError, match="pass the disk's end"):
            disk.read(offset, length)
        with pytest.raises(ValueError, match="pass the disk's end"):
            disk.write(offset, bytes(length))


def test_the_file_ends_at_two_tebibytes() -> None:
    picture = Picture(SMALL, BLOCK)
    picture.add(0, (0, 1))
    picture.blocks[0] = (1 << 32) - 17 - picture.layout.total_sectors
    disk = DynamicDisk(picture.draw(), unclean=True)
    with pytest.raises(StorageError, match="2 TiB"):
        disk.write(BLOCK, bytes(SECTOR))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_hostile_metadata_is_an_error_of_ours(data: st.DataObject) -> None:
    picture = Picture(SMALL, BLOCK)
    picture.add(0, (0, 3))
    picture.add(3)
    raw = bytearray(picture.draw().getvalue())
    ends = [range(3 * SECTOR + 1024), range(len(raw) - SECTOR, len(raw))]
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from(ends))
        raw[data.draw(st.sampled_from(place))] = data.draw(st.integers(0, 255))
    image = MemoryStorage(bytes(raw))
    try:
        disk = DynamicDisk(image, unclean=data.draw(st.booleans()))
        disk.read(0, min(disk.size, SMALL))
        disk.write(5 * BLOCK, bytes([7]) * SECTOR)
        assert disk.read(5 * BLOCK, SECTOR) == bytes([7]) * SECTOR
        disk.close()
    except VhdtoolError:
        pass


def lying_batmap(image: MemoryStorage, block: int) -> None:
    """The batmap calls a block full that has no place."""
    opened = read_block_tables(image)
    assert opened.batmap is not None
    opened.full[block] = 1
    raw = pack_flags(opened.full, opened.batmap.sectors * SECTOR)
    check = batmap_checksum(raw, opened.footer.current_size, opened.batmap.version)
    image.pwrite(opened.batmap.offset, raw)
    image.pwrite(opened.header.bat_end, replace(opened.batmap, checksum=check).pack())


@pytest.mark.parametrize("kind", [DynamicDisk, whole])
def test_a_batmap_that_calls_a_block_full_is_the_proof_of_a_loss(kind: Kind) -> None:
    image = empty_image()
    lying_batmap(image, 1)
    before = image.getvalue()
    with pytest.raises(CorruptImage, match="batmap-unallocated"):
        kind(image)
    assert image.getvalue() == before


def test_a_batmap_that_calls_a_block_full_gives_it_no_place() -> None:
    """It would be behind 2 TiB of the file, where closing cuts off what was written."""
    image = empty_image()
    lying_batmap(image, 1)
    disk = tapdisk2_disk(image)
    assert disk.read(BLOCK, SECTOR) == bytes(SECTOR)
    disk.write(BLOCK + SECTOR, b"d" * SECTOR)
    assert disk.finish()
    assert plain_bytes(image)[BLOCK : BLOCK + 3 * SECTOR] == (
        bytes(SECTOR) + b"d" * SECTOR + bytes(SECTOR)
    )
    assert verdict(image).exit_code == 0


def test_an_allocated_block_shows_the_parent_despite_its_batmap() -> None:
    image = empty_image()
    lying_batmap(image, 1)
    image.pwrite(
        image.size() - SECTOR,
        replace(read_block_tables(image).footer, disk_type=DIFFERENCING).pack(),
    )
    disk = tapdisk2_disk(image, parent=Below())
    disk.write(BLOCK + SECTOR, b"d" * SECTOR)
    below = Below().read(BLOCK, 3 * SECTOR)
    shown = below[:SECTOR] + b"d" * SECTOR + below[2 * SECTOR :]
    assert disk.read(BLOCK, 3 * SECTOR) == shown


def test_a_reader_during_an_allocation_sees_all_or_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Readers and writers of other threads take no lock."""
    image = empty_image()
    disk = whole(image)
    set_entry = BlockMap.set_entry
    seen: list[object] = []

    def looked(self: BlockMap, block: int, entry: int) -> None:
        seen.append(disk.bat[1])
        seen.append(disk.read(BLOCK, SECTOR))
        set_entry(self, block, entry)

    monkeypatch.setattr(BlockMap, "set_entry", looked)
    disk.write(BLOCK, b"d" * SECTOR)
    assert seen == [UNUSED, bytes(SECTOR)]
