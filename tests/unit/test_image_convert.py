"""Conversion: the same bytes, the input's size, holes kept, nothing half done."""

import os
import random
from pathlib import Path

import pytest

from tests.support.vhd_images import Picture
from vhdtool.cli.main import run
from vhdtool.errors import CorruptImage, ImageExists
from vhdtool.image.chain.check import check_chain
from vhdtool.image.chain.detect import guess_input, guess_output
from vhdtool.image.chain.info import info
from vhdtool.image.chain.open import open_chain
from vhdtool.image.chain.ordered_workers import for_each
from vhdtool.image.create.convert import convert
from vhdtool.image.create.differencing import snapshot

MIB = 1 << 20


def raw_disk(path: Path, size: int, seed: int = 1) -> bytes:
    """A sparse raw disk: data, zeros that are written, and holes."""
    dice = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(12):
            file.seek(dice.randrange(size // 4096 + 1) * 4096)
            file.write(dice.randbytes(dice.choice([512, 4096, 70000])))
        file.seek(size // 2)
        file.write(bytes(100_000))
        file.truncate(size)
    return path.read_bytes()


def content(path: Path) -> bytes:
    with open_chain(path) as reader:
        return reader.read(0, reader.size)


@pytest.mark.parametrize("size", [9 * MIB, 9 * MIB + 512, 5 * MIB + 100, 300])
@pytest.mark.parametrize("target", ["dynamic", "fixed"])
def test_raw_to_vhd_and_back(tmp_path: Path, size: int, target: str) -> None:
    raw, vhd, back = (tmp_path / name for name in ("a.raw", "a.vhd", "b.raw"))
    data = raw_disk(raw, size).ljust(-(-size // 512) * 512, b"\0")
    with open_chain(raw, raw=True) as reader:
        assert convert(reader, vhd, target) == len(data)  # type: ignore[arg-type]
    assert check_chain(vhd).reports[0].findings == []
    assert info(vhd)["virtual_size"] == len(data)
    assert content(vhd) == data
    with open_chain(vhd) as reader:
        convert(reader, back, "raw")
    assert back.read_bytes() == data


@pytest.mark.parametrize("block", [512 << 10, 2 * MIB, 4 * MIB])
@pytest.mark.parametrize("batmap", [True, False])
def test_every_block_size(tmp_path: Path, block: int, batmap: bool) -> None:
    data = raw_disk(tmp_path / "a.raw", 9 * MIB)
    with open_chain(tmp_path / "a.raw", raw=True) as reader:
        convert(reader, tmp_path / "a.vhd", "dynamic", block, batmap)
    assert check_chain(tmp_path / "a.vhd").reports[0].findings == []
    assert content(tmp_path / "a.vhd") == data


def test_zeros_and_holes_take_no_block(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"x" * 512 + bytes(20 * MIB) + b"y" * 512)
    with open_chain(tmp_path / "a.raw", raw=True) as reader:
        convert(reader, tmp_path / "a.vhd", "dynamic")
    assert info(tmp_path / "a.vhd")["allocated"] == 2
    assert (tmp_path / "a.vhd").stat().st_blocks * 512 < MIB


def test_raw_output_is_sparse(tmp_path: Path) -> None:
    picture = Picture(64 * MIB, 2 * MIB)
    picture.add(20, (0, 8))
    (tmp_path / "a.vhd").write_bytes(picture.draw().getvalue())
    with open_chain(tmp_path / "a.vhd") as reader:
        convert(reader, tmp_path / "a.raw", "raw")
    assert (tmp_path / "a.raw").stat().st_blocks * 512 < MIB
    assert (tmp_path / "a.raw").stat().st_size == 64 * MIB


def test_output_is_the_same_every_time(tmp_path: Path) -> None:
    raw_disk(tmp_path / "a.raw", 40 * MIB)
    maps = []
    for name in ("1.vhd", "2.vhd"):
        with open_chain(tmp_path / "a.raw", raw=True) as reader:
            convert(reader, tmp_path / name, "dynamic")
        with open_chain(tmp_path / name) as reader:
            maps.append(list(reader.merged()))
    assert maps[0] == maps[1]


def test_chain_is_flattened_and_compacted(tmp_path: Path) -> None:
    parent = Picture(8 * MIB, 512 << 10)
    parent.add(0, fill=0x50)
    parent.add(5, fill=0)
    (tmp_path / "p.vhd").write_bytes(parent.draw().getvalue())
    snapshot(tmp_path / "p.vhd", tmp_path / "c.vhd")
    with open_chain(tmp_path / "c.vhd") as reader:
        convert(reader, tmp_path / "flat.vhd", "dynamic")
    assert content(tmp_path / "flat.vhd") == content(tmp_path / "c.vhd")
    assert info(tmp_path / "flat.vhd")["type"] == "dynamic"
    assert info(tmp_path / "flat.vhd")["allocated"] == 1


def test_damaged_input_leaves_no_output(tmp_path: Path) -> None:
    picture = Picture(8 * MIB, 512 << 10)
    picture.add(0)
    picture.blocks[3] = 1 << 30
    (tmp_path / "a.vhd").write_bytes(picture.draw().getvalue())
    for target in ("raw", "dynamic"):
        with pytest.raises(CorruptImage), open_chain(tmp_path / "a.vhd") as reader:
            convert(reader, tmp_path / "out", target)
        # Damage that appears only while the copy runs.
        with (
            open_chain(tmp_path / "a.vhd", metadata_only=True) as reader,
            pytest.raises(CorruptImage),
        ):
            convert(reader, tmp_path / "out", target)
    assert os.listdir(tmp_path) == ["a.vhd"]


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    raw_disk(tmp_path / "a.raw", MIB)
    (tmp_path / "a.vhd").write_bytes(b"precious")
    with open_chain(tmp_path / "a.raw", raw=True) as reader:
        with pytest.raises(ImageExists):
            convert(reader, tmp_path / "a.vhd", "dynamic")
        assert (tmp_path / "a.vhd").read_bytes() == b"precious"
        convert(reader, tmp_path / "a.vhd", "dynamic", overwrite=True)


def test_formats_are_guessed(tmp_path: Path) -> None:
    picture = Picture(MIB, 512 << 10).draw().getvalue()
    for name, start, kind in (
        ("a", picture, "vpc"),
        ("b", b"QFI\xfb" + bytes(600), "qcow2"),
        ("c", b"vhdxfile" + bytes(600), "vhdx"),
        ("d", bytes(600), "raw"),
        ("e", b"", "raw"),
    ):
        (tmp_path / name).write_bytes(start)
        assert guess_input(str(tmp_path / name)) == kind
    assert [guess_output(f"x{end}") for end in (".VHD", ".img", ".qcow2")] == [
        "vpc",
        "raw",
        "qcow2",
    ]


def test_convert_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, vhd = str(tmp_path / "a.raw"), str(tmp_path / "a.vhd")
    data = raw_disk(tmp_path / "a.raw", 3 * MIB)
    assert run(["convert", raw, vhd]) == 0
    assert run(["check", vhd]) == 0
    assert run(["convert", vhd, str(tmp_path / "b.img")]) == 0
    assert (tmp_path / "b.img").read_bytes() == data
    capsys.readouterr()
    assert run(["convert", raw, vhd]) == 1
    assert "--force" in capsys.readouterr().err
    assert run(["convert", raw, str(tmp_path / "noname")]) == 1
    assert "-O" in capsys.readouterr().err
    assert run(["convert", "-f", "vpc", raw, str(tmp_path / "c.vhd")]) == 1
    assert run(["convert", "-O", "vmdk", raw, vhd]) == 1


def test_first_error_of_a_worker_stops_all() -> None:
    seen = []

    def work(item: int) -> None:
        if item == 5:
            raise KeyError(item)
        seen.append(item)

    with pytest.raises(KeyError):
        for_each(iter(range(1000)), lambda: work, threads=3)
    assert len(seen) < 1000
