"""Loop devices: a second name of a file, whose I/O knows nothing of locks on that file."""

import os
from contextlib import suppress
from pathlib import Path

BLOCK = Path("/sys/block")


def loop_file(device: int) -> str | None:
    """The file behind the loop device of that number (st_rdev); None for any other device."""
    place = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop/backing_file"
    try:
        with open(place, "rb") as file:
            return os.fsdecode(file.read().rstrip(b"\n"))
    except OSError:
        return None


def loop_over(file: os.stat_result) -> str | None:
    """The loop device that can write a file; None where there is none."""
    for entry in BLOCK.glob("loop*/loop/backing_file"):
        folder = entry.parent.parent
        with suppress(OSError):
            there = os.stat(os.fsdecode(entry.read_bytes().rstrip(b"\n")))
            if os.path.samestat(there, file) and (folder / "ro").read_text().strip() == "0":
                return f"/dev/{folder.name}"
    return None
