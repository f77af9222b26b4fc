"""Modify, resize, coalesce, fill and scan on files."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.support.image_tools import change_header, clean, content, nearly_full, write
from tests.support.vhd_images import Picture
from vhdtool.cli.main import run
from vhdtool.errors import CorruptImage, UncleanImage, UnsupportedImage, UsageError
from vhdtool.image.chain.check import check_chain
from vhdtool.image.chain.info import info
from vhdtool.image.chain.open import open_chain
from vhdtool.image.chain.tree import scan
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.image.edit.coalesce import coalesce, fill
from vhdtool.image.edit.modify import modify_footer, modify_parent
from vhdtool.image.edit.resize import resize
from vhdtool.image.journal.undo import Change, apply, undo, write_journal
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage, StorageError

MIB = 1 << 20
BLOCK = 2 * MIB


def base(folder: Path, size: int = 16 * MIB, name: str = "base.vhd") -> Path:
    path = folder / name
    create_dynamic(path, size)
    write(path, (0, b"first" * 1000), (5 * MIB, b"middle" * 1000), (size - 512, b"l" * 512))
    return path


def child(parent: Path, name: str, *writes: tuple[int, bytes]) -> Path:
    path = parent.parent / name
    snapshot(parent, path)
    write(path, *writes)
    return path


# -- modify


def test_footer_fields_change_in_both_footers(tmp_path: Path) -> None:
    path = base(tmp_path)
    before = content(path)
    uuid = uuid4()
    modify_footer(path, hidden=True, uuid=uuid, timestamp=77)
    clean(path)
    footer = info(path)["footer"]
    assert (footer["hidden"], footer["uuid"], footer["timestamp"]) == (1, str(uuid), 77)
    assert content(path) == before
    assert sorted(os.listdir(tmp_path)) == ["base.vhd"]


def test_parent_that_moved_is_found_again(tmp_path: Path) -> None:
    parent = base(tmp_path)
    kid = child(parent, "kid.vhd", (4096, b"kid" * 100))
    before = content(kid)
    (tmp_path / "else").mkdir()
    moved = tmp_path / "else" / "renamed.vhd"
    parent.rename(moved)
    assert check_chain(kid).exit_code == 2
    modify_parent(kid, moved)
    clean(kid)
    assert content(kid) == before


def test_long_path_gets_room_behind_the_data(tmp_path: Path) -> None:
    parent = base(tmp_path)
    kid = child(parent, "kid.vhd", (4096, b"kid" * 100))
    before = content(kid)
    deep = tmp_path
    for _ in range(6):
        deep /= "d" * 60
    deep.mkdir(parents=True)
    parent.rename(deep / "base.vhd")
    modify_parent(kid, deep / "base.vhd")
    clean(kid)
    assert content(kid) == before
    write(kid, (9 * MIB, b"more"))
    clean(kid)


@pytest.mark.parametrize("was_raw", [False, True])
@pytest.mark.parametrize("is_raw", [False, True])
def test_another_disk_becomes_the_parent_only_on_purpose(
    tmp_path: Path, was_raw: bool, is_raw: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its data would show through wherever the child has none."""
    parents = []
    for name, raw in (("mine", was_raw), ("else", is_raw)):
        path = tmp_path / f"{name}.vhd"
        if raw:
            path.write_bytes(name.encode() * (2 * MIB))
        else:
            create_dynamic(path, 8 * MIB)
            write(path, (0, name.encode() * 128))
        parents.append(path)
    kid = tmp_path / "kid.vhd"
    snapshot(parents[0], kid, raw=was_raw)
    before = kid.read_bytes()
    words = ["modify", str(kid), "--parent", str(parents[1])] + ["--raw-parent"] * is_raw
    # Raw disks have no identity to compare.
    if not (was_raw and is_raw):
        assert run(words) == 1
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert "--other-disk" in said
        assert kid.read_bytes() == before
        words.append("--other-disk")
    assert run(words) == 0
    clean(kid)
    assert content(kid)[:4] == b"else"


def test_a_snapshot_replaces_no_image_that_it_needs(tmp_path: Path) -> None:
    parent = base(tmp_path)
    kid = child(parent, "kid.vhd", (0, b"x"))
    before = content(kid)
    for path in (parent, kid):
        with pytest.raises(UsageError, match="own chain"):
            snapshot(kid, path, overwrite=True)
    assert content(kid) == before


