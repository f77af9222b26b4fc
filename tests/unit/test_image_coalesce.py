"""Coalescing says "done" only of what reads back, and decides what it needs before it writes."""

import errno
from pathlib import Path

import pytest

from tests.support.image_tools import clean, content, nearly_full, write
from vhdtool.cli.main import run
from vhdtool.cli.vhd_util.main import run as vhd_util
from vhdtool.errors import CorruptImage
from vhdtool.image.create.differencing import create_child, parent_facts, snapshot
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.image.disk.flat import FlatDisk
from vhdtool.image.edit import coalesce as coalescing
from vhdtool.storage import FileStorage, StorageError

MIB = 1 << 20
BLOCK = 512 << 10


def chain(folder: Path, kind: str = "dynamic", size: int = 4 * MIB) -> tuple[Path, Path]:
    """A parent of 4 MiB, and a child with two blocks."""
    parent, child = folder / "parent.vhd", folder / "child.vhd"
    if kind == "dynamic":
        create_dynamic(parent, 4 * MIB, BLOCK)
        write(parent, (0, b"p" * 4096))
    elif kind == "fixed":
        create_fixed(parent, 4 * MIB)
    else:
        parent.write_bytes(bytes(4 * MIB))
    create_child(child, parent_facts(parent, kind == "raw"), size, BLOCK)
    write(child, (MIB, b"c" * 5000), (size - MIB, b"d" * 5000))
    return parent, child


@pytest.mark.parametrize("kind", ["dynamic", "fixed", "raw"])
def test_what_reads_back_otherwise_is_never_done(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A write that the storage swallowed."""
    parent, child = chain(tmp_path, kind)
    target = DynamicDisk if kind == "dynamic" else FlatDisk
    real = target.write

    def swallowed(self: object, offset: int, data: bytes) -> None:
        real(self, offset, bytes(len(data)) if offset > MIB else data)  # type: ignore[arg-type]

    monkeypatch.setattr(target, "write", swallowed)
    shown = content(child)
    assert run(["coalesce", str(child)]) == 1
    out, err = capsys.readouterr()
    assert "removed" not in out
    assert f"keep {child}" in err
    assert vhd_util(["coalesce", "-n", str(child)]) == errno.EINVAL
    assert "Coalesced" not in capsys.readouterr().out
    assert content(child) == shown
    monkeypatch.undo()
    assert run(["coalesce", str(child)]) == 0
    assert "removed" in capsys.readouterr().out
    if kind != "raw":
        clean(parent)
        assert content(parent) == shown


def test_damage_that_appears_while_it_writes_is_never_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, child = chain(tmp_path)
    real = DynamicDisk.close

    def overlapped(self: DynamicDisk) -> bool:
        done = real(self)
        with parent.open("r+b") as file:
            file.seek(self.header.bat_offset)
            first = file.read(4)
            file.seek(self.header.bat_offset + 4 * 5)
            file.write(first)
        return done

    monkeypatch.setattr(DynamicDisk, "close", overlapped)
    with pytest.raises(CorruptImage, match="block-overlap"):
        coalescing.coalesce(child)


@pytest.mark.parametrize("kind", ["dynamic", "fixed", "raw"])
def test_what_does_not_fit_is_refused_before_the_first_byte(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Growing the parent is a write too."""
    parent, child = chain(tmp_path, kind, 8 * MIB)
    before = parent.read_bytes()
    nearly_full(monkeypatch, tmp_path, 1)
    assert run(["coalesce", str(child)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert vhd_util(["coalesce", "-n", str(child)]) == errno.ENOSPC
    assert capsys.readouterr().out == f"error coalescing: {-errno.ENOSPC}\n"
    assert parent.read_bytes() == before


def test_a_disk_that_fills_up_meanwhile_is_told_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, child = chain(tmp_path)
    shown, below = content(child), content(parent)
    real = FileStorage.pwrite

    def full(self: FileStorage, offset: int, data: bytes) -> None:
        if bytes(data[:1]) == b"d":
            raise StorageError(self.name, "write", errno.ENOSPC)
        real(self, offset, data)

    monkeypatch.setattr(FileStorage, "pwrite", full)
    assert vhd_util(["coalesce", "-n", str(child)]) == errno.ENOSPC
    monkeypatch.undo()
    clean(parent)
    assert content(child) == shown
    assert content(parent)[:MIB] == below[:MIB]


def test_an_ancestor_gets_the_data_of_all_layers_above(tmp_path: Path) -> None:
    parent, child = chain(tmp_path)
    top = tmp_path / "top.vhd"
    snapshot(child, top, block_bytes=BLOCK)
    write(top, (MIB + 512, b"t" * 512))
    shown = content(top)
    coalescing.coalesce(top, whole=True)
    assert content(parent) == shown


def test_fill_of_what_does_not_fit_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, _ = chain(tmp_path)
    before = parent.read_bytes()
    nearly_full(monkeypatch, tmp_path, 100)
    assert vhd_util(["fill", "-n", str(parent)]) == errno.ENOSPC
    assert parent.read_bytes() == before
