"""Who reads whose images: makes each kind, reads it with each program, and writes the table.

`make interop` writes docs/interop.md; a test checks that it is current.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import vhdtool
from tests.support.real_images import real_image
from tests.support.vhd_peers import (
    dissect_raw,
    libvhdi_raw,
    mounted,
    qemu_create,
    qemu_raw,
    qemu_write,
    run,
)
from vhdtool.errors import VhdtoolError

DOC = Path(__file__).resolve().parents[2] / "docs" / "interop.md"
MIB = 1 << 20
SIZE = 40 * MIB
WRITES = ((0x11, 0, 4096), (0x22, 3 * MIB - 512, 1024), (0x33, 30 * MIB, 2 * MIB))
ABOVE = ((0x44, 512, 512), (0x55, 30 * MIB + 4096, 8192), (0x66, 20 * MIB, 512))
GROUP = 8 * 512
"""Guest bytes of one byte of a bitmap."""
SAMPLE = 4 * MIB
"""Of images that others made long ago this much is compared, and the size."""

HEAD = """# Who reads whose images

Made by `make interop` (tests/interop/interop_matrix.py) with the programs named below; a test
fails when this page is not current. Each image is written by the program on the left and read by
the one at the top; *same* means the same bytes over the whole disk, and the same size.

"""

TAIL = """
- *size differs*: the bytes are the same, but the reader takes the disk for larger or smaller than
  the others do. QEMU shows a Virtual PC disk as large as its geometry; the footer's size, which
  the rest go by, is another. `vhdtool info` names both.
- *rounds bitmaps*: where a child has some of eight sectors that share a byte of its bitmap, the
  reader takes all eight from the child; whole groups of eight are read right.
- *parent ignored*: the reader shows zeros where the data is in the parent.
- *no*: the reader refuses the image.
- `check` is the verdict of `vhdtool check` on the image as it was made.
- Images of Hyper-V, Virtual PC and disk2vhd are the ones in QEMU's own test suite; their first
  4 MiB and their size are compared with what QEMU reads.
- QEMU's driver does not know the batmap: let it *write* only to images made with `--no-batmap`
  (or repair the image afterwards: nothing is lost).

