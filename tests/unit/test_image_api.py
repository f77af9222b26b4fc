"""`import vhdtool`: the documented surface, and what importing it costs."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import vhdtool
from tests.support.image_tools import clean
from vhdtool.errors import UncleanImage, UsageError

MIB = 1 << 20


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_what_is_written_reads_back_unaligned(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.vhd"
    uuid = vhdtool.create(path, 5 * MIB + 1, kind)  # type: ignore[arg-type]
    chance = random.Random(4)
    model = bytearray(5 * MIB + 512)
    with vhdtool.open(path, writable=True) as image:
        assert (image.size, image.uuid, image.kind) == (len(model), uuid, kind)
        for _ in range(20):
            data = chance.randbytes(chance.choice((1, 511, 513, 70_000)))
            at = chance.randrange(len(model) - len(data))
            assert image.write(at, data) == len(data)
            model[at : at + len(data)] = data
            assert image.read(at - 1 if at else 0, 5) == model[max(at - 1, 0) :][:5]
        image.flush()
    clean(path)
    with vhdtool.open(path) as image:
        assert image.read(0, 10 * MIB) == model
        assert image.read(10 * MIB, 5) == b""


def test_a_child_reads_through_and_lists_ranges(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    vhdtool.create(base, 8 * MIB)
    with vhdtool.open(base, writable=True) as image:
        image.write(0, b"b" * 1024)
    vhdtool.snapshot(base, child)
    with vhdtool.open(child, writable=True) as image:
        image.write(512, b"c" * 512)
        image.write(6 * MIB, b"d" * 512)
        seen = [(one.start, one.length, one.depth) for one in image.allocated()]
        assert seen == [(0, 512, 1), (512, 512, 0), (6 * MIB, 512, 0)]
        assert image.chain == [str(child), str(base)]
    with vhdtool.open(child) as image:
        assert image.read(0, 1024) == b"b" * 512 + b"c" * 512
        assert [one.start for one in image.allocated(MIB)] == [6 * MIB]
    report = vhdtool.check(child)
    assert report.exit_code == 0
    assert [one.allocated for one in report.reports] == [2, 1]


def test_reading_is_the_default_and_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    vhdtool.create(path, MIB)
    with vhdtool.open(path) as image:
        with pytest.raises(UsageError, match="open for reading"):
            image.write(0, b"x")
        with pytest.raises(UsageError):
            image.read(-1, 5)
    with (
        vhdtool.open(path, writable=True) as image,
        pytest.raises(UsageError, match="end of the disk"),
    ):
        image.write(MIB - 1, b"xx")
    with pytest.raises(UsageError):
        vhdtool.create(tmp_path / "b.vhd", MIB, "sparse")  # type: ignore[arg-type]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 512)
    with pytest.raises(UncleanImage):
        vhdtool.open(path, writable=True)
    with vhdtool.open(path) as image:
        assert image.read(0, 4) == bytes(4)
    with pytest.raises(vhdtool.VhdtoolError):
        vhdtool.open(tmp_path / "none.vhd")


def test_importing_is_cheap_and_needs_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import vhdtool; "
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('vhdtool')));"
        "vhdtool.open, vhdtool.check, vhdtool.Extent;"
        "print(set(dir(vhdtool)) >= set(vhdtool.__all__));"
        "print([m for m in ('click', 'rich', 'ctypes') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['vhdtool']", "True", "[]"]


def test_a_forked_child_leaves_its_parents_image_alone(tmp_path: Path) -> None:
    """It has tables of its own: its footer would cut what the parent writes later."""
    path = tmp_path / "a.vhd"
    vhdtool.create(path, 64 << 20)
    with vhdtool.open(path, writable=True) as image:
        image.write(0, b"before")
        image.flush()
        pid = os.fork()
        if pid == 0:
            refused = 0
            try:
                image.write(0, b"child!")
            except UsageError:
                refused = 7
            image.close()
            os._exit(refused)
        size = path.stat().st_size
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert path.stat().st_size == size
        image.write(40 << 20, b"after")
    clean(path)
    with vhdtool.open(path) as image:
        assert (image.read(0, 6), image.read(40 << 20, 5)) == (b"before", b"after")
