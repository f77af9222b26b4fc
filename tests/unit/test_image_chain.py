"""Children and their parents: creating, finding, reading and checking whole chains."""

import json
import os
import shutil
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.image_tools import change_header, write
from vhdtool.cli.main import run
from vhdtool.errors import CorruptImage, ImageExists, UsageError
from vhdtool.image.chain.check import check_chain
from vhdtool.image.chain.locate_parent import ParentMismatch, ParentMissing, locator_paths
from vhdtool.image.chain.open import ParentLoop, open_chain
from vhdtool.image.create.differencing import create_child, parent_facts, snapshot
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.image.journal.new_file import new_file
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage
from vhdtool.vhd.header import Header

MIB = 1 << 20


def chain(folder: Path, depth: int = 3) -> list[Path]:
    """Images from the oldest to the youngest; each has a sector of its own."""
    paths = [folder / "0.vhd"]
    create_dynamic(paths[0], 8 * MIB)
    write(paths[0], (0, b"0" * 512))
    for level in range(1, depth):
        paths.append(folder / f"{level}.vhd")
        snapshot(paths[-2], paths[-1])
        write(paths[-1], (level * 512, str(level).encode() * 512))
    return paths


def codes(path: Path) -> list[str]:
    return [finding.code for finding in check_chain(path).links if finding.severity != "info"]


def test_child_shows_all_layers(tmp_path: Path) -> None:
    youngest = chain(tmp_path)[-1]
    with open_chain(youngest) as reader:
        assert reader.read(0, 2048) == b"0" * 512 + b"1" * 512 + b"2" * 512 + bytes(512)
        assert [Path(layer.name).name for layer in reader.layers] == ["2.vhd", "1.vhd", "0.vhd"]
    assert check_chain(youngest).exit_code == 0


def test_three_locators_are_written_for_three_readers(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "children").mkdir()
    parent, child = tmp_path / "base" / "p.vhd", tmp_path / "children" / "c.vhd"
    create_dynamic(parent, 8 * MIB)
    snapshot(parent, child)
    with FileStorage(child) as storage:
        header = read_metadata(storage).header
        assert header is not None
        assert locator_paths(storage, header) == [
            ("MacX", "../base/p.vhd"),
            ("W2ku", str(parent)),
            ("W2ru", "../base/p.vhd"),
        ]
        assert header.parent_name_text == "p.vhd"
        raw = [storage.pread(one.offset, one.length) for one in header.locators[:3]]
    assert raw[0] == b"file://../base/p.vhd"
    assert raw[2].decode("utf-16-le") == "..\\base\\p.vhd"


def test_sibling_paths_start_with_a_dot(tmp_path: Path) -> None:
    child = chain(tmp_path, 2)[-1]
    with FileStorage(child) as storage:
        header = read_metadata(storage).header
        assert header is not None
        first, third = header.locators[0], header.locators[2]
        assert storage.pread(first.offset, first.length) == b"file://./0.vhd"
        assert storage.pread(third.offset, third.length).decode("utf-16-le") == ".\\0.vhd"


