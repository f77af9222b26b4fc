"""Packed images: the same bytes, holes and verdict, and damage of any kind is seen."""

import json
import os
import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import oracle_cases
from vhdtool.cli.main import run
from vhdtool.errors import UsageError
from vhdtool.oracle.evidence.json_fields import TornRecord
from vhdtool.oracle.packing import pack_run, unpack_run
from vhdtool.oracle.readers.image_view import FileView
from vhdtool.oracle.readers.packed import PackedView, write_packed
from vhdtool.oracle.run import judge_run

MIB = 1 << 20
pieces = st.lists(
    st.tuples(st.integers(0, 4 * MIB), st.integers(1, 200_000), st.integers(0, 255)), max_size=6
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    oracle_cases.activate().save(tmp_path / "run" / "activate-on-s7")
    oracle_cases.overlap().save(tmp_path / "run" / "overlap-off-s7")
    shutil.copytree(tmp_path / "run" / "overlap-off-s7", tmp_path / "run" / "failed" / "overlap-1")
    return tmp_path / "run"


def packed_copy(source: Path, target: Path) -> Path:
    with closing(FileView(source)) as view, open(target, "wb") as out:
        write_packed(view, out.fileno())
    return target


@settings(max_examples=25, deadline=None)
@given(pieces, st.integers(0, 5 * MIB))
def test_a_packed_image_reads_as_the_file(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int, int]], size: int
) -> None:
    source = tmp_path_factory.mktemp("pack") / "image.vhd"
    with open(source, "wb") as out:
        out.truncate(size)
        for offset, length, seed in parts:
            os.pwrite(out.fileno(), random.Random(seed).randbytes(length), offset)
    with closing(FileView(source)) as plain:
        packed = PackedView(packed_copy(source, source.with_suffix(".packed")))
        with closing(packed):
            assert packed.size() == plain.size()
            assert packed.extents() == plain.extents()
            for offset in (0, 1, 65_535, 65_536, 777_777, max(0, plain.size() - 3)):
                for length in (0, 1, 4096, 300_000):
                    assert packed.pread(offset, length) == plain.pread(offset, length)


def test_a_packed_run_has_the_same_verdict(folder: Path) -> None:
    before = judge_run(folder)
    sizes = {path: path.stat().st_size for path in folder.rglob("image.vhd")}
    done = pack_run(folder)
    assert (done.images, done.before) == (3, sum(sizes.values()))
    assert done.after < done.before / 10
    assert not list(folder.rglob("image.vhd"))
    assert judge_run(folder) == before
    assert judge_run(folder / "activate-on-s7")["as_expected"] is True


def test_unpacking_restores_bytes_and_holes(folder: Path) -> None:
    plain = {p: (p.read_bytes(), p.stat().st_blocks) for p in folder.rglob("image.vhd")}
    pack_run(folder)
    assert unpack_run(folder).images == 3
    assert {p: (p.read_bytes(), p.stat().st_blocks) for p in folder.rglob("image.vhd")} == plain
    assert not list(folder.rglob("*.packed*"))


def test_packing_twice_changes_nothing(folder: Path) -> None:
    pack_run(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*.packed")}
    assert pack_run(folder).images == 0
    assert {path: path.read_bytes() for path in folder.rglob("*.packed")} == before


def test_each_changed_byte_of_a_packed_image_is_seen(folder: Path) -> None:
    source = folder / "activate-on-s7" / "image.vhd"
    packed = packed_copy(source, folder / "image.vhd.packed")
    good = packed.read_bytes()
    chosen = sorted({*range(60), *range(0, len(good), max(1, len(good) // 400)), len(good) - 1})
    for position in chosen:
        packed.write_bytes(good[:position] + bytes([good[position] ^ 0x41]) + good[position + 1 :])
        with pytest.raises(TornRecord):
            PackedView(packed).close()
    for length in (0, 7, 43, 44, len(good) // 2, len(good) - 1):
        packed.write_bytes(good[:length])
        with pytest.raises(TornRecord):
            PackedView(packed).close()
    packed.write_bytes(good + b"x")
    with pytest.raises(TornRecord):
        PackedView(packed).close()


def test_a_case_that_may_be_under_way_is_not_packed(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lab writes case.json last. What is written into a removed image would be lost."""
    case = folder / "activate-on-s7"
    (case / "case.json").unlink()
    assert run(["pack", str(folder)]) == 0
    assert (case / "image.vhd").exists()
    assert (folder / "overlap-off-s7" / "image.vhd.packed").exists()
    out, err = capfd.readouterr()
    assert "2 images packed" in out
    assert err == "activate-on-s7: left as it is; it has no case.json, so it may be under way\n"


def test_a_damaged_packed_image_proves_nothing(folder: Path) -> None:
    case = folder / "activate-on-s7"
    pack_run(case)
    packed = case / "image.vhd.packed"
    packed.write_bytes(packed.read_bytes()[:-1])
    (entry,) = judge_run(case)["strategies"]
    assert entry["verdict"] == "inconclusive"
    assert "image.vhd.packed" in json.dumps(entry)
    with pytest.raises(UsageError, match="cannot be unpacked"):
        unpack_run(case)
    assert packed.exists()


def test_two_images_of_one_case_prove_nothing(folder: Path) -> None:
    case = folder / "activate-on-s7"
    packed_copy(case / "image.vhd", case / "image.vhd.packed")
    (entry,) = judge_run(case)["strategies"]
    assert entry["verdict"] == "inconclusive"
    assert "exists beside" in json.dumps(entry)
    assert pack_run(case).images == 1
    assert judge_run(case)["as_expected"] is True


def test_a_different_packed_image_is_never_replaced(folder: Path) -> None:
    case = folder / "activate-on-s7"
    other = folder / "overlap-off-s7" / "image.vhd"
    packed_copy(other, case / "image.vhd.packed")
    for change in (pack_run, unpack_run):
        with pytest.raises(UsageError, match="differ"):
            change(case)
    assert (case / "image.vhd").exists()
    assert (case / "image.vhd.packed").exists()


def test_a_write_that_fails_leaves_the_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(os, "pwrite", full)
    assert run(["pack", str(folder)]) != 0
    assert sorted(folder.rglob("*")) == before
    out, err = capfd.readouterr()
    assert len((out + err).splitlines()) == 1
    assert "No space left" in err


def test_a_folder_without_cases_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path, told in (
        (tmp_path, "neither a case nor a run"),
        (tmp_path / "a", "no such directory"),
    ):
        assert run(["pack", str(path)]) != 0
        assert told in capfd.readouterr().err
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "verdict.json").write_text("{}")
    for command in ("pack", "judge"):
        assert run([command, str(tmp_path)]) != 0
        assert f"it holds runs, give one of them, such as {tmp_path}/two" in capfd.readouterr().err
