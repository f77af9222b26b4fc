"""The shim beside qemu-nbd, nbdkit on a raw file, and a raw file without any server: one run.

    python benchmarks/shim.py [--where tmpfs direct] [--seconds 3] [--repeats 3] [--loads ...]

For each load all servers take turns, so that a busy moment of the machine meets them all. The
table shows the median ratio to qemu-nbd, with the lowest and the highest of the repeats; absolute
figures of a machine say little about another one. "file" is fio on the file itself: what this
machine gives to a program that has no socket to pass, so no server can be above it for long. Where
TAP_CTL names blktap's own tap-ctl, its tapdisk takes part too. `--before CHECKOUT` lets the shim of
another checkout, with a .venv of its own, take its turns beside this one's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vhdtool.image.create.empty import create_dynamic  # noqa: E402
from vhdtool.nbd.sockets import nbd_uri  # noqa: E402

MIB = 1 << 20
ABOUT = """# The shim beside qemu-nbd, nbdkit, the real tapdisk, and no server at all

`make bench-shim`, with `TAP_CTL=...` for the real tapdisk. All take turns within one run; ratios of
one run travel, absolute figures do not. qemu-nbd and tapdisk serve a VHD as the shim does, with its
cache mode; nbdkit serves a raw file, always through the page cache. "file" is fio on a raw file
without a server: the machine's limit. "guard on / off" is the shim beside itself with `--faithful`.

"""


@dataclass(frozen=True)
class Load:
    """One row: fio's options, and whether the image is full before it."""

    name: str
    options: tuple[str, ...]
    targets: tuple[float, float]
    """The ratio to qemu-nbd to be reached: on tmpfs, with O_DIRECT; 0 where there is none."""
    full: bool = True
    fill: bool = False


LOADS = (
    Load("randread 4k QD1", ("--rw=randread", "--bs=4k", "--iodepth=1"), (1.6, 1.0)),
    Load("randread 4k QD16", ("--rw=randread", "--bs=4k", "--iodepth=16"), (2.2, 1.1)),
    Load("randwrite 4k QD1", ("--rw=randwrite", "--bs=4k", "--iodepth=1"), (3, 3)),
    Load("randwrite 4k QD16", ("--rw=randwrite", "--bs=4k", "--iodepth=16"), (7.2, 6)),
    Load("read 256k", ("--rw=read", "--bs=256k", "--iodepth=4"), (3, 1.6)),
    Load("write 256k", ("--rw=write", "--bs=256k", "--iodepth=4"), (2.3, 2)),
    Load(
        "randwrite 4k QD16, empty",
        ("--rw=randwrite", "--bs=4k", "--iodepth=16"),
        (0, 0),
        full=False,
    ),
    Load("fill 256k", ("--rw=write", "--bs=256k", "--iodepth=4"), (3, 3), full=False, fill=True),
)


@contextmanager
def process(words: list[str], ready: Callable[[], bool]) -> Iterator[None]:
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/")
    deadline = time.monotonic() + 20
    try:
        while not ready():
            if child.poll() is not None or time.monotonic() > deadline:
                assert child.stderr is not None
                raise SystemExit(f"{words[0]} did not start: {child.stderr.read().decode()}")
            time.sleep(0.01)
        yield
    finally:
        child.terminate()
        child.wait(60)


class Servers:
    """How each server is started on an image; all listen on `socket`."""

    def __init__(self, folder: Path, direct: bool, size: int, before: Path | None) -> None:
        self.folder, self.direct, self.size, self.before = folder, direct, size, before
        self.socket = folder / "s"
        self.names = ["shim", "faithful", "qemu-nbd", "nbdkit", "file"]
        self.tap_ctl = os.environ.get("TAP_CTL", "")
        if self.tap_ctl:
            self.names.append("tapdisk")
        if before:
            self.names.append("before")

    def image(self, name: str) -> Path:
        return self.folder / f"{name}.vhd"

    def words(self, name: str) -> list[str]:
        image = str(self.image(name))
        if name in ("shim", "faithful", "before"):
            options = ["--socket", str(self.socket)]
            options += [] if self.direct else ["--cached"]
            options += ["--faithful"] if name == "faithful" else []
            of = self.before if name == "before" and self.before else ROOT
            os.environ["PYTHONPATH"] = str(of)
            return [str(of / ".venv/bin/python"), "-m", "vhdtool", "serve", image, *options]
        if name == "qemu-nbd":
            cache = ["--cache=none", "--aio=native"] if self.direct else ["--cache=writeback"]
            return ["qemu-nbd", "-f", "vpc", "-t", "-k", str(self.socket), *cache, image]
        return ["nbdkit", "-f", "-U", str(self.socket), "file", image]

    def fresh(self, name: str, full: bool) -> None:
        """An image of the same kind for each: empty, or full of data."""
        image = self.image(name)
        image.unlink(missing_ok=True)
        Path(f"{image}.lease").unlink(missing_ok=True)
        if name in ("nbdkit", "file"):
            with open(image, "wb") as out:
                out.truncate(self.size)
        else:
            # QEMU's own driver does not know the batmap and would write over it.
            create_dynamic(image, self.size, batmap=name != "qemu-nbd")
        if full:
            self.load(name, "--rw=write", "--bs=1m", "--iodepth=4")

    def load(self, name: str, *options: str) -> float:
        """Bytes a second of one run of fio against a server."""
        if name == "file":
            engine = "libaio" if self.direct else "psync"
            target = [f"--ioengine={engine}", f"--filename={self.image(name)}"]
            return fio(*target, f"--direct={int(self.direct)}", f"--size={self.size}", *options)
        with self.running(name):
            target = ["--ioengine=nbd", f"--uri={nbd_uri(self.socket)}"]
            return fio(*target, f"--size={self.size}", *options)

    @contextmanager
    def tapdisk(self) -> Iterator[None]:
        """The real one, by the tap-ctl that $TAP_CTL names; it listens where it always does."""
        image = f"vhd:{self.image('tapdisk')}"
        options = [] if self.direct else ["-D"]
        subprocess.run(
            [self.tap_ctl, "create", "-a", image, *options], check=True, stdout=subprocess.DEVNULL
        )
        told = subprocess.run([self.tap_ctl, "list"], check=True, capture_output=True, text=True)
        (line,) = (one for one in told.stdout.splitlines() if one.endswith(f"args={image}"))
        pid, minor = (word.partition("=")[2] for word in line.split()[:2])
        try:
            self.socket.symlink_to(f"/run/blktap-control/nbd{pid}.{minor}")
            yield
        finally:
            subprocess.run([self.tap_ctl, "destroy", "-p", pid, "-m", minor], check=True)

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        self.socket.unlink(missing_ok=True)
        if name == "tapdisk":
            with self.tapdisk():
                yield
            return
        with process(self.words(name), self.socket.exists):
            yield