def test_impossible_parents_are_refused(tmp_path: Path) -> None:
    parent = base(tmp_path)
    kid = child(parent, "kid.vhd", (0, b"x"))
    grandkid = child(kid, "grandkid.vhd", (0, b"y"))
    large = base(tmp_path, 32 * MIB, "large.vhd")
    with pytest.raises(UsageError, match="itself"):
        modify_parent(kid, kid)
    with pytest.raises(UsageError, match="or a child of it"):
        modify_parent(kid, grandkid)
    with pytest.raises(UsageError, match="larger"):
        modify_parent(kid, large, other_disk=True)
    os.link(grandkid, tmp_path / "link.vhd")
    with pytest.raises(UsageError, match="itself"):
        modify_parent(grandkid, tmp_path / "link.vhd", other_disk=True)
    with pytest.raises(UnsupportedImage, match="not a differencing"):
        modify_parent(parent, large)
    clean(grandkid)


def test_an_interrupted_change_stops_the_next_until_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = base(tmp_path)
    before = path.read_bytes()
    journal = tmp_path / "base.vhd.journal"
    with FileStorage(path, writable=True) as storage:
        write_journal(str(journal), storage, [Change("x", 512, bytes(1024))])
        storage.pwrite(512, bytes(512))
    report = check_chain(path)
    assert report.exit_code == 3
    assert [one.code for one in report.links] == ["journal-pending"]
    with pytest.raises(UncleanImage, match="repair"):
        modify_footer(path, hidden=True)
    assert run(["repair", str(path)]) == 3
    assert run(["repair", "--yes", str(path)]) == 0
    assert path.read_bytes() == before
    assert not journal.exists()
    clean(path)


