"""docs/rescue.md: its commands of vhdtool do as printed what the page says."""

import re
import shlex
from pathlib import Path

import pytest

from tests.unit.test_image_lost_bat import STATED, disk
from vhdtool.cli.main import run
from vhdtool.vhd.units import SECTOR

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rescue.md").read_text(encoding="utf-8")
HEADER, BAT = slice(SECTOR, 3 * SECTOR), slice(3 * SECTOR, 4 * SECTOR)
ENTRY = slice(3 * SECTOR, 3 * SECTOR + 4)
DAMAGE = {"3": [HEADER], "4": [ENTRY], "5": [BAT]}
"""What is lost in a section of the page; nothing in the others."""
CODES = {"2": [0, 0], "3": [3, 0, 0], "4": [2], "5": [2], "9": [0, 0]}


def commands(section: str) -> list[list[str]]:
    (text,) = re.findall(rf"\n## {section}\. .*?(?=\n## |\Z)", PAGE, re.DOTALL)
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("vhdtool ")]


def test_sections_with_commands_are_tried() -> None:
    assert {number for number in re.findall(r"\n## (\d+)\. ", PAGE) if commands(number)} == set(
        CODES
    )


@pytest.mark.parametrize("section", sorted(CODES))
def test_commands_exit_as_the_page_says(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sound = disk(STATED).draw().getvalue()
    raw = bytearray(sound)
    for lost in DAMAGE.get(section, []):
        raw[lost] = bytes(lost.stop - lost.start)
    Path("broken.vhd").write_bytes(raw)
    Path("disk.raw").write_bytes(bytes(1 << 20))
    if section == "4":
        Path("disk.raw").unlink()
    assert [run(words[1:]) for words in commands(section)] == CODES[section]
    # Only the section about the header writes to the image, and brings it back.
    assert Path("broken.vhd").read_bytes() == (sound if section == "3" else raw)
    assert run(["repair", "broken.vhd", "--undo", "broken.vhd.undo"]) == (section != "3")
