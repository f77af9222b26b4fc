"""kill -9 of a shim anywhere: `python -m tests.interop.shim_chaos --kills 500 [--seed 1]`.

A client writes, flushes, pauses and switches until the process dies, at one of its kill points
(VHDTOOL_FAILPOINT) or at any moment. What was acknowledged must be there, the image must be
consistent or merely unclean, and the next process takes over without anybody's help.
"""

import argparse
import random
import tempfile
import threading
from collections import Counter
from pathlib import Path

from tests.support.arguments import at_least_one
from tests.support.nbd_raw import Client
from tests.support.shim_process import ShimProcess
from tests.support.shims import plain_bytes
from vhdtool.image.check.image import check
from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.disk.dynamic import DynamicDisk
from vhdtool.storage import FileStorage
from vhdtool.tapdisk.failpoint import NAMES

ROOT = Path(__file__).resolve().parent.parent.parent

SECTOR = 512
BLOCK = 512 << 10
SIZE = 64 * BLOCK
KILLS_AN_IMAGE = 6
ANYWHERE = "anywhere"


class Chaos:
    """One image, and what must be in it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = random.Random(seed)
        self.model = bytearray(SIZE)
        self.unsure: set[int] = set()
        self.deaths: Counter[str] = Counter()
        create_dynamic(folder / "disk.vhd", SIZE, block_bytes=BLOCK)
        self._some_blocks()

    def _some_blocks(self) -> None:
        """Blocks of which only a sector is present: writes to them set bits of bitmaps."""
        disk = DynamicDisk(FileStorage(self.folder / "disk.vhd", writable=True))
        for block in range(0, SIZE // BLOCK, 2):
            disk.write(block * BLOCK, b"!" * SECTOR)
            self.model[block * BLOCK : block * BLOCK + SECTOR] = b"!" * SECTOR
        disk.close()

    def life(self, point: str) -> None:
        """A shim lives until it dies; afterwards everything is checked."""
        wish = "" if point == ANYWHERE else f"{point}:{self.dice.randrange(1, 4)}"
        with ShimProcess(self.folder, size=SIZE, failpoint=wish) as shim:
            killer = threading.Timer(self.dice.uniform(0.01, 0.15), shim.process.kill)
            if point == ANYWHERE:
                killer.start()
            try:
                self._busy(shim)
                # The point was not reached in time: any other will do.
                point = ANYWHERE
                shim.process.kill()
            except (OSError, EOFError):
                pass
            killer.cancel()
            assert shim.process.wait(20) == -9, shim.log()
            assert "Traceback" not in shim.log(), shim.log()
        self.deaths[point] += 1
        self._check(point)

    def _busy(self, shim: ShimProcess) -> None:
        shim.activate()
        client = Client(shim.socket, structured=self.dice.random() < 0.5)
        try:
            self._talk(shim, client)
        finally:
            client.socket.close()

    def _talk(self, shim: ShimProcess, client: Client) -> None:
        for _ in range(60):
            for _ in range(self.dice.randrange(1, 8)):
                self._write(client)
            if self.dice.random() < 0.3:
                client.ask(3)
            if self.dice.random() < 0.15:
                shim.do("pause")
                shim.do("unpause")
            elif self.dice.random() < 0.15:
                shim.do("deactivate", queue=True)
                shim.do("activate")

    def _write(self, client: Client) -> None:
        sectors = self.dice.choice((1, 1, 8, 16, 200, 1024))
        first = self.dice.randrange(SIZE // SECTOR - sectors)
        data = self.dice.randbytes(SECTOR) * sectors
        span = set(range(first, first + sectors))
        before = self.unsure & span
        self.unsure |= span
        assert client.write(first * SECTOR, data) == 0
        self.unsure -= span | before
        self.model[first * SECTOR : (first + sectors) * SECTOR] = data

    def _check(self, point: str) -> None:
        with FileStorage(self.folder / "disk.vhd") as storage:
            report = check(storage, "unclean")
            assert report.exit_code in (0, 3), (point, report.findings)
            found = plain_bytes(storage)
        for sector in range(SIZE // SECTOR):
            at = slice(sector * SECTOR, (sector + 1) * SECTOR)
            if sector in self.unsure:
                self.model[at] = found[at]
            else:
                assert found[at] == self.model[at], f"{point}: sector {sector} is lost"
        self.unsure.clear()

    def finish(self) -> None:
        """The last process closes cleanly: then nothing at all may be amiss."""
        with ShimProcess(self.folder, size=SIZE) as shim:
            shim.activate()
            assert shim.terminate() == 0, shim.log()
            assert shim.verdict() == 0
        with FileStorage(self.folder / "disk.vhd") as storage:
            assert plain_bytes(storage) == self.model


def run(kills: int, seed: int, say: bool = False) -> Counter[str]:
    """So many kills, the points in turn and any moment between them. Where they died."""
    deaths: Counter[str] = Counter()
    points = [name for one in NAMES for name in (one, ANYWHERE)]
    random.Random(seed).shuffle(points)
    done = 0
    while done < kills:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            chaos = Chaos(Path(folder), seed + done)
            for _ in range(min(KILLS_AN_IMAGE, kills - done)):
                chaos.life(points[done % len(points)])
                done += 1
            chaos.finish()
            deaths += chaos.deaths
        if say:
            print(f"{done} kills, nothing lost", flush=True)
    return deaths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=at_least_one, default=500)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    deaths = run(args.kills, args.seed, say=True)
    for name, count in sorted(deaths.items()):
        print(f"{count:5} {name}")


if __name__ == "__main__":
    main()
