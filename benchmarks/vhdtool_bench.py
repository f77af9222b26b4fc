"""Speed of `vhdtool check`, `convert` and `info`, with ratios to qemu-img in the same run.

    python benchmarks/vhdtool_bench.py [--folder /dev/shm] [--runs 5] [--only check] [--write]

Everything is in the page cache on tmpfs. A figure is the best of all runs, its spread how much
slower the worst one was. Runs of peers alternate, so that a busy machine hits both. Ratios
travel between machines, seconds do not. `--write` puts the table into results/vhdtool.md.
VHD_UTIL names a vhd-util of blktap's to be compared with (Debian has none).
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vhdtool.image.create.empty import new_footer
from vhdtool.storage import FileStorage
from vhdtool.vhd.bat import pack_bat
from vhdtool.vhd.batmap import batmap_checksum, batmap_header_for
from vhdtool.vhd.blocks import BlockLayout
from vhdtool.vhd.footer import DYNAMIC
from vhdtool.vhd.header import Header

RESULTS = Path(__file__).resolve().parent / "results" / "vhdtool.md"
MIB, GIB = 1 << 20, 1 << 30
VHDTOOL = [sys.executable, "-m", "vhdtool"]


Times = list[tuple[float, float]]
"""(seconds on the clock, seconds of processor time) of each run."""


@dataclass
class Row:
    work: str
    peer: str
    ours: Times
    theirs: Times
    target: str
    met: bool | None

    def line(self) -> str:
        """One line of the table."""
        theirs = ratio = processor = "–"
        if self.theirs:
            theirs = f"{best(self.theirs):.3f} s (+{spread(self.theirs):.0f} %)"
            ratio = f"{best(self.theirs) / best(self.ours):.2f}×"
            processor = f"{least(self.theirs) / least(self.ours):.2f}×"
        verdict = {True: "met", False: "**missed**", None: ""}[self.met]
        ours = f"{best(self.ours):.3f} s (+{spread(self.ours):.0f} %)"
        target = f"{self.target} {verdict}".strip()
        cells = [self.work, ours, self.peer, theirs, ratio, processor, target]
        return f"| {' | '.join(cells)} |\n"


def best(times: Times) -> float:
    """The shortest run by the clock."""
    return min(clock for clock, _ in times)


def least(times: Times) -> float:
    """The least processor time."""
    return min(processor for _, processor in times)


def spread(times: Times) -> float:
    """How much slower the worst run was than the best, in per cent."""
    return 100 * (max(clock for clock, _ in times) / best(times) - 1)


def one_run(command: list[str]) -> tuple[float, float]:
    """Runs a command that must succeed."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        clock = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        assert process.returncode == 0, f"{command}: {said.read().decode(errors='replace')}"
    return clock, usage.ru_utime + usage.ru_stime


def timed(*commands: list[str], runs: int, before: Callable[[], None]) -> list[Times]:
    """Seconds of each command, `runs` times each, in turns."""
    result: list[Times] = [[] for _ in commands]
    for _ in range(runs):
        for times, command in zip(result, commands, strict=True):
            before()
            times.append(one_run(command))
    return result


