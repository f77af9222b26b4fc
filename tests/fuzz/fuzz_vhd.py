"""Structure-aware fuzzing of everything that reads an image.

Each case builds a sound image, damages fields, tables, ends or bytes of it (mostly with checksums
made right again, so that the damage gets past the first gate), and runs the commands on it.
A traceback, a hang beyond 2 seconds, memory beyond 200 MB, an exit code that does not exist, and
an image that the check calls consistent but that cannot be read, or calls corrupt but that is read
all the same, are failures. A failing case is
kept and named by its seed: `python -m tests.fuzz.fuzz_vhd --seed N --cases 1`.
"""

import argparse
import contextlib
import io
import os
import random
import resource
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.support.arguments import at_least_one
from tests.support.vhd_images import Picture
from vhdtool.cli.main import run
from vhdtool.cli.vhd_util.main import run as vhdutil
from vhdtool.image.chain.check import check_chain
from vhdtool.image.check.admission import TOLERATED_BY_READERS
from vhdtool.image.metadata.findings import Finding
from vhdtool.storage import FileStorage, MemoryStorage
from vhdtool.vhd.footer import DIFFERENCING, DYNAMIC, FIXED, Footer
from vhdtool.vhd.header import SIZE, Header, Locator
from vhdtool.vhd.units import KILLED, SECTOR, checksum

SECONDS = 2
MEMORY = 200 << 20
_VALUES = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    255,
    511,
    512,
    513,
    1024,
    4096,
    4097,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
    1 << 21,
    1 << 20,
    (1 << 40) - 1,
    1 << 63,
    (1 << 64) - 1,
]
_FOOTER = {
    "features": (8, 4),
    "version": (12, 4),
    "data_offset": (16, 8),
    "time": (24, 4),
    "creator": (28, 4),
    "creator_version": (32, 4),
    "original": (40, 8),
    "size": (48, 8),
    "geometry": (56, 4),
    "type": (60, 4),
    "saved": (84, 1),
    "hidden": (85, 1),
    "cookie": (0, 8),
    "uuid": (68, 8),
}
_HEADER = {
    "next": (8, 8),
    "bat": (16, 8),
    "version": (24, 4),
    "entries": (28, 4),
    "block": (32, 4),
    "parent": (40, 8),
    "name": (64, 8),
    "cookie": (0, 8),
    **{f"locator{i}": (576 + 24 * i, 4) for i in range(3)},
    **{f"space{i}": (580 + 24 * i, 4) for i in range(3)},
    **{f"length{i}": (584 + 24 * i, 4) for i in range(3)},
    **{f"place{i}": (592 + 24 * i, 8) for i in range(3)},
}
_BATMAP = {
    "cookie": (0, 8),
    "offset": (8, 8),
    "sectors": (16, 4),
    "version": (20, 4),
    "check": (24, 4),
    "key": (29, 1),
}


def value(dice: random.Random, width: int) -> bytes:
    """An interesting or random number of so many bytes."""
    number = dice.choice(_VALUES) if dice.random() < 0.7 else dice.getrandbits(8 * width)
    return (number & ((1 << 8 * width) - 1)).to_bytes(width, "big")


def sound(dice: random.Random) -> tuple[Picture, MemoryStorage]:
    """A small image of some kind, without damage."""
    kind = dice.choice([DYNAMIC, DYNAMIC, DYNAMIC, DIFFERENCING, FIXED])
    block = dice.choice([512 << 10, 2 << 20])
    picture = Picture(dice.choice([3, 8, 64]) << 20, block, dice.random() < 0.7, kind)
    if kind == FIXED:
        picture.footer = Footer(1 << 20, FIXED, original_size=1 << 20)
        return picture, MemoryStorage(bytes(1 << 20) + picture.footer.pack())
    if kind == DIFFERENCING:
        place = picture.end * SECTOR
        locators = tuple(
            Locator(code, 512, 20, 0, place + i * SECTOR)
            for i, code in enumerate((b"MacX", b"W2ku", b"W2ru"))
        )
        picture.header = Header(
            picture.header.max_entries, block, locators=locators + (Locator(),) * 5
        )
        picture.end += 3
    for number in dice.sample(
        range(picture.header.max_entries), min(3, picture.header.max_entries)
    ):
        runs = [] if dice.random() < 0.5 else [(dice.randrange(500), dice.randrange(1, 500))]
        picture.add(number, *runs)
        picture.data[number] = b"data" * 1024
    return picture, picture.draw(footer=dice.random() < 0.8)


def field(
    dice: random.Random,
    disk: MemoryStorage,
    at: int,
    size: int,
    table: dict[str, tuple[int, int]],
    check_at: int | None,
) -> None:
    """Damages one field of a structure; mostly its checksum is made right again."""
    raw = bytearray(disk.pread(at, size).ljust(size, b"\0"))
    place, width = table[dice.choice(sorted(table))]
    raw[place : place + width] = value(dice, width)
    if check_at is not None and dice.random() < 0.85:
        struct.pack_into(">I", raw, check_at, checksum(bytes(raw), check_at))
    disk.pwrite(at, bytes(raw))