@pytest.mark.parametrize("what", ["backup", "used since", "grown since"])
def test_a_journal_of_another_state_is_not_played_back(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who meets an interrupted change may put a backup in the image's place, and then repair it."""
    path, aside = base(tmp_path), tmp_path / "aside.vhd"
    write(path, (9 * MIB, b"newer" * 1000))
    if what == "backup":
        shutil.copy(path, aside)
        resize(aside, 300 * MIB)
        write(aside, (12 * MIB, b"newest" * 1000))

    class Killed(BaseException):
        pass

    def killed(storage: FileStorage, changes: list[Change]) -> None:
        apply(storage, changes[: 1 if what == "backup" else None])
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vhdtool.image.journal.transaction.apply", killed)
        with pytest.raises(Killed):
            resize(path, 200 * MIB)
    if what == "backup":
        shutil.copy(aside, path)
    else:
        # By a program that knows no journal.
        write(path, (11 * MIB if what == "grown since" else 0, b"later" * 1000))
        with FileStorage(path, writable=True) as storage:
            storage.pwrite(0, replace(read_metadata(storage).footer, timestamp=5).pack())
            storage.pwrite(1536, storage.pread(1536, 512)[::-1] if what != "grown since" else b"")
    before = path.read_bytes()
    assert run(["repair", "--yes", str(path)]) == 1
    assert "remove the journal" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert Path(f"{path}.journal").exists()
    assert run(["check", str(path)]) != 0
    assert "remove the journal" in capsys.readouterr().out


def test_a_repair_is_not_taken_back_after_the_image_was_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = base(tmp_path)
    with FileStorage(path, writable=True) as storage:
        storage.truncate(storage.size() - 512)
    assert run(["repair", "--yes", str(path)]) == 0
    write(path, (11 * MIB, b"later" * 1000))
    before = path.read_bytes()
    assert run(["repair", "--undo", f"{path}.undo", str(path)]) == 1
    assert "replaced or changed since" in capsys.readouterr().err
    assert path.read_bytes() == before


# -- resize


@pytest.mark.parametrize("size", [17 * MIB, 300 * MIB, 40 * (1 << 30), 2040 * (1 << 30)])
@pytest.mark.parametrize("blocks", [0, 3])
def test_growing_keeps_all_data(tmp_path: Path, size: int, blocks: int) -> None:
    path = tmp_path / "a.vhd"
    create_dynamic(path, 16 * MIB)
    if blocks:
        path.unlink()
        path = base(tmp_path, name="a.vhd")
    before = content(path)
    resize(path, size)
    clean(path)
    assert info(path)["virtual_size"] == size
    with open_chain(path) as reader:
        assert reader.read(0, 16 * MIB) == before
        assert not any(reader.read(size - MIB, MIB))
    write(path, (size - 4096, b"e" * 4096))
    clean(path)
    assert os.listdir(tmp_path) == ["a.vhd"]


def test_growing_full_image_moves_blocks_out_of_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    create_dynamic(path, 16 * MIB)
    write(path, *[(block * BLOCK, bytes([block + 1]) * BLOCK) for block in range(8)])
    before = content(path)
    resize(path, 2000 * (1 << 30))
    clean(path)
    with open_chain(path) as reader:
        assert reader.read(0, 16 * MIB) == before


@pytest.mark.parametrize("entries", [100, 129, 256, 300, 600, 1100, 2100, 9000])
@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_growing_by_a_few_sectors_leaves_no_leak(tmp_path: Path, kind: str, entries: int) -> None:
    path = tmp_path / "a.vhd"
    create_dynamic(path, 16 * MIB)
    if kind == "differencing":
        snapshot(path, tmp_path / "kid.vhd")
        path = tmp_path / "kid.vhd"
    write(path, *[(block * BLOCK, bytes([block + 1]) * BLOCK) for block in (0, 5)])
    before = content(path)
    resize(path, entries * BLOCK)
    clean(path)
    resize(path, 2 * entries * BLOCK)
    clean(path)
    with open_chain(path) as reader:
        assert reader.read(0, 16 * MIB) == before


@pytest.mark.parametrize("room", [0, 4096, MIB, 3 * MIB, 6 * MIB + 8192])
def test_growing_on_a_full_disk_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    path = tmp_path / "a.vhd"
    create_dynamic(path, 16 * MIB)
    write(path, *[(block * BLOCK, bytes([block + 1]) * BLOCK) for block in range(8)])
    before = path.read_bytes()

    def within(name: str) -> None:
        real = getattr(FileStorage, name)

        def full(self: FileStorage, offset: int, data: bytes | int) -> None:
            length = data if isinstance(data, int) else len(data)
            if self.name == str(path) and offset + length > len(before) + room:
                raise StorageError(self.name, "write", errno.ENOSPC)
            real(self, offset, data)

        monkeypatch.setattr(FileStorage, name, full)

    within("pwrite")
    within("zero")
    with pytest.raises(StorageError):
        resize(path, 2000 * (1 << 30))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.vhd"]


@pytest.mark.parametrize("size", [300 * MIB, 40 * (1 << 30)])
def test_growing_a_child_that_lost_its_batmap_keeps_the_place(tmp_path: Path, size: int) -> None:
    kid = child(base(tmp_path), "kid.vhd", (4096, b"kid" * 100))
    before = content(kid)
    with FileStorage(kid, writable=True) as storage:
        meta = read_metadata(storage)
        assert meta.header is not None
        storage.pwrite(meta.header.bat_end, bytes(512))
    resize(kid, size)
    codes = [one.code for one in check_chain(kid).reports[0].findings if one.severity != "info"]
    assert codes == ["batmap-missing"]
    assert run(["repair", "--yes", str(kid)]) == 0
    clean(kid)
    with open_chain(kid) as reader:
        assert reader.read(0, 16 * MIB) == before


def test_growing_child_keeps_its_parent(tmp_path: Path) -> None:
    kid = child(base(tmp_path), "kid.vhd", (4096, b"kid" * 100))
    before = content(kid)
    resize(kid, 40 * (1 << 30))
    clean(kid)
    with open_chain(kid) as reader:
        assert reader.read(0, 16 * MIB) == before


def test_reserved_room_makes_growing_quick(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    create_dynamic(path, 16 * MIB, reserve_bytes=64 * (1 << 30))
    clean(path)
    write(path, (0, b"x" * 512))
    size = path.stat().st_size
    resize(path, 64 * (1 << 30))
    clean(path)
    assert path.stat().st_size == size


def test_shrinking_over_data_is_refused_and_names_the_place(tmp_path: Path) -> None:
    path = base(tmp_path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=str(16 * MIB - 512)):
        resize(path, 8 * MIB)
    assert path.read_bytes() == before


def test_shrinking_over_zeros_frees_their_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    create_dynamic(path, 16 * MIB)
    write(path, (14 * MIB, bytes(4096)), (0, b"a" * 4096), (12 * MIB, bytes(4096)), (2 * MIB, b"b"))
    resize(path, 5 * MIB)
    clean(path)
    assert info(path)["allocated"] == 2
    assert content(path) == (b"a" * 4096).ljust(2 * MIB, b"\0") + b"b".ljust(3 * MIB, b"\0")


def test_child_is_not_cut_over_what_its_parent_shows(tmp_path: Path) -> None:
    kid = child(base(tmp_path), "kid.vhd", (0, b"x"))
    with pytest.raises(UsageError, match="in use"):
        resize(kid, 8 * MIB)


def test_fixed_disks_grow_and_shrink(tmp_path: Path) -> None:
    path = tmp_path / "f.vhd"
    create_fixed(path, 4 * MIB)
    with path.open("r+b") as file:
        file.write(b"data")
    resize(path, 6 * MIB)
    clean(path)
    assert content(path) == b"data".ljust(6 * MIB, b"\0")
    resize(path, 1 * MIB)
    clean(path)
    assert content(path) == b"data".ljust(MIB, b"\0")
    resize(path, 1 * MIB + 512)
    clean(path)
    assert content(path) == b"data".ljust(MIB + 512, b"\0")
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(b"!")
    with pytest.raises(UsageError, match="in use"):
        resize(path, MIB)


@pytest.mark.parametrize("size", [0, -5, 2041 * (1 << 30)])
def test_impossible_sizes_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(UsageError):
        resize(base(tmp_path), size)


# -- coalesce and fill


def test_coalesce_keeps_what_the_child_shows(tmp_path: Path) -> None:
    parent = base(tmp_path)
    kid = child(parent, "kid.vhd", (100, b"new" * 500), (9 * MIB, b"kid" * 2000))
    before = content(kid)
    assert Path(coalesce(kid).name).name == "base.vhd"
    clean(kid)
    assert content(kid) == before
    kid.unlink()
    clean(parent)
    assert content(parent) == before


def test_whole_chain_goes_into_its_base(tmp_path: Path) -> None:
    one = base(tmp_path)
    two = child(one, "2.vhd", (100, b"two" * 500), (9 * MIB, b"2" * 8192))
    three = child(two, "3.vhd", (9 * MIB, b"3" * 4096))
    before = content(three)
    coalesce(three, whole=True)
    assert content(three) == before
    assert content(one) == before


def test_named_ancestor_gets_all_between(tmp_path: Path) -> None:
    one = base(tmp_path)
    two = child(one, "2.vhd", (0, b"two" * 500))
    three = child(two, "3.vhd", (9 * MIB, b"3" * 4096))
    four = child(three, "4.vhd", (9 * MIB, b"4" * 512))
    before, bottom = content(four), content(one)
    coalesce(four, two)
    assert content(two) == content(four) == before
    assert content(one) == bottom
    with pytest.raises(UsageError, match="not an ancestor"):
        coalesce(two, four)
    with pytest.raises(UsageError, match="no parent"):
        coalesce(one)


def test_larger_child_grows_its_parent(tmp_path: Path) -> None:
    parent = base(tmp_path)
    kid = child(parent, "kid.vhd")
    resize(kid, 64 * MIB)
    write(kid, (63 * MIB, b"end"))
    before = content(kid)
    coalesce(kid)
    clean(parent)
    assert content(parent) == before


@pytest.mark.parametrize("kind", ["raw", "fixed"])
def test_flat_parents_take_a_childs_data(tmp_path: Path, kind: str) -> None:
    parent = tmp_path / "p.vhd"
    if kind == "raw":
        parent.write_bytes(b"p" * 4 * MIB)
    else:
        create_fixed(parent, 4 * MIB)
    kid = tmp_path / "kid.vhd"
    snapshot(parent, kid, raw=kind == "raw")
    write(kid, (100, b"kid" * 500))
    before = content(kid)
    coalesce(kid)
    assert content(kid) == before
    assert parent.read_bytes()[: 4 * MIB] == before


def test_damaged_parent_is_not_written_to(tmp_path: Path) -> None:
    parent = base(tmp_path)
    kid = child(parent, "kid.vhd", (9 * MIB, b"kid"))
    picture = parent.read_bytes()
    table = bytearray(picture)
    table[1536 + 12 : 1536 + 16] = table[1536:1540]
    parent.write_bytes(table)
    with pytest.raises(CorruptImage, match="block-overlap"):
        coalesce(kid)
    assert parent.read_bytes() == bytes(table)


def test_coalesce_refuses_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = base(tmp_path)
    kid = child(parent, "kid.vhd", (9 * MIB, b"kid" * 50000))
    before = parent.read_bytes()
    nearly_full(monkeypatch, tmp_path, 1)
    with pytest.raises(StorageError, match=r"new blocks.*No space left"):
        coalesce(kid)
    assert parent.read_bytes() == before


def test_fill_allocates_every_block(tmp_path: Path) -> None:
    parent = base(tmp_path)
    kid = child(parent, "kid.vhd", (9 * MIB, b"kid"))
    before = content(kid)
    assert fill(kid) == 7
    clean(kid)
    assert info(kid)["allocated"] == info(kid)["blocks"]
    with parent.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"damage" * 1000)
    assert content(kid) == before


# -- scan and the commands


def test_scan_shows_trees(tmp_path: Path) -> None:
    one = base(tmp_path)
    two = child(one, "2.vhd", (0, b"x"))
    child(one, "3.vhd", (0, b"y"))
    child(two, "4.vhd", (0, b"z"))
    base(tmp_path, name="other.vhd")
    (tmp_path / "notes.txt").write_text("no image" * 1000)
    roots = scan([str(tmp_path)])
    names = {
        Path(root.path).name: sorted(Path(c.path).name for c in root.children) for root in roots
    }
    assert names == {"base.vhd": ["2.vhd", "3.vhd"], "other.vhd": []}
    assert [Path(c.path).name for c in roots[0].children[0].children] == ["4.vhd"]


def test_scan_of_loops_and_orphans_ends(tmp_path: Path) -> None:
    one = base(tmp_path)
    two = child(one, "2.vhd", (0, b"x"))
    three = child(two, "3.vhd", (0, b"x"))
    shutil.copy(three, tmp_path / "copy")
    os.replace(tmp_path / "copy", one)
    change_header(two, parent_uuid=UUID(info(three)["footer"]["uuid"]))
    roots = scan([str(tmp_path)])
    assert roots
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    kid = child(base(tmp_path, name="b2.vhd"), "k2.vhd", (0, b"x"))
    kid.rename(lonely / "k2.vhd")
    (tmp_path / "b2.vhd").unlink()
    (root,) = scan([str(lonely)])
    assert root.error is not None
    assert "cannot be found" in root.error


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = base(tmp_path)
    kid = child(parent, "kid.vhd", (0, b"k"))
    assert run(["resize", str(kid), "32m"]) == 0
    assert run(["modify", str(kid), "--hidden"]) == 0
    assert run(["modify", str(kid)]) == 1
    assert run(["coalesce", str(kid)]) == 0
    assert run(["coalesce", str(kid), "--into", str(parent), "--all"]) == 1
    assert run(["fill", str(kid), "-q"]) == 0
    capsys.readouterr()
    assert run(["scan", str(tmp_path)]) == 0
    assert "  " + str(kid) in capsys.readouterr().out
    assert run(["scan", "--json", str(tmp_path)]) == 0
    (root,) = json.loads(capsys.readouterr().out)
    assert root["children"][0]["hidden"] is True
    assert run(["scan", "/nonexistent"]) == 1
    parent.unlink()
    assert run(["scan", str(tmp_path)]) == 2
    for command in ("resize", "coalesce", "fill", "modify", "scan", "repair", "convert"):
        assert run([command, "--help"]) == 0
        assert f"Example: vhdtool {command}" in capsys.readouterr().out


def test_image_of_another_writer_grows_too(tmp_path: Path) -> None:
    """Windows puts the BAT behind a locator, and blocks anywhere."""
    picture = Picture(64 * MIB, BLOCK, batmap=False)
    picture.header = replace(picture.header, bat_offset=8192)
    picture.footer = replace(picture.footer, creator=b"win ", creator_version=0x00060003)
    picture.copy = picture.footer
    picture.end = 159
    picture.blocks[0] = 159
    picture.bits[0] = bytearray(b"\xff" * 512)
    picture.data[0] = b"w" * BLOCK
    picture.end = picture.layout.end_sector(159)
    path = tmp_path / "w.vhd"
    path.write_bytes(picture.draw().getvalue())
    clean(path)
    before = content(path)
    resize(path, 100 * (1 << 30))
    clean(path)
    with open_chain(path) as reader:
        assert reader.read(0, 64 * MIB) == before


def test_a_journal_of_many_changes_is_read_whole(tmp_path: Path) -> None:
    path, journal = tmp_path / "a.vhd", tmp_path / "j"
    create_dynamic(path, 16 * MIB)
    before = path.read_bytes()
    with FileStorage(path, writable=True) as storage:
        changes = [Change("x", 1000 + 2 * one, b"x") for one in range(20_000)]
        write_journal(str(journal), storage, changes)
        for one in changes:
            assert one.data is not None
            storage.pwrite(one.offset, one.data)
        undo(storage, str(journal))
    assert path.read_bytes() == before
