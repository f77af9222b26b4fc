"""Conversion to and from formats that only QEMU knows."""

import os
from pathlib import Path

import pytest

from tests.support.vhd_peers import run as tool
from vhdtool.cli.main import run
from vhdtool.image.chain.open import open_chain

MIB = 1 << 20


def pattern(path: Path, size: int) -> bytes:
    with path.open("wb") as file:
        for place in range(0, size - 70_000, 3 * MIB + 4096):
            file.seek(place)
            file.write(os.urandom(65_536))
        file.truncate(size)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["qcow2", "vhdx"])
def test_vhd_to_and_from_qemus_formats(tmp_path: Path, kind: str) -> None:
    data = pattern(tmp_path / "a.raw", 20 * MIB)
    vhd, other, back = (str(tmp_path / name) for name in ("a.vhd", f"a.{kind}", "b.vhd"))
    assert run(["convert", str(tmp_path / "a.raw"), vhd]) == 0
    assert run(["convert", vhd, other]) == 0
    tool("qemu-img", "compare", "-f", "raw", "-F", kind, tmp_path / "a.raw", other)
    assert run(["convert", other, back]) == 0
    assert run(["check", back]) == 0
    with open_chain(back) as reader:
        assert reader.read(0, reader.size) == data


@pytest.mark.parametrize("size", [20 * MIB, 20 * MIB + 512])
def test_our_conversion_is_qemus(tmp_path: Path, size: int) -> None:
    pattern(tmp_path / "a.raw", size)
    assert run(["convert", str(tmp_path / "a.raw"), str(tmp_path / "ours.vhd")]) == 0
    tool("qemu-img", "compare", "-f", "raw", "-F", "vpc", tmp_path / "a.raw", tmp_path / "ours.vhd")
    tool(
        "qemu-img",
        "convert",
        "-O",
        "vpc",
        "-o",
        "force_size=on",
        tmp_path / "a.raw",
        tmp_path / "theirs.vhd",
    )
    assert run(["convert", str(tmp_path / "theirs.vhd"), str(tmp_path / "b.raw")]) == 0
    assert (tmp_path / "b.raw").read_bytes() == (tmp_path / "a.raw").read_bytes()


def test_broken_qcow2_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.qcow2").write_bytes(b"QFI\xfb" + bytes(600))
    assert run(["convert", str(tmp_path / "a.qcow2"), str(tmp_path / "a.vhd")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vhdtool: {tmp_path / 'a.qcow2'}: ")
    assert os.listdir(tmp_path) == ["a.qcow2"]