def full_image(path: Path, size: int) -> None:
    """A closed image in which every block is present: real metadata, sparse data."""
    layout = BlockLayout(2 * MIB)
    header = Header(size // layout.block_bytes)
    footer = new_footer(size, DYNAMIC)
    head = batmap_header_for(header)
    first = layout.next_entry((head.offset // 512) + head.sectors)
    entries = range(first, first + header.max_entries * layout.stride, layout.stride)
    bits = (b"\xff" * (header.max_entries // 8)).ljust(head.sectors * 512, b"\0")
    head = replace(head, checksum=batmap_checksum(bits, size))
    full = b"\xff" * layout.bitmap_bytes
    with FileStorage(path, create=True) as file:
        file.pwrite(0, footer.pack() + header.pack() + pack_bat(array("I", entries)))
        file.pwrite(header.bat_end, head.pack() + bits)
        for entry in entries:
            file.pwrite(entry * 512, full)
        file.pwrite(layout.end_sector(entries[-1]) * 512, footer.pack())


def half_full(path: Path, size: int) -> None:
    """A raw disk of which every second 2 MiB hold random bytes."""
    data = os.urandom(2 * MIB)
    with path.open("wb") as file:
        for place in range(0, size, 4 * MIB):
            file.seek(place)
            file.write(data)
        file.truncate(size)


def checks(folder: Path, runs: int) -> list[Row]:
    small, large = folder / "100g.vhd", folder / "2040g.vhd"
    full_image(small, 100 * GIB)
    rows = []
    command = [*VHDTOOL, "check", str(small)]
    real = os.environ.get("VHD_UTIL")
    commands = [command, [*command, "--no-bitmaps"]]
    if real:
        commands.append([real, "check", "-n", str(small)])
    times = timed(*commands, runs=runs, before=lambda: None)
    theirs = times[2] if real else []
    peer = "vhd-util check" if real else "–"
    whole, quick = times[0], times[1]
    rows.append(Row("check, full 100 GiB", peer, whole, theirs, "< 1.5 s", best(whole) < 1.5))
    rows.append(Row("the same by its batmap", peer, quick, theirs, "< 0.3 s", best(quick) < 0.3))
    small.unlink()
    need = 2040 * GIB // (2 * MIB) * 4096 * 3 // 2
    if shutil.disk_usage(folder).free < need:
        print(f"2040 GiB are left out: {folder} has less than {need >> 30} GiB", file=sys.stderr)
        return rows
    full_image(large, 2040 * GIB)
    command = [*VHDTOOL, "check", str(large)]
    slow, fast = timed(command, [*command, "--no-bitmaps"], runs=min(runs, 3), before=lambda: None)
    for name, long, short in (("", slow, whole), (" by its batmap", fast, quick)):
        factor = best(long) / best(short)
        target = f"≤ 25 × 100 GiB: {factor:.1f} ×"
        rows.append(Row(f"check, full 2040 GiB{name}", "–", long, [], target, factor <= 25))
    large.unlink()
    return rows


def conversions(folder: Path, runs: int) -> list[Row]:
    raw, vhd, out = folder / "in.raw", folder / "in.vhd", folder / "out"
    half_full(raw, 4 * GIB)

    def clear() -> None:
        out.unlink(missing_ok=True)

    there = [*VHDTOOL, "convert", "-O", "vhd", str(raw), str(out)]
    qemu = ["qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on"]
    ours, theirs = timed(there, [*qemu, str(raw), str(out)], runs=runs, before=clear)
    ratio = best(theirs) / best(ours)
    rows = [Row("raw → VHD, 4 GiB half full", "qemu-img", ours, theirs, "≥ 1.5×", ratio >= 1.5)]
    clear()
    subprocess.run([*VHDTOOL, "convert", "-q", str(raw), str(vhd)], check=True)
    raw.unlink()
    back = [*VHDTOOL, "convert", "-O", "raw", str(vhd), str(out)]
    qemu = ["qemu-img", "convert", "-f", "vpc", "-O", "raw", str(vhd), str(out)]
    ours, theirs = timed(back, qemu, runs=runs, before=clear)
    ratio = best(theirs) / best(ours)
    rows.append(Row("VHD → raw, 4 GiB half full", "qemu-img", ours, theirs, "≥ 1.0×", ratio >= 1.0))
    clear()
    vhd.unlink()
    return rows


def to_qcow2(folder: Path, runs: int) -> list[Row]:
    raw, vhd, out = folder / "in.raw", folder / "in.vhd", folder / "out"
    rows = []
    for empty in (True, False):
        if empty:
            subprocess.run([*VHDTOOL, "create", "-q", str(vhd), "64g"], check=True)
            name, target = "empty 64 GiB VHD → qcow2", "< 1 s"
        else:
            half_full(raw, 4 * GIB)
            subprocess.run([*VHDTOOL, "convert", "-q", "--force", str(raw), str(vhd)], check=True)
            raw.unlink()
            name, target = "VHD → qcow2, 4 GiB half full", ""
        ours, theirs = timed(
            [*VHDTOOL, "convert", "-q", "-O", "qcow2", str(vhd), str(out)],
            ["qemu-img", "convert", "-f", "vpc", "-O", "qcow2", str(vhd), str(out)],
            runs=runs,
            before=lambda: out.unlink(missing_ok=True),
        )
        rows.append(Row(name, "qemu-img", ours, theirs, target, best(ours) < 1 if empty else None))
        out.unlink()
    vhd.unlink()
    return rows


def start_up(folder: Path, runs: int) -> list[Row]:
    image = folder / "small.vhd"
    subprocess.run([*VHDTOOL, "create", "-q", str(image), "1g"], check=True)
    commands = [[*VHDTOOL, "info", str(image)], ["qemu-img", "info", str(image)]]
    ours, theirs = timed(*commands, runs=2 * runs, before=lambda: None)
    return [Row("info, start to end", "qemu-img", ours, theirs, "< 0.120 s", best(ours) < 0.12)]


PARTS = {"info": start_up, "check": checks, "convert": conversions, "qcow2": to_qcow2}


def table(rows: list[Row], runs: int) -> str:
    """The rows as a page."""
    qemu = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True, check=True)
    head = ["work", "vhdtool", "peer", "peer's time", "ratio", "ratio of processor time", "target"]
    return (
        "# vhdtool's speed\n\n"
        "Made by `make bench-vhdtool` (benchmarks/vhdtool_bench.py). Warm page cache on tmpfs; "
        f"best of {runs} runs, in brackets how much slower the worst one was. A ratio above 1 "
        "means that vhdtool is quicker. The ratio of processor time counts what both used; the "
        "clock's depends on what else the machine did.\n\n"
        f"{qemu.stdout.splitlines()[0]}; Python {platform.python_version()}; "
        f"{os.cpu_count()} processors; load {os.getloadavg()[0]:.1f} at the end.\n\n"
        f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n" + "".join(row.line() for row in rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="vhdtool-bench-", dir=options.folder) as name:
        for part, work in PARTS.items():
            if options.only in (None, part):
                rows += work(Path(name), options.runs)
    text = table(rows, options.runs)
    print(text)
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