vhd-util and tapdisk of blktap are not in Debian. tests/interop/test_vhd_util.py lets blktap's
vhd-util and ours work on the same images in turns, when the variable `VHD_UTIL` names one that you
built: each then accepts and reads what the other wrote, chains and resized images too.
"""

Model = bytearray | None


def _pattern(model: bytearray, writes: tuple[tuple[int, int, int], ...]) -> None:
    for value, offset, length in writes:
        model[offset : offset + length] = bytes([value]) * length


def _ours(path: Path, kind: str = "dynamic", **options: object) -> bytearray:
    vhdtool.create(path, SIZE, kind, **options)  # type: ignore[arg-type]
    with vhdtool.open(path, writable=True) as image:
        for value, offset, length in WRITES:
            image.write(offset, bytes([value]) * length)
    model = bytearray(SIZE)
    _pattern(model, WRITES)
    return model


def _our_child(path: Path) -> bytearray:
    model = _ours(path.with_name("base.vhd"))
    vhdtool.snapshot(path.with_name("base.vhd"), path)
    with vhdtool.open(path, writable=True) as image:
        for value, offset, length in ABOVE:
            image.write(offset, bytes([value]) * length)
    _pattern(model, ABOVE)
    return model


def _qemus(path: Path, *options: str) -> bytearray:
    qemu_create(path, str(SIZE), *options)
    qemu_write(path, *WRITES)
    size = SIZE if "force_size=on" in options else len(qemu_raw(path, path.with_name("size.raw")))
    model = bytearray(size)
    _pattern(model, WRITES)
    return model


def _qemus_fixed(path: Path) -> bytearray:
    options = "subformat=fixed,force_size=on"
    run("qemu-img", "create", "-q", "-f", "vpc", "-o", options, path, str(SIZE))
    qemu_write(path, *WRITES)
    model = bytearray(SIZE)
    _pattern(model, WRITES)
    return model


MADE: list[tuple[str, Callable[[Path], bytearray]]] = [
    ("vhdtool, dynamic", _ours),
    ("vhdtool, dynamic, no batmap", lambda path: _ours(path, batmap=False)),
    ("vhdtool, dynamic, 512 KiB blocks", lambda path: _ours(path, block_bytes=512 << 10)),
    ("vhdtool, fixed", lambda path: _ours(path, "fixed")),
    ("vhdtool, differencing", _our_child),
    ("QEMU, dynamic", _qemus),
    ("QEMU, dynamic, force_size", lambda path: _qemus(path, "force_size=on")),
    ("QEMU, fixed, force_size", _qemus_fixed),
]
REAL = [
    ("Hyper-V (Windows 2012 R2), dynamic", "hyperv2012r2-dynamic.vhd"),
    ("Virtual PC, dynamic", "virtualpc-dynamic.vhd"),
    ("disk2vhd, dynamic", "d2v-zerofilled.vhd"),
]


def _our_raw(path: Path, folder: Path) -> bytes:
    with vhdtool.open(path) as image:
        return image.read(0, image.size)


READERS: list[tuple[str, Callable[[Path, Path], bytes]]] = [
    ("vhdtool", _our_raw),
    ("QEMU", lambda path, folder: qemu_raw(path, folder / "out.raw")),
    ("libvhdi", lambda path, folder: libvhdi_raw(path, folder / "mnt")),
    ("dissect", lambda path, folder: dissect_raw(path)),
]


def _verdict(path: Path) -> str:
    return {0: "consistent", 2: "corrupt", 3: "unclean"}[vhdtool.check(path).exit_code]


def _compare(model: bytes, read: Callable[[Path, Path], bytes], path: Path) -> str:
    try:
        data = read(path, path.parent)
    except (VhdtoolError, AssertionError, OSError, ValueError, EOFError):
        return "no"
    if data == model:
        return "same"
    common = min(len(data), len(model))
    if data[:common] == model[:common]:
        return "size differs"
    above = bytearray(len(model))
    _pattern(above, ABOVE)
    if data[:common] == above[:common]:
        return "parent ignored"
    return "rounds bitmaps" if _but_for_parts(data, model) else "**other bytes**"


def _but_for_parts(one: bytes, other: bytes) -> bool:
    """Whether all is the same outside of groups of 8 sectors that a child has in part."""
    left, right = bytearray(one), bytearray(other)
    for _, offset, length in ABOVE:
        if length % GROUP:
            start = offset // GROUP * GROUP
            left[start : start + GROUP] = right[start : start + GROUP] = bytes(GROUP)
    return left == right


def _rows(folder: Path) -> Iterator[list[str]]:
    for number, (name, make) in enumerate(MADE):
        place = folder / str(number)
        place.mkdir()
        path = place / "image.vhd"
        model = bytes(make(path))
        cells = [_compare(model, read, path) for _, read in READERS]
        yield [name, *cells, _verdict(path)]
    for name, file in REAL:
        place = folder / file
        place.mkdir()
        yield [name, *_real(real_image(file), place), _verdict(real_image(file))]


def _real(path: Path, folder: Path) -> list[str]:
    """Samples of a large disk: QEMU's view is what the others are compared with."""
    from vhdtool.image.chain.info import info

    size = info(path)["size_for_qemu"]
    out = folder / "out"
    count = str(SAMPLE // MIB)
    run(
        "qemu-img",
        "dd",
        "-f",
        "vpc",
        "-O",
        "raw",
        f"if={path}",
        f"of={out}",
        "bs=1M",
        f"count={count}",
    )
    model = out.read_bytes()
    with vhdtool.open(path) as image:
        ours = "same" if image.read(0, len(model)) == model else "**other bytes**"
        ours = ours if image.size == size else "size differs"
    with mounted(path, folder / "mnt") as shown, (shown / "vhdi1").open("rb") as file:
        theirs = "same" if file.read(len(model)) == model else "**other bytes**"
        theirs = theirs if (shown / "vhdi1").stat().st_size == size else "size differs"
    return [ours, "same", theirs, _dissect(path, model, size)]


def _dissect(path: Path, model: bytes, size: int) -> str:
    from dissect.hypervisor.disk.vhd import VHD

    with path.open("rb") as file:
        disk = VHD(file)
        if disk.read(len(model)) != model:
            return "**other bytes**"
        return "same" if disk.size == size else "size differs"


def page() -> str:
    """The whole page."""
    with tempfile.TemporaryDirectory(prefix="vhdtool-interop-") as folder:
        rows = list(_rows(Path(folder)))
    head = ["made by", *(name for name, _ in READERS), "check"]
    lines = [head, ["---"] * len(head), *rows]
    return HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines) + TAIL


if __name__ == "__main__":
    DOC.write_text(page(), encoding="utf-8")
    print(DOC)
