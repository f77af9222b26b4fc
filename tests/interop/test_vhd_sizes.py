"""After every change QEMU, dissect and we find the same size in an image, whoever created it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from dissect.hypervisor.disk.vhd import VHD

from tests.support.vhd_peers import qemu_create, qemu_write, run
from vhdtool.cli.main import run as vhdtool
from vhdtool.cli.vhd_util.main import run as vhd_util
from vhdtool.image.chain.check import check_chain
from vhdtool.image.chain.info import info
from vhdtool.image.chain.open import open_chain
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage
from vhdtool.vhd.creators import QEMU_BY_SIZE
from vhdtool.vhd.geometry import Geometry

MIB, GIB = 1 << 20, 1 << 30
SIZES = ["40m", "63m", "64m", "500m", "3g", "31g", "40g", "127g", "130g", "2040g"]
BY_GEOMETRY = [b"qemu", b"vpc ", b"vs  ", b"vbox", b"wa\0\0", b"abcd"]


def sizes(path: Path) -> set[int]:
    """The sizes that readers find in an image; one when they agree."""
    shown = json.loads(run("qemu-img", "info", "-f", "vpc", "--output=json", path))
    with path.open("rb") as file:
        dissected = VHD(file).size
    found = {shown["virtual-size"], dissected}
    report = check_chain(path).reports[0]
    assert not [one for one in report.findings if one.code in ("size-disagrees", "geometry")]
    with open_chain(path) as reader:
        return found | {reader.size}


def number(size: str) -> int:
    return int(size[:-1]) * {"m": MIB, "g": GIB}[size[-1]]


def made_by(creator: bytes, path: Path, fixed: bool = False) -> None:
    """An image of QEMU's, in which the creator's code is another one."""
    kind = "subformat=fixed" if fixed else "subformat=dynamic"
    run("qemu-img", "create", "-q", "-f", "vpc", "-o", kind, path, "20m")
    with FileStorage(path, writable=True) as storage:
        raw = replace(read_metadata(storage).footer, creator=creator).pack()
        storage.pwrite(storage.size() - 512, raw)
        if not fixed:
            storage.pwrite(0, raw)


def virtual_box(path: Path, fixed: bool = False) -> None:
    """An image of 101 MiB as VirtualBox creates it: the geometry has fewer bytes."""
    assert vhdtool(["create", "-q", str(path), "101m"] + ["--fixed"] * fixed) == 0
    with FileStorage(path, writable=True) as storage:
        raw = replace(read_metadata(storage).footer, creator=b"vbox").pack()
        storage.pwrite(storage.size() - 512, raw)
        if not fixed:
            storage.pwrite(0, raw)


@pytest.mark.parametrize("size", SIZES)
def test_a_resized_image_of_qemu_has_the_size_asked_for(tmp_path: Path, size: str) -> None:
    path = tmp_path / "a.vhd"
    qemu_create(path, "20m")
    qemu_write(path, (7, 3 * MIB, MIB))
    assert vhdtool(["resize", "-q", str(path), size]) == 0
    assert sizes(path) == {number(size)}
    run("qemu-io", "-f", "vpc", "-c", f"read -P 7 {3 * MIB} {MIB}", path)
    assert vhdtool(["resize", "-q", str(path), "20m"]) == 0
    assert sizes(path) == {20 * MIB}


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("creator", BY_GEOMETRY)
def test_whoever_created_the_image(tmp_path: Path, creator: bytes, fixed: bool) -> None:
    path = tmp_path / "a.vhd"
    made_by(creator, path, fixed)
    for size in ("101m", "101m", "30m"):
        assert vhdtool(["resize", "-q", str(path), size]) == 0
        assert sizes(path) == {number(size)}


def test_the_creator_stays_where_the_geometry_has_the_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.vhd"
    made_by(b"vpc ", path)
    size = Geometry.for_size(200 * MIB).size
    assert vhdtool(["resize", str(path), str(size)]) == 0
    assert info(path)["footer"]["creator"] == "vpc "
    assert "the creator is" not in capsys.readouterr().out
    assert vhdtool(["resize", str(path), str(size + 512)]) == 0
    assert info(path)["footer"]["creator"] == QEMU_BY_SIZE.decode()
    said = capsys.readouterr().out
    assert "the creator is QEMU with force_size from now on, was Microsoft Virtual PC" in said
    assert str(size) in said


@pytest.mark.parametrize("fixed", [False, True])
def test_the_same_size_again_makes_readers_agree_that_did_not(tmp_path: Path, fixed: bool) -> None:
    """As in an image that another tool resized, or VirtualBox created."""
    path = tmp_path / "a.vhd"
    virtual_box(path, fixed)
    shown = json.loads(run("qemu-img", "info", "-f", "vpc", "--output=json", path))
    assert shown["virtual-size"] < 101 * MIB
    assert vhdtool(["resize", "-q", str(path), "101m"]) == 0
    assert sizes(path) == {101 * MIB}


@pytest.mark.parametrize("fixed", [False, True])
def test_a_parent_that_coalescing_grows(tmp_path: Path, fixed: bool) -> None:
    path, child = tmp_path / "a.vhd", tmp_path / "child.vhd"
    made_by(b"qemu", path, fixed)
    assert vhdtool(["create", "-q", "--parent", str(path), str(child), "101m"]) == 0
    assert vhdtool(["coalesce", "-q", str(child)]) == 0
    assert sizes(path) == {101 * MIB}


@pytest.mark.parametrize("creator", BY_GEOMETRY)
def test_what_is_made_of_such_an_image(tmp_path: Path, creator: bytes) -> None:
    """Copies and children have the size that the size field of the original says."""
    path = tmp_path / "a.vhd"
    made_by(creator, path)
    with open_chain(path) as reader:
        size = reader.size
    names = [str(tmp_path / name) for name in ("copy.vhd", "fixed.vhd", "snap.vhd", "child.vhd")]
    assert vhdtool(["convert", "-q", str(path), names[0]]) == 0
    assert vhdtool(["convert", "-q", "--fixed", str(path), names[1]]) == 0
    assert vhdtool(["snapshot", "-q", str(path), names[2]]) == 0
    assert vhd_util(["snapshot", "-n", names[3], "-p", str(path)]) == 0
    for name in names[:2]:
        assert sizes(Path(name)) == {size}
    for name in names[2:]:
        with open_chain(name) as reader:
            assert reader.size == size
    for words in (
        ["modify", "-q", names[0], "--hidden"],
        ["modify", "-q", str(path), "--timestamp", "1000000000"],
    ):
        assert vhdtool(words) == 0
    assert vhd_util(["modify", "-n", str(path), "-s", str(40 * MIB)]) == 0
    assert sizes(path) == {size}
    assert sizes(Path(names[0])) == {size}


@pytest.mark.parametrize("words", [["convert", "a.vhd", "b.vhd"], ["snapshot", "a.vhd", "b.vhd"]])
def test_which_of_two_sizes_counts_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    virtual_box(Path("a.vhd"))
    assert vhdtool(words) == 0
    assert f"101 MiB ({101 * MIB} bytes) by its size field" in capsys.readouterr().err
    with open_chain("b.vhd") as reader:
        assert reader.size == 101 * MIB


@pytest.mark.parametrize("size", [*SIZES, "64511s", "64513s", "1000001"])
def test_what_is_created(tmp_path: Path, size: str) -> None:
    path = tmp_path / "a.vhd"
    assert vhdtool(["create", "-q", str(path), size]) == 0
    assert len(sizes(path)) == 1
    assert vhd_util(["create", "-n", str(path), "-s", "101"]) == 0
    assert vhd_util(["resize", "-n", str(path), "-s", "333", "-j", str(tmp_path / "j")]) == 0
    assert len(sizes(path)) == 1