def fio(*options: str) -> float:
    """Bytes a second."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        words = ["fio", "--name=b", "--randrepeat=1", "--output-format=json"]
        words += ["--fallocate=none", f"--output={report.name}", *options]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        text = Path(report.name).read_text()
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    return float(job["read"]["bw_bytes"] + job["write"]["bw_bytes"])


def measure(servers: Servers, load: Load, seconds: float, repeats: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {name: [] for name in servers.names}
    timed = () if load.fill else ("--time_based", f"--runtime={seconds}")
    for repeat in range(repeats):
        first = repeat % len(servers.names)
        turn = servers.names[first:] + servers.names[:first]
        # Who comes after whom must not decide: every other time the other way round.
        turn = turn[:: -1 if repeat % 2 else 1]
        for name in turn:
            if not load.full:
                servers.fresh(name, full=False)
            figures[name].append(servers.load(name, *load.options, *timed))
    return figures


def ratio(figures: dict[str, list[float]], name: str, to: str) -> str:
    pairs = [a / b for a, b in zip(figures[name], figures[to], strict=True)]
    return f"{statistics.median(pairs):.2f} ({min(pairs):.2f}-{max(pairs):.2f})"


def table(where: str, loads: tuple[Load, ...], servers: Servers, args: argparse.Namespace) -> str:
    columns = ["target", "shim / qemu-nbd", "nbdkit / qemu-nbd", "shim / nbdkit"]
    columns += ["file / qemu-nbd", "guard on / off"]
    columns += ["tapdisk / qemu-nbd", "shim / tapdisk"] if servers.tap_ctl else []
    columns += ["shim / before"] if servers.before else []
    lines = [f"| {where} | {' | '.join(columns)} | shim |", "|---" * (len(columns) + 2) + "|"]
    for name in servers.names:
        servers.fresh(name, full=True)
    # Loads on empty images come last: they leave other images behind.
    for load in sorted(loads, key=lambda one: not one.full):
        figures = measure(servers, load, args.seconds, args.repeats)
        target = load.targets[where == "direct"]
        cells = [f"{target:g}" if target else "-", ratio(figures, "shim", "qemu-nbd")]
        cells += [ratio(figures, "nbdkit", "qemu-nbd"), ratio(figures, "shim", "nbdkit")]
        cells += [ratio(figures, "file", "qemu-nbd"), ratio(figures, "shim", "faithful")]
        if servers.tap_ctl:
            cells += [ratio(figures, "tapdisk", "qemu-nbd"), ratio(figures, "shim", "tapdisk")]
        cells += [ratio(figures, "shim", "before")] if servers.before else []
        own = statistics.median(figures["shim"])
        small = "4k" in load.name
        shown = f"{own / 4096:.0f} IOPS" if small else f"{own / MIB:.0f} MiB/s"
        lines.append(f"| {load.name} | {' | '.join(cells)} | {shown} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--where", nargs="+", default=["tmpfs", "direct"])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=512, help="MiB")
    parser.add_argument("--loads", help="only those whose name contains this")
    parser.add_argument("--before", type=Path, help='another checkout, for "shim / before"')
    parser.add_argument("--out", type=Path, help="Markdown file for the tables")
    args = parser.parse_args()
    loads = tuple(load for load in LOADS if not args.loads or args.loads in load.name)
    tables = []
    for where in args.where:
        parent = "/dev/shm" if where == "tmpfs" else None
        with tempfile.TemporaryDirectory(dir=parent, prefix="bench-shim-") as folder:
            servers = Servers(Path(folder), where == "direct", args.size * MIB, args.before)
            tables.append(table(where, loads, servers, args))
    text = "\n\n".join(tables) + "\n"
    head = ABOUT + (
        f"Medians of {args.repeats} runs of {args.seconds:g} s (lowest-highest), "
        f"{args.size} MiB, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, "
        f"load average {os.getloadavg()[0]:.1f}.\n\n"
    )
    print("\n" + text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(head + text)


if __name__ == "__main__":
    main()
