"""The oracles' own reader: every number in an image is hostile, holes cost nothing."""

import itertools
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import oracle_cases
from tests.support.oracle_cases import BLOCK, DISK, Lab, NaiveShim
from vhdtool.errors import CorruptImage, NotAVhd, StateError, VhdtoolError
from vhdtool.oracle.readers.image_view import Extent, FileView, OverlayView, View, clip, merge
from vhdtool.oracle.readers.vhd import SECTOR, DynamicReader, RawReader, Reader, open_reader
from vhdtool.storage import MemoryStorage


class MemoryView(MemoryStorage, View):
    """Bytes in memory, all of which may be data."""

    def extents(self) -> list[Extent]:
        return [(0, self.size())]


def view_of(lab: Lab) -> MemoryView:
    return MemoryView(lab.disk.pread(0, lab.disk.size()))


def whole(reader: Reader) -> bytes:
    disk = bytearray(reader.disk_sectors * SECTOR)
    for sector, data in reader.chunks():
        disk[sector * SECTOR : sector * SECTOR + len(data)] = data
    return bytes(disk)


writes = st.lists(
    st.tuples(st.integers(0, DISK // SECTOR - 16), st.integers(1, 16), st.integers(1, 255)),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(writes)
def test_it_reads_what_was_written_and_zeros_elsewhere(
    extents: list[tuple[int, int, int]],
) -> None:
    lab = Lab()
    shim = NaiveShim(lab, "alpha", 1)
    shim.read()
    model: dict[int, bytes] = {}
    for first, count, fill in extents:
        for sector in range(first, first + count):
            shim.write(sector, bytes([fill]) * SECTOR)
            model[sector] = bytes([fill]) * SECTOR
    shim.release()
    view = view_of(lab)
    reader = open_reader(view)
    read = {
        first + i // SECTOR: data[i : i + SECTOR]
        for first, data in reader.chunks()
        for i in range(0, len(data), SECTOR)
    }
    assert {sector: data for sector, data in read.items() if data.strip(b"\0")} == model
    for sector in model:
        at = reader.locate(sector)
        assert at is not None
        assert view.pread(at, SECTOR) == model[sector]


def test_a_sparse_file_and_a_dense_one_read_the_same(tmp_path: Path) -> None:
    lab = oracle_cases.activate()
    path = lab.save(tmp_path / "case") / "image.vhd"
    with FileView(path) as sparse:
        assert sum(end - start for start, end in sparse.extents()) < lab.disk.size() / 4
        assert whole(open_reader(sparse)) == whole(open_reader(view_of(lab)))


@pytest.mark.parametrize(
    ("offset", "data", "error"),
    [
        (512, b"nocookie", CorruptImage),
        (512 + 16, struct.pack(">Q", 1 << 62), CorruptImage),
        (512 + 28, struct.pack(">I", 3), CorruptImage),
        (512 + 28, struct.pack(">I", 0xFFFFFFFF), CorruptImage),
        (512 + 32, struct.pack(">I", 0), CorruptImage),
        (512 + 32, struct.pack(">I", 3 << 20), CorruptImage),
        (512 + 32, struct.pack(">I", 1 << 31), CorruptImage),
    ],
)
def test_a_header_that_lies_is_an_error_with_a_name(
    offset: int, data: bytes, error: type[VhdtoolError]
) -> None:
    view = OverlayView(view_of(oracle_cases.activate()), [(offset, data)])
    with pytest.raises(error):
        open_reader(view)


def test_either_footer_will_do_and_without_one_it_is_no_vhd() -> None:
    lab = oracle_cases.activate()
    base = view_of(lab)
    expected = whole(open_reader(base))
    end = (base.size() - SECTOR, bytes(SECTOR))
    start = (0, bytes(SECTOR))
    assert whole(open_reader(OverlayView(base, [end]))) == expected
    assert whole(open_reader(OverlayView(base, [start]))) == expected
    with pytest.raises(NotAVhd):
        open_reader(OverlayView(base, [start, end]))
    with pytest.raises(NotAVhd):
        open_reader(MemoryView(b"short"))


def test_entries_behind_the_end_of_the_file_read_as_zeros() -> None:
    lab = oracle_cases.activate()
    base = view_of(lab)
    reader = open_reader(base)
    assert isinstance(reader, DynamicReader)
    block = next(iter(reader.blocks))
    entry = (reader.bat_offset + 4 * block, struct.pack(">I", 0xFFFFFFF0))
    data = whole(open_reader(OverlayView(base, [entry])))
    assert data[block * BLOCK : (block + 1) * BLOCK] == bytes(BLOCK)


def test_a_file_cut_inside_a_sector_is_read_to_its_end() -> None:
    lab = oracle_cases.activate()
    raw = lab.disk.pread(0, lab.disk.size() - 1000)
    assert len(whole(open_reader(MemoryView(raw)))) == DISK


def test_raw_disks() -> None:
    data = bytes(SECTOR * 3) + b"\7" * SECTOR * 2
    reader = RawReader(MemoryView(data))
    assert whole(reader) == data
    assert reader.locate(3) == 3 * SECTOR
    assert reader.locate(5) is None


def test_a_view_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with FileView(path) as view:
        with pytest.raises(StateError):
            view.pwrite(0, b"x")
        with pytest.raises(StateError):
            view.zero(0, 1)
        with pytest.raises(StateError):
            view.truncate(0)
    assert path.read_bytes() == b"abc"


@settings(deadline=None)
@given(
    st.binary(min_size=1, max_size=200),
    st.lists(st.tuples(st.integers(0, 199), st.binary(min_size=1, max_size=20)), max_size=4),
    st.integers(0, 220), st.integers(0, 220),
)  # fmt: skip
def test_an_overlay_reads_like_a_patched_copy(
    data: bytes, patches: list[tuple[int, bytes]], offset: int, length: int
) -> None:
    inside = [(at, patch[: len(data) - at]) for at, patch in patches if at < len(data)]
    copy = bytearray(data)
    for at, patch in sorted(inside):
        copy[at : at + len(patch)] = patch
    view = OverlayView(MemoryView(data), inside)
    assert view.pread(offset, length) == bytes(copy)[offset : offset + length]


ranges = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 9)).map(lambda r: (r[0], r[0] + r[1])), max_size=8
)


@settings(deadline=None)
@given(ranges, st.integers(0, 70), st.integers(0, 70))
def test_merging_and_clipping_keep_the_same_bytes(
    extents: list[Extent], start: int, end: int
) -> None:
    inside = {byte for low, high in extents for byte in range(low, high)}
    merged = merge(extents)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))
    assert {byte for low, high in merged for byte in range(low, high)} == inside
    clipped = {byte for low, high in clip(merged, start, end) for byte in range(low, high)}
    assert clipped == inside & set(range(start, end))
