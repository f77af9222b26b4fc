"""Our vhd-util and blktap's own in turns over one life of a disk, each accepting the other's work.

Debian has no vhd-util: this runs where VHD_UTIL names one that was built from blktap's sources.
"""

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import vhdtool
from vhdtool.cli.vhd_util.main import run

REAL = os.environ.get("VHD_UTIL", "")
MIB = 1 << 20
STEP = 4096
pytestmark = pytest.mark.skipif(not REAL, reason="VHD_UTIL names no vhd-util of blktap's")
Tool = Callable[..., None]


def ours(*words: object) -> None:
    assert run([str(word) for word in words]) == 0, words


def theirs(*words: object) -> None:
    done = subprocess.run([REAL, *map(str, words)], capture_output=True, check=False)
    assert done.returncode == 0, (words, done.stdout[-300:])


class Life:
    """A chain of images and what its top must show."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = random.Random(seed)
        self.chain = [folder / "0.vhd"]
        size = self.dice.choice([10, 20, 30]) * MIB
        self.model = bytearray(size)
        self.tool()("create", "-n", self.chain[0], "-s", size // MIB)

    def tool(self) -> Tool:
        return self.dice.choice([ours, theirs])

    def write(self) -> None:
        with vhdtool.open(self.chain[-1], writable=True) as image:
            for _ in range(3):
                data = self.dice.randbytes(self.dice.choice([512, 4096, 70 << 10, 2 * MIB]))
                at = self.dice.randrange((len(self.model) - len(data)) // 512 + 1) * 512
                image.write(at, data)
                self.model[at : at + len(data)] = data

    def snapshot(self) -> None:
        if len(self.chain) < 4:
            child = self.folder / f"{len(os.listdir(self.folder))}.vhd"
            self.tool()("snapshot", "-e", "-n", child, "-p", self.chain[-1])
            self.chain.append(child)

    def coalesce(self) -> None:
        if len(self.chain) > 1:
            self.tool()("coalesce", "-n", self.chain[-1])
            self.chain.pop()

    def resize(self) -> None:
        if len(self.chain) == 1:
            more = self.dice.choice([2, 10, 300])
            size = len(self.model) // MIB + more
            self.tool()("resize", "-n", self.chain[0], "-s", size, "-j", self.folder / "journal")
            self.model += bytes(more * MIB)

    def hide(self) -> None:
        value = self.dice.choice([0, 1])
        self.tool()("set", "-n", self.chain[-1], "-f", "hidden", "-v", value)

    def repair(self) -> None:
        self.tool()("repair", "-n", self.chain[-1])

    def judge(self) -> None:
        """Both tools call every image valid, and both read what the model has."""
        for path in self.chain:
            theirs("check", "-n", path)
            found = vhdtool.check(path, parents=False).reports[0].findings
            codes = {one.code for one in found if one.severity != "info"}
            # Blocks that made room for larger tables leave a hole.
            assert codes <= {"leaked-block"}, found
        with vhdtool.open(self.chain[-1]) as image:
            assert image.read(0, image.size) == self.model
        if len(self.model) <= 60 * MIB:
            for first in range(0, len(self.model) // 512, STEP):
                count = min(STEP, len(self.model) // 512 - first)
                words = ["read", "-n", str(self.chain[-1]), "-r", str(first), "-c", str(count)]
                shown = subprocess.run([REAL, *words], capture_output=True, check=True).stdout
                assert shown == self.model[first * 512 : (first + count) * 512]


@pytest.mark.parametrize("seed", range(4))
def test_both_tools_in_one_life(tmp_path: Path, seed: int) -> None:
    life = Life(tmp_path, seed)
    acts = [life.write] * 3
    acts += [life.snapshot, life.coalesce, life.resize, life.hide, life.repair]
    for _ in range(8):
        life.dice.choice(acts)()
        life.judge()
