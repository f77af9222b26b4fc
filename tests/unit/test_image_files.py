"""File objects on both sides: an image in one (`open(file)`), and a disk as one (`as_file`)."""

import io
import os
import random
import shutil
import zipfile
from pathlib import Path

import pytest

import vhdtool
from tests.support.image_tools import clean
from vhdtool.errors import UsageError
from vhdtool.image.chain.locate_parent import ParentMismatch

MIB = 1 << 20


@pytest.fixture
def child(tmp_path: Path) -> Path:
    """A child over a dynamic parent; both have data."""
    vhdtool.create(tmp_path / "base.vhd", 8 * MIB)
    with vhdtool.open(tmp_path / "base.vhd", writable=True) as image:
        image.write(100, b"base" * 1000)
        image.write(5 * MIB, b"deep")
    vhdtool.snapshot(tmp_path / "base.vhd", tmp_path / "child.vhd")
    with vhdtool.open(tmp_path / "child.vhd", writable=True) as image:
        image.write(1000, b"child" * 100)
        image.write(7 * MIB, b"end")
    return tmp_path / "child.vhd"


def content(image: vhdtool.Image) -> bytes:
    return image.read(0, image.size)


# an image in a file object


def test_a_child_in_file_objects_reads_as_from_its_path(child: Path) -> None:
    with vhdtool.open(child) as image:
        wanted, extents = content(image), [(e.start, e.length, e.depth) for e in image.extents()]
    below = io.BytesIO((child.parent / "base.vhd").read_bytes())
    with (
        child.open("rb", buffering=0) as above,
        vhdtool.open(below) as parent,
        vhdtool.open(above, parent=parent) as image,
    ):
        assert content(image) == wanted
        # A file object has no holes that can be found.
        assert [(e.start, e.length, e.depth) for e in image.extents()] == extents
        assert image.path == str(child)
        assert image.chain == [str(child), "BytesIO"]
    assert below.seekable()


def test_an_image_is_read_from_an_archive(child: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "base.vhd", "base.vhd")
    with (
        zipfile.ZipFile(tmp_path / "a.zip") as archive,
        archive.open("base.vhd") as member,
        vhdtool.open(member) as image,
    ):
        assert image.read(100, 4) == b"base"
        assert image.kind == "dynamic"


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_an_image_in_memory_is_written(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.vhd"
    vhdtool.create(path, 4 * MIB, kind)  # type: ignore[arg-type]
    memory = io.BytesIO(path.read_bytes())
    chance = random.Random(1)
    model = bytearray(4 * MIB)
    with vhdtool.open(memory, writable=True) as image:
        for _ in range(20):
            data = chance.randbytes(chance.randrange(1, 5000))
            at = chance.randrange(len(model) - len(data))
            image.write(at, data)
            model[at : at + len(data)] = data
        image.write_zeroes(MIB, MIB)
        model[MIB : 2 * MIB] = bytes(MIB)
        image.trim(MIB, MIB)
        assert content(image) == model
        image.flush()
    path.write_bytes(memory.getvalue())
    clean(path)
    with vhdtool.open(path) as image:
        assert content(image) == model


def test_a_file_that_others_could_open_is_not_written(child: Path) -> None:
    with child.open("r+b") as file, pytest.raises(UsageError, match="open a file by its path"):
        vhdtool.open(file, writable=True)


def test_a_file_object_of_another_kind_is_refused(child: Path) -> None:
    with child.open() as text, pytest.raises(UsageError, match="is a text file"):
        vhdtool.open(text)  # type: ignore[arg-type]
    reading, writing = os.pipe()
    with (
        open(reading, "rb") as pipe,
        open(writing, "wb"),
        pytest.raises(UsageError, match="cannot seek"),
    ):
        vhdtool.open(pipe)
    with pytest.raises(vhdtool.NotAVhd):
        vhdtool.open(io.BytesIO(bytes(4096)))
    for wrong in (b"a.vhd", 5, None):
        with pytest.raises(UsageError, match="neither a path nor a file object"):
            vhdtool.open(wrong)  # type: ignore[arg-type]


def test_a_closed_file_object_is_a_storage_error(child: Path) -> None:
    memory = io.BytesIO((child.parent / "base.vhd").read_bytes())
    with vhdtool.open(memory) as image:
        memory.close()
        with pytest.raises(vhdtool.StorageError, match="Bad file descriptor"):
            image.read(0, 512)


def test_a_child_needs_its_own_parent(child: Path, tmp_path: Path) -> None:
    memory = io.BytesIO(child.read_bytes())
    with pytest.raises(UsageError, match="give it as `parent`"):
        vhdtool.open(memory)
    vhdtool.create(tmp_path / "other.vhd", 8 * MIB)
    with vhdtool.open(tmp_path / "other.vhd") as other:
        with pytest.raises(ParentMismatch, match="is not its parent"):
            vhdtool.open(memory, parent=other)
        with pytest.raises(UsageError, match="has no parent"):
            vhdtool.open(tmp_path / "base.vhd", parent=other)
    with (
        vhdtool.open(tmp_path / "base.vhd", writable=True) as base,
        pytest.raises(UsageError, match="never written"),
    ):
        vhdtool.open(memory, parent=base)


def test_a_parent_that_has_moved_is_given(child: Path, tmp_path: Path) -> None:
    with vhdtool.open(child) as image:
        wanted = content(image)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "base.vhd").rename(moved / "base.vhd")
    with pytest.raises(vhdtool.DamageError, match="parent cannot be found"):
        vhdtool.open(child)
    with vhdtool.open(moved / "base.vhd") as parent:
        with vhdtool.open(child, parent=parent) as image:
            assert content(image) == wanted
        with vhdtool.open(child, writable=True, parent=parent) as image:
            image.write(0, b"new")
            with pytest.raises(vhdtool.LockedError):
                vhdtool.open(moved / "base.vhd", writable=True)
        # The parent is the caller's.
        assert parent.read(100, 4) == b"base"
        with vhdtool.open(child, parent=parent) as image:
            assert content(image) == b"new" + wanted[3:]


