"""Changes of the image: sectors, bitmaps, tables, its end; of qcow2 refcounts and flags."""

import os
import struct
from collections.abc import Iterator

from tests.tamper.draft import CONTRADICTS, DAMAGED, EITHER, SAME, Change, Draft

SECTOR = 512
OFFSET_BITS = 0x00FFFFFFFFFFFE00


def image_changes(draft: Draft) -> Iterator[Change]:
    size = draft.image.stat().st_size
    for cut in (1, SECTOR, size // 2, size - SECTOR):
        yield Change(f"image: cut off by {cut}", CONTRADICTS, lambda d, c=cut: d.truncate(size - c))
    yield Change("image: one sector longer", CONTRADICTS, lambda d: d.truncate(size + SECTOR))
    yield Change("image: empty", CONTRADICTS, lambda d: d.truncate(0))
    yield Change("harmless: an image without holes", SAME, raw=_no_holes)
    yield from _vhd(draft, size) if draft.kind == "vhd" else _qcow2(draft)


def _no_holes(draft: Draft) -> None:
    """Writes the holes of the first megabytes; more would take long and show the same."""
    with open(draft.image, "r+b") as file:
        for offset in range(0, min(draft.image.stat().st_size, 8 << 20), 1 << 16):
            os.pwrite(file.fileno(), os.pread(file.fileno(), 1 << 16, offset), offset)
    draft.copy_again()


def _vhd(draft: Draft, size: int) -> Iterator[Change]:
    meta = list(draft.metadata.values())[-1]
    header = meta["header"]
    bat_offset = header["bat_offset"]
    bat = {int(block): at for block, at in meta["bat"].items()}
    blocks = sorted(bat)
    bitmap_bytes = max(header["block_bytes"] // SECTOR // 8, SECTOR)
    for block in (blocks[0], blocks[len(blocks) // 3], blocks[-1]):
        entry, at = bat_offset + 4 * block, bat[block] * SECTOR
        bits = bytes.fromhex(meta["bitmaps"][str(block)])
        first = next(n for n in range(len(bits) * 8) if bits[n // 8] & 0x80 >> n % 8)
        # The first write to a block goes to its end.
        data = at + bitmap_bytes + header["block_bytes"] - SECTOR
        name = f"image: block {block}"
        yield _patch(f"{name}: a sector of zeros", data, bytes(SECTOR))
        yield _patch(f"{name}: foreign data", data, b"\xa5" * SECTOR)
        yield Change(f"{name}: one byte", DAMAGED, lambda d, p=data: _flip(d, p + 300, 1))
        yield Change(f"{name}: a bit of its bitmap", DAMAGED,
                     lambda d, p=at + first // 8, n=first: _flip(d, p, 0x80 >> n % 8))  # fmt: skip
        yield _patch(f"{name}: free", entry, b"\xff" * 4)
        for by in (1, 8, -8):
            yield _patch(f"{name}: moved by {by}", entry, struct.pack(">I", bat[block] + by))
        yield _patch(f"{name}: after the end", entry, struct.pack(">I", size // SECTOR + 64))
    pair = struct.pack(">I", bat[blocks[1]])
    yield _patch("image: two blocks at one sector", bat_offset + 4 * blocks[0], pair)
    free = next(b for b in range(header["max_entries"]) if b not in bat)
    yield _patch("image: a block more", bat_offset + 4 * free, pair)
    for offset, what in (
        (0, "the footer's copy"),
        (SECTOR, "the header"),
        (size - SECTOR, "the footer"),
    ):
        yield _patch(f"image: {what} zeroed", offset, bytes(SECTOR))
        yield Change(f"image: a bit of {what}", DAMAGED, lambda d, p=offset: _flip(d, p + 70, 4))
    yield Change(
        "image: two sectors swapped", DAMAGED, lambda d: _sectors(d, bat, blocks, bitmap_bytes)
    )


def _sectors(draft: Draft, bat: dict[int, int], blocks: list[int], bitmap_bytes: int) -> None:
    """Swaps the last sectors of two blocks, to which the first write of a block goes."""
    inside = draft.case["block_bytes"] - SECTOR + bitmap_bytes
    one, other = (bat[block] * SECTOR + inside for block in (blocks[0], blocks[1]))
    first, second = draft.read(one, SECTOR), draft.read(other, SECTOR)
    draft.patch(one, second)
    draft.patch(other, first)


def _qcow2(draft: Draft) -> Iterator[Change]:
    raw = draft.read(0, 104)
    (bits,) = struct.unpack_from(">I", raw, 20)
    l1_offset, refcounts = struct.unpack_from(">QQ", raw, 40)
    cluster = 1 << bits
    (first_block,) = struct.unpack(">Q", draft.read(refcounts, 8))
    meta = list(draft.metadata.values())[-1]
    blocks = sorted(int(block) for block in meta["bat"])
    for block in (blocks[0], blocks[len(blocks) // 2], blocks[-1]):
        index, at = divmod(block, cluster // 8)
        (l1,) = struct.unpack(">Q", draft.read(l1_offset + 8 * index, 8))
        entry = (l1 & OFFSET_BITS) + 8 * at
        (value,) = struct.unpack(">Q", draft.read(entry, 8))
        count = first_block + 2 * ((value & OFFSET_BITS) // cluster)
        name = f"image: cluster {block}"
        yield _patch(f"{name}: no entry", entry, bytes(8))
        yield _patch(f"{name}: reads as zeros", entry, struct.pack(">Q", value | 1))
        yield _patch(f"{name}: not COPIED", entry, struct.pack(">Q", value & ~(1 << 63)))
        yield _patch(f"{name}: moved", entry, struct.pack(">Q", value + cluster))
        yield _patch(f"{name}: compressed", entry, struct.pack(">Q", value | 1 << 62))
        yield _patch(f"{name}: refcount 0", count, bytes(2))
        yield _patch(f"{name}: refcount 2", count, b"\0\2")
        yield _patch(f"{name}: its table not COPIED", l1_offset + 8 * index,
                     struct.pack(">Q", l1 & ~(1 << 63)))  # fmt: skip
        yield _patch(f"{name}: its table gone", l1_offset + 8 * index, bytes(8))
        yield _patch(f"{name}: a sector of zeros", value & OFFSET_BITS, bytes(cluster))
    yield _patch("image: refcount table lost", refcounts, bytes(cluster))
    yield _patch("image: refcount block lost", first_block, bytes(cluster))
    yield _patch("image: a refcount too many", first_block + cluster - 2, b"\0\1",
                 EITHER)  # fmt: skip
    yield _patch("image: header zeroed", 0, bytes(104))
    yield _patch("image: marked as corrupt", 79, b"\2")
    yield _patch("image: marked as dirty", 79, b"\1", CONTRADICTS)
    yield _patch("image: names another file", 8, struct.pack(">QI", 104, 4), CONTRADICTS)
    yield Change("check.json: gone", CONTRADICTS, raw=lambda d: (d.path / "check.json").unlink())
    yield Change("check.json: another image's", CONTRADICTS,
                 raw=lambda d: (d.path / "check.json").write_text("{}"))  # fmt: skip


def _patch(name: str, offset: int, data: bytes, right: frozenset[str] = DAMAGED) -> Change:
    return Change(name, right, lambda d: d.patch(offset, data))


def _flip(draft: Draft, offset: int, bits: int) -> None:
    draft.patch(offset, bytes([draft.read(offset, 1)[0] ^ bits]))
