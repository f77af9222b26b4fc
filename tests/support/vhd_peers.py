"""Other programs that read and write VHDs. A missing one is a failure: `make setup` installs it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dissect.hypervisor.disk.vhd import VHD

from tests.support.waiting import wait_for


def run(*command: str | Path) -> str:
    """Standard output of a program that must succeed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def qemu_create(path: Path, size: str, *options: str) -> None:
    run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "vpc",
        "-o",
        ",".join(("subformat=dynamic", *options)),
        path,
        size,
    )


def qemu_write(path: Path, *writes: tuple[int, int, int]) -> None:
    """Writes (pattern, offset, length) through QEMU's own vpc driver."""
    commands = []
    for pattern, offset, length in writes:
        commands += ["-c", f"write -P {pattern} {offset} {length}"]
    run("qemu-io", "-f", "vpc", *commands, path)


def qemu_raw(path: Path, out: Path) -> bytes:
    """What QEMU reads; it ignores bitmaps and parents."""
    run("qemu-img", "convert", "-f", "vpc", "-O", "raw", path, out)
    return out.read_bytes()


def dissect_raw(path: Path) -> bytes:
    """What dissect.hypervisor reads; it ignores bitmaps and parents."""
    with path.open("rb") as file:
        disk = VHD(file)
        data: bytes = disk.read(disk.size)
    return data


@contextmanager
def mounted(path: Path, where: Path) -> Iterator[Path]:
    """The raw disk that libvhdi shows; parents are found beside the image."""
    where.mkdir(exist_ok=True)
    server = subprocess.Popen(
        ["vhdimount", "-v", str(path), str(where)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        raw = where / "vhdi1"
        wait_for(raw.exists, failure=f"vhdimount {path} showed nothing")
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=False, capture_output=True)
        server.communicate(timeout=10)


def libvhdi_raw(path: Path, where: Path) -> bytes:
    """What libvhdi reads; it honours bitmaps and parents."""
    with mounted(path, where) as shown:
        layers = sorted(shown.iterdir(), key=lambda one: int(one.name.removeprefix("vhdi")))
        return layers[-1].read_bytes()