def test_a_child_is_closed_with_its_parent(child: Path) -> None:
    parent = vhdtool.open(child.parent / "base.vhd")
    with vhdtool.open(child, parent=parent) as image:
        parent.close()
        with pytest.raises(vhdtool.ClosedError, match=r"base\.vhd: is closed"):
            image.read(0, 1)


# a disk as a file object


def test_a_disk_behaves_as_a_file_of_its_size(child: Path) -> None:
    """Against a BytesIO: the same calls have the same results."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    with vhdtool.open(child, writable=True) as image, image.as_file() as disk:
        model = io.BytesIO(content(image))
        for _ in range(60):
            offset = chance.randrange(image.size - 5000)
            assert disk.seek(offset) == model.seek(offset) == disk.tell()
            length = chance.randrange(5000)
            if chance.random() < 0.4:
                data = chance.randbytes(length)
                assert disk.write(data) == model.write(data)
            else:
                buffers = bytearray(length), bytearray(length)
                assert disk.readinto(buffers[0]) == model.readinto(buffers[1])
                assert buffers[0] == buffers[1]
            step = chance.randrange(-100, 100) if offset > 100 else 0
            assert disk.seek(step, io.SEEK_CUR) == model.seek(step, io.SEEK_CUR)
        assert disk.seek(-10, io.SEEK_END) == image.size - 10
        assert len(disk.read(100) or b"") == 10
        assert disk.read(100) == b""
        disk.seek(image.size + 5)
        assert disk.read(1) == b""
        disk.seek(0)
        assert disk.readall() == model.getvalue()


def test_a_disk_is_copied_and_read_in_lines(child: Path) -> None:
    with vhdtool.open(child) as image:
        copy = io.BytesIO()
        shutil.copyfileobj(image.as_file(), copy)
        assert copy.getvalue() == content(image)
        with io.BufferedReader(image.as_file()) as reader:
            reader.seek(100)
            assert reader.read(8) == b"basebase"
            assert reader.name == str(child)
        assert not image.closed


def test_a_write_stops_at_the_end_of_the_disk(child: Path) -> None:
    with vhdtool.open(child, writable=True) as image, image.as_file() as disk:
        disk.seek(-3, io.SEEK_END)
        assert disk.write(b"12345") == 3
        with pytest.raises(OSError, match="No space left"):
            disk.write(b"45")
        assert image.read(image.size - 3, 3) == b"123"
        with pytest.raises(io.UnsupportedOperation):
            disk.truncate(5)
        with pytest.raises(OSError, match="Invalid argument"):
            disk.seek(-1)


def test_a_disk_opened_for_reading_is_a_file_for_reading(child: Path) -> None:
    with vhdtool.open(child) as image, image.as_file() as disk:
        assert (disk.readable(), disk.seekable(), disk.writable(), disk.mode) == (
            True,
            True,
            False,
            "rb",
        )
        with pytest.raises(io.UnsupportedOperation):
            disk.write(b"x")


def test_file_and_image_close_in_either_order(child: Path) -> None:
    image = vhdtool.open(child, writable=True)
    first, second = image.as_file(), image.as_file()
    first.close()
    with pytest.raises(ValueError, match="closed file"):
        first.read(1)
    second.write(b"x")
    image.close()
    with pytest.raises(vhdtool.ClosedError):
        second.read(1)
    second.close()
    with pytest.raises(vhdtool.ClosedError):
        image.as_file()