def damage(dice: random.Random, picture: Picture, disk: MemoryStorage) -> None:
    """One act of damage."""
    size = disk.size()
    header = picture.header
    acts: list[Callable[[], None]] = [
        lambda: field(dice, disk, 0, SECTOR, _FOOTER, 64),
        lambda: field(dice, disk, max(size - SECTOR, 0), SECTOR, _FOOTER, 64),
        lambda: both_footers(dice, disk),
        lambda: field(dice, disk, SECTOR, SIZE, _HEADER, 36),
        lambda: field(dice, disk, SECTOR, SIZE, _HEADER, 36),
        lambda: field(dice, disk, header.bat_end, SECTOR, _BATMAP, None),
        lambda: disk.pwrite(
            header.bat_offset + 4 * dice.randrange(header.max_entries),
            value(dice, 4) if dice.random() < 0.5 else dice.randrange(9000).to_bytes(4, "big"),
        ),
        lambda: disk.truncate(dice.randrange(size + 1)),
        lambda: disk.truncate(size + dice.choice([1, 511, 512, 4096, 1 << 20, 1 << 33])),
        lambda: disk.pwrite(max(size - SECTOR, 0), KILLED),
        lambda: disk.pwrite(dice.randrange(size), dice.randbytes(dice.randrange(1, 600))),
        lambda: disk.pwrite(dice.randrange(max(size // SECTOR, 1)) * SECTOR, bytes(SECTOR)),
    ]
    dice.choice(acts)()


def both_footers(dice: random.Random, disk: MemoryStorage) -> None:
    """The same damage in footer and copy: it then is what the image says."""
    field(dice, disk, 0, SECTOR, _FOOTER, 64)
    if disk.size() > SECTOR:
        disk.pwrite(disk.size() - SECTOR, disk.pread(0, SECTOR))


_OTHER_TOOL = (
    ["query", "-vspfdSma", "-n"],
    ["read", "-pBa", "-n"],
    ["check", "-ps", "-n"],
    ["scan", "-M", "-c"],
)
_JUDGES = ("check", "repair", "scan", "diff", "damage")


class Hang(BaseException):
    """A command took too long."""


def _alarm(number: int, frame: FrameType | None) -> None:
    raise Hang


def call(arguments: list[str], command: Callable[[list[str]], int] = run) -> int:
    """Runs a command in this process with a limit on its time."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape")
    # Time of this process, not of the machine that it shares; the other clock sees it asleep.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 20 * SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            return command(arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def case(seed: int, folder: Path) -> str | None:
    """One case; a sentence about what went wrong, or None."""
    dice = random.Random(seed)
    picture, disk = sound(dice)
    for _ in range(dice.choice([0, 1, 1, 1, 2, 3, 6])):
        if disk.size() > 0:
            damage(dice, picture, disk)
    path = folder / "fuzz.vhd"
    store(disk, path)
    codes = {}
    for words in (
        ["check"],
        ["check", "--unclean", "--json"],
        ["check", "--live", "--no-bitmaps"],
        ["info"],
        ["info", "--json"],
        ["meta"],
        ["map", "--json"],
        ["repair"],
        ["scan"],
        ["read", "--length", "8k"],
        ["read", "--salvage", "--length", "8k"],
        ["damage", "--json"],
        ["diff", "--monotonic", str(path)],
    ):
        name = " ".join(words)
        try:
            codes[name] = call([*words, str(path)])
        except Hang:
            return f"{name}: no end within {SECONDS} s"
        except MemoryError:
            return f"{name}: memory"
        except Exception as error:  # noqa: BLE001 - any traceback is a find
            return f"{name}: {type(error).__name__}: {error}"
        allowed = (0, 1, 2, 3) if words[0] in _JUDGES or "--salvage" in words else (0, 1)
        if codes[name] not in allowed:
            return f"{name}: exit code {codes[name]}"
    for words in _OTHER_TOOL:
        name = f"vhd-util {' '.join(words)}"
        try:
            code = call([*words, str(path)], vhdutil)
        except (Hang, Exception) as error:  # noqa: BLE001 - any traceback is a find
            return f"{name}: {type(error).__name__}: {error}"
        if not 0 <= code < 256:
            return f"{name}: exit code {code}"
    if codes["check"] == 0 and picture.footer.disk_type != DIFFERENCING:
        (folder / "out").unlink(missing_ok=True)
        if call(["read", str(path), "-o", str(folder / "out")]):
            return "the check says consistent, but it cannot be read"
    if codes["check"] == 2 and codes["read --length 8k"] == 0:
        return believed(path)
    return None


def believed(path: Path) -> str | None:
    """A sentence about an image that is read although the check calls it corrupt, or None."""
    report = check_chain(path)
    found = {one.code for each in report.reports for one in each.findings if is_corrupt(one)}
    found |= {one.code for one in report.links if is_corrupt(one)}
    if found <= TOLERATED_BY_READERS:
        return None
    return f"it is read, but the check says {', '.join(sorted(found))}"


def is_corrupt(one: Finding) -> bool:
    return one.severity == "corrupt"


def store(disk: MemoryStorage, path: Path) -> None:
    """The storage as a sparse file."""
    path.unlink(missing_ok=True)
    with FileStorage(path, create=True) as file:
        file.truncate(disk.size())
        for offset, page in disk.pages():
            file.pwrite(offset, page)
        file.truncate(disk.size())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=at_least_one, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="copy failing images here")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _alarm)
    signal.signal(signal.SIGPROF, _alarm)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + virtual_memory(),) * 2)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="vhdtool-fuzz-") as name:
        for seed in range(options.seed, options.seed + options.cases):
            wrong = case(seed, Path(name))
            if wrong is not None:
                failures += 1
                print(f"seed {seed}: {wrong}", flush=True)
                if options.keep is not None:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    os.link(Path(name) / "fuzz.vhd", options.keep / f"seed-{seed}.vhd")
    print(f"{options.cases} cases from seed {options.seed}, {failures} failures")
    return 1 if failures else 0


def virtual_memory() -> int:
    """Bytes of address space that this process has already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
