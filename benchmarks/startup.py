"""How soon a started server answers, what it keeps in memory, and what it does when idle.

    python benchmarks/startup.py [--repeats 7] [--out benchmarks/results/startup.md]

From the start of the process to the reply to a read, on images of 2040 GiB in the ways in which
their table of a million entries can be filled; beside them an empty image of 1 GiB, and qemu-nbd.
"""

import argparse
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vhdtool.image.create.empty import create_dynamic  # noqa: E402
from vhdtool.image.metadata.read import read_metadata  # noqa: E402
from vhdtool.nbd import protocol as wire  # noqa: E402
from vhdtool.storage import FileStorage  # noqa: E402
from vhdtool.vhd.bat import pack_bat  # noqa: E402
from vhdtool.vhd.units import SECTOR  # noqa: E402

GIB = 1 << 30
IDLE = 2.0
"""Seconds for which an idle server is looked at."""


def fill(image: Path, mixed: bool) -> None:
    """Gives every block a place in a sparse file, in the order of the blocks or in none."""
    with FileStorage(image, writable=True) as storage:
        data = read_metadata(storage)
        assert data.header is not None
        assert data.layout is not None
        end = storage.size() - SECTOR
        footer = storage.pread(end, SECTOR)
        step, first = data.layout.total_sectors, data.layout.next_entry(end // SECTOR)
        places = [first + step * number for number in range(data.header.max_entries)]
        last = places[-1]
        if mixed:
            random.Random(1).shuffle(places)
        storage.pwrite(data.header.bat_offset, pack_bat(array("I", places), fill=0xFF))
        storage.pwrite(data.layout.end_sector(last) * SECTOR, footer)


@contextmanager
def started(words: list[str], where: Path) -> Iterator[tuple[float, int]]:
    """(seconds from the start to the reply to a read, process) of a server on `where`."""
    where.unlink(missing_ok=True)
    began = time.monotonic()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=env)
    try:
        with closing(socket.socket(socket.AF_UNIX)) as client:
            while client.connect_ex(str(where)):
                if server.poll() is not None or time.monotonic() - began > 60:
                    raise SystemExit(f"{words[0]} did not start")
                time.sleep(0.001)
            client.recv(len(wire.HELLO), socket.MSG_WAITALL)
            name = wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_EXPORT_NAME, 0)
            client.sendall(b"\0\0\0\3" + name)
            client.recv(10, socket.MSG_WAITALL)
            client.sendall(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_READ, 1, 0, 4096))
            client.recv(16 + 4096, socket.MSG_WAITALL)
            yield time.monotonic() - began, server.pid
    finally:
        server.terminate()
        server.wait(60)


def resident(pid: int) -> float:
    """MiB, the highest so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def cpu(pid: int) -> float:
    """Seconds on a processor, of all threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def row(name: str, image: Path, repeats: int) -> str:
    where = image.with_name("s")
    shim = [sys.executable, "-m", "vhdtool", "serve", str(image), "--socket", str(where)]
    peer = ["qemu-nbd", "-f", "vpc", "-t", "-k", str(where), "--cache=none", str(image)]
    times: dict[str, list[float]] = {"shim": [], "peer": []}
    memory = idle = 0.0
    for repeat in range(repeats):
        for which, words in (("shim", shim), ("peer", peer)):
            with started(words, where) as (seconds, pid):
                times[which].append(seconds * 1000)
                if which == "shim" and repeat == repeats - 1:
                    before = cpu(pid)
                    time.sleep(IDLE)
                    memory, idle = resident(pid), (cpu(pid) - before) / IDLE
    shown = [
        f"{statistics.median(one):.0f} ({min(one):.0f}-{max(one):.0f})" for one in times.values()
    ]
    return f"| {name} | {' | '.join(shown)} | {memory:.0f} | {100 * idle:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    args = parser.parse_args()
    head = "| image | shim, ms to the first reply | qemu-nbd, ms | shim, MiB | idle, % CPU |"
    lines = [head, "|---" * 5 + "|"]
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as folder:
        small, large, full = (Path(folder) / f"{name}.vhd" for name in ("small", "large", "full"))
        # QEMU's own driver does not know the batmap and would write over it.
        create_dynamic(small, GIB, batmap=False)
        create_dynamic(large, 2040 * GIB, batmap=False)
        lines.append(row("1 GiB, empty", small, args.repeats))
        lines.append(row("2040 GiB, empty", large, args.repeats))
        for name, mixed in (("written in order", False), ("written in no order", True)):
            shutil.copy(large, full)
            fill(full, mixed)
            lines.append(row(f"2040 GiB, full, {name}", full, args.repeats))
    load = f"Python {sys.version.split()[0]}, load average {os.getloadavg()[0]:.1f}"
    text = f"Medians of {args.repeats} starts (lowest-highest), {load}.\n\n" + "\n".join(lines)
    print(text)
    if args.out:
        args.out.write_text(f"# Start-up (`make bench-startup`)\n\n{text}\n")


if __name__ == "__main__":
    main()