def test_chain_that_moves_together_is_found(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    chain(tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert check_chain(tmp_path / "new" / "2.vhd").exit_code == 0


def test_a_link_to_a_child_finds_the_parent_beside_the_child(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    child = chain(tmp_path / "real", 2)[-1]
    (tmp_path / "link.vhd").symlink_to(child)
    assert check_chain(tmp_path / "link.vhd").exit_code == 0


def test_name_in_the_header_is_enough(tmp_path: Path) -> None:
    child = chain(tmp_path, 2)[-1]
    change_header(child, locators=Header(1).locators)
    assert check_chain(child).exit_code == 0
    windows = "C:\\vm\\0.vhd".encode("utf-16-be").ljust(512, b"\0")
    change_header(child, parent_name=windows)
    assert check_chain(child).exit_code == 0


@pytest.mark.parametrize("name", ["0.vhd", "..\\x\\0.vhd", "C:\\vm\\0.vhd", "\ufeff0.vhd"])
def test_a_name_in_little_endian_is_read_as_such(tmp_path: Path, name: str) -> None:
    """As writers have it that took their machine's order, blktap 0.1 among them."""
    (tmp_path / "x").mkdir()
    child = chain(tmp_path / "x", 2)[-1]
    raw = name.encode("utf-16-le").ljust(512, b"\0")
    change_header(child, locators=Header(1).locators, parent_name=raw)
    assert check_chain(child).exit_code == 0
    assert Header(1, parent_name=raw).parent_name_text == name.removeprefix("\ufeff")


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_a_name_in_ascii_is_read_in_one_order_only(order: str) -> None:
    """So that a message names no path of characters that nobody wrote."""
    raw = "base.vhd".encode(order).ljust(512, b"\0")
    assert Header(1, parent_name=raw).parent_names == ["base.vhd"]


def test_a_name_without_ascii_is_tried_in_both_orders(tmp_path: Path) -> None:
    base, child = chain(tmp_path, 2)
    base.rename(tmp_path / "\u57fa\u790e")
    for order in ("utf-16-le", "utf-16-be"):
        raw = "\u57fa\u790e".encode(order).ljust(512, b"\0")
        change_header(child, locators=Header(1).locators, parent_name=raw)
        assert check_chain(child).exit_code == 0
    assert Header(1, parent_name=raw).parent_name_text == "\u57fa\u790e"
    assert Header(1).parent_names == []


def test_a_parent_in_another_case_is_found_by_its_uuid(tmp_path: Path) -> None:
    (tmp_path / "Folder").mkdir()
    base, child = chain(tmp_path / "Folder", 2)
    base.rename(tmp_path / "Folder" / "BASE.VHD")
    raw = "base.vhd".encode("utf-16-be").ljust(512, b"\0")
    change_header(child, locators=Header(1).locators, parent_name=raw)
    assert check_chain(child).exit_code == 0
    raw = "..\\FOLDER\\Base.vhd".encode("utf-16-be").ljust(512, b"\0")
    change_header(child, parent_name=raw)
    assert check_chain(child).exit_code == 0
    # The file with the very name is another disk; of two that are alike the uuid takes the right.
    create_dynamic(tmp_path / "Folder" / "base.vhd", 8 * MIB)
    create_dynamic(tmp_path / "Folder" / "Base.vhd", 8 * MIB)
    with open_chain(child) as reader:
        assert reader.layers[1].name == str(tmp_path / "Folder" / "BASE.VHD")
    (tmp_path / "Folder" / "BASE.VHD").unlink()
    assert codes(child) == ["parent-mismatch"]


def test_a_raw_parent_in_another_case_is_not_guessed(tmp_path: Path) -> None:
    raw, child = tmp_path / "base.raw", tmp_path / "child.vhd"
    raw.write_bytes(bytes(8 * MIB))
    snapshot(raw, child, raw=True)
    raw.rename(tmp_path / "BASE.RAW")
    assert codes(child) == ["parent-missing"]


def test_missing_parent_is_corrupt(tmp_path: Path) -> None:
    paths = chain(tmp_path)
    paths[0].unlink()
    assert codes(paths[2]) == ["parent-missing"]
    assert check_chain(paths[2]).exit_code == 2
    assert check_chain(paths[2], parents=False).exit_code == 0
    with pytest.raises(ParentMissing, match=r"0\.vhd"):
        open_chain(paths[2])


def test_another_disk_in_the_parents_place_is_corrupt(tmp_path: Path) -> None:
    paths = chain(tmp_path)
    create_dynamic(paths[1], 8 * MIB, overwrite=True)
    assert codes(paths[2]) == ["parent-mismatch"]
    with pytest.raises(ParentMismatch, match="not its parent"):
        open_chain(paths[2])


def test_file_that_is_no_vhd_in_the_parents_place_is_corrupt(tmp_path: Path) -> None:
    paths = chain(tmp_path, 2)
    paths[0].write_bytes(b"x" * 5000)
    assert codes(paths[1]) == ["parent-mismatch"]


def test_loop_is_corrupt_and_ends(tmp_path: Path) -> None:
    paths = chain(tmp_path)
    shutil.copy(paths[2], tmp_path / "copy")
    os.replace(tmp_path / "copy", paths[0])
    with FileStorage(paths[2]) as storage:
        own = read_metadata(storage).footer.uuid
    change_header(paths[1], parent_uuid=own)
    assert codes(paths[1]) == ["parent-loop"]
    assert check_chain(paths[1]).exit_code == 2
    with pytest.raises(ParentLoop, match="returns to"):
        open_chain(paths[1])


def test_damage_in_a_parent_counts(tmp_path: Path) -> None:
    paths = chain(tmp_path)
    os.truncate(paths[0], paths[0].stat().st_size - 512)
    assert check_chain(paths[2]).exit_code == 3
    with FileStorage(paths[0], writable=True) as storage:
        storage.pwrite(1536, bytes(4))
    assert check_chain(paths[2]).exit_code == 2


def test_deep_chain_is_named(tmp_path: Path) -> None:
    create_dynamic(tmp_path / "0.vhd", 1 * MIB)
    for level in range(1, 31):
        facts = parent_facts(tmp_path / f"{level - 1}.vhd")
        create_child(tmp_path / f"{level}.vhd", facts)
    assert codes(tmp_path / "29.vhd") == []
    assert codes(tmp_path / "30.vhd") == ["chain-too-deep"]
    with pytest.raises(UsageError, match="31 images"):
        snapshot(tmp_path / "30.vhd", tmp_path / "x.vhd", skip_empty=False)
    assert not (tmp_path / "x.vhd").exists()


def test_parents_time_stamp_is_information(tmp_path: Path) -> None:
    paths = chain(tmp_path, 2)
    os.utime(paths[0], (2_000_000_000, 2_000_000_000))
    report = check_chain(paths[1])
    assert [one.code for one in report.links] == ["parent-time"]
    assert report.exit_code == 0


def test_raw_parent(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"raw!" * 256)
    child = tmp_path / "c.vhd"
    snapshot(tmp_path / "disk.raw", child, raw=True)
    write(child, (512, b"c" * 512))
    with open_chain(child) as reader:
        assert reader.size == 1024
        assert reader.read(0, 1024) == b"raw!" * 128 + b"c" * 512
    assert check_chain(child).exit_code == 0


def test_fixed_parent(tmp_path: Path) -> None:
    create_fixed(tmp_path / "f.vhd", 4 * MIB)
    assert check_chain(tmp_path / "f.vhd").exit_code == 0
    with (tmp_path / "f.vhd").open("r+b") as file:
        file.write(b"fixed")
    snapshot(tmp_path / "f.vhd", tmp_path / "c.vhd")
    with open_chain(tmp_path / "c.vhd") as reader:
        assert reader.read(0, 8) == b"fixed\0\0\0"


def test_snapshot_passes_over_an_empty_child_but_keeps_its_size(tmp_path: Path) -> None:
    create_dynamic(tmp_path / "0.vhd", 4 * MIB)
    write(tmp_path / "0.vhd", (0, b"x" * 512))
    create_child(tmp_path / "1.vhd", parent_facts(tmp_path / "0.vhd"), 8 * MIB)
    footer, real = snapshot(tmp_path / "1.vhd", tmp_path / "2.vhd")
    assert Path(real).name == "0.vhd"
    assert footer.current_size == 8 * MIB
    _, real = snapshot(tmp_path / "1.vhd", tmp_path / "3.vhd", skip_empty=False)
    assert Path(real).name == "1.vhd"


def test_children_are_never_smaller(tmp_path: Path) -> None:
    create_dynamic(tmp_path / "0.vhd", 4 * MIB)
    facts = parent_facts(tmp_path / "0.vhd")
    with pytest.raises(UsageError, match="smaller"):
        create_child(tmp_path / "1.vhd", facts, 2 * MIB)
    with pytest.raises(UsageError, match="own chain"):
        create_child(tmp_path / "0.vhd", facts, overwrite=True)
    assert os.listdir(tmp_path) == ["0.vhd"]


def test_new_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def interrupted() -> None:
        with new_file(path) as storage:
            storage.pwrite(0, b"half")
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ImageExists, match="another process"), new_file(path):
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["x"]


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(ImageExists):
        create_dynamic(tmp_path / "link", MIB)


def test_uuid_of_the_parent_decides_between_candidates(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    paths = chain(tmp_path / "a", 2)
    moved = tmp_path / "a" / "moved"
    moved.mkdir()
    shutil.copy(paths[1], moved / "1.vhd")
    create_dynamic(moved / "0.vhd", MIB, uuid=uuid4())
    with open_chain(moved / "1.vhd") as reader:
        assert reader.layers[1].name == str(paths[0])


def test_info_and_check_show_the_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = chain(tmp_path)
    assert run(["info", "--json", str(paths[2])]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [Path(one["image"]).name for one in data["chain"]] == ["1.vhd", "0.vhd"]
    assert run(["info", str(paths[2])]) == 0
    assert "parent 2" in capsys.readouterr().out
    paths[0].unlink()
    assert run(["info", str(paths[2])]) == 0
    assert "cannot be found" in capsys.readouterr().out
    assert run(["check", "--json", str(paths[2])]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "corrupt"
    assert report["findings"][0]["code"] == "parent-missing"
    assert run(["map", str(paths[2])]) == 1
    assert "modify --parent" in capsys.readouterr().err


def test_create_and_snapshot_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, child, other = (str(tmp_path / name) for name in ("b.vhd", "c.vhd", "d.vhd"))
    assert run(["create", base, "8m"]) == 0
    assert run(["snapshot", base, child]) == 0
    assert run(["create", "--parent", child, other, "16m"]) == 0
    assert run(["check", other]) == 0
    assert run(["create", "--fixed", str(tmp_path / "f.vhd"), "1m"]) == 0
    assert run(["snapshot", base, child]) == 1
    assert run(["snapshot", str(tmp_path / "none"), str(tmp_path / "e.vhd")]) == 1
    assert run(["create", "--fixed", "--parent", base, str(tmp_path / "e.vhd"), "1m"]) == 1
    assert run(["create", str(tmp_path / "e.vhd")]) == 1
    assert not (tmp_path / "e.vhd").exists()
    capsys.readouterr()
    assert run(["create", "--block-size", "512k", str(tmp_path / "s.vhd"), "1m"]) == 0
    assert "real tapdisk" in capsys.readouterr().err


def test_reading_a_broken_header_in_a_chain_raises(tmp_path: Path) -> None:
    paths = chain(tmp_path, 2)
    with FileStorage(paths[0], writable=True) as storage:
        storage.pwrite(600, b"!")
    with pytest.raises(CorruptImage, match="checksum"):
        open_chain(paths[1])
