"""A lost header: rebuilt where the rest of the image proves it, and refused where it does not."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.vhd_images import Picture
from vhdtool.cli.main import run
from vhdtool.errors import CorruptImage
from vhdtool.image.check.lost_header import rebuild_header
from vhdtool.image.create.differencing import snapshot
from vhdtool.storage import MemoryStorage
from vhdtool.vhd.header import SIZE
from vhdtool.vhd.units import SECTOR

MIB = 1 << 20
HEADER = slice(SECTOR, SECTOR + SIZE)
Damage = Callable[[bytearray], None]


def zeroed(raw: bytearray) -> None:
    raw[HEADER] = bytes(SIZE)


def overwritten(raw: bytearray) -> None:
    raw[HEADER] = b"\xa5" * SIZE


def first_half(raw: bytearray) -> None:
    raw[SECTOR : 2 * SECTOR] = bytes(SECTOR)


def block_size(raw: bytearray) -> None:
    raw[SECTOR + 32 : SECTOR + 36] = b"\x12\x34\x56\x78"


def bat_offset(raw: bytearray) -> None:
    raw[SECTOR + 16 : SECTOR + 24] = b"\xff" * 8


def drawn(block: int, batmap: bool, blocks: int) -> bytearray:
    picture = Picture(64 * MIB, block, batmap)
    for number in range(blocks):
        picture.add(3 * number, fill=0x41 + number)
    return bytearray(picture.draw().getvalue())


@pytest.mark.parametrize("damage", [zeroed, overwritten, first_half, block_size, bat_offset])
@pytest.mark.parametrize("batmap", [True, False])
@pytest.mark.parametrize(
    ("block", "blocks"), [(512 << 10, 1), (512 << 10, 2), (MIB, 2), (2 * MIB, 1), (4 * MIB, 2)]
)
def test_the_header_comes_back_byte_for_byte(
    damage: Damage, batmap: bool, block: int, blocks: int
) -> None:
    sound = drawn(block, batmap, blocks)
    raw = bytearray(sound)
    damage(raw)
    rebuilt = rebuild_header(MemoryStorage(bytes(raw)))
    assert (rebuilt.offset, rebuilt.header.pack()) == (SECTOR, bytes(sound[HEADER]))
    assert rebuilt.report.exit_code == 0


def test_a_bat_padded_with_ones_and_packed_blocks() -> None:
    """As Hyper-V and QEMU write them: any number of entries seems to fit such a table."""
    picture = Picture(64 * MIB, batmap=False)
    picture.footer = picture.copy = replace(picture.footer, creator=b"win ")
    picture.end = 4
    for number in (0, 7):
        picture.add(number)
        picture.blocks[number] = 4 + 4097 * (number > 0)
        picture.end = picture.layout.end_sector(picture.blocks[number])
    sound = bytearray(picture.draw().getvalue())
    table = slice(picture.header.bat_offset + 4 * 32, picture.header.bat_end)
    sound[table] = b"\xff" * (table.stop - table.start)
    raw = bytearray(sound)
    zeroed(raw)
    assert rebuild_header(MemoryStorage(bytes(raw))).header.pack() == sound[HEADER]


def test_a_table_for_a_later_resize_keeps_its_length() -> None:
    picture = Picture(64 * MIB)
    picture.header = replace(picture.header, max_entries=1000)
    picture.batmap_bits = bytearray(125)
    picture.end = picture.header.bat_end // SECTOR + 2
    picture.add(3)
    sound = bytearray(picture.draw().getvalue())
    raw = bytearray(sound)
    zeroed(raw)
    assert rebuild_header(MemoryStorage(bytes(raw))).header.max_entries == 1000


def bat_too(raw: bytearray) -> None:
    zeroed(raw)
    raw[3 * SECTOR : 4 * SECTOR] = bytes(SECTOR)


def bat_erased(raw: bytearray) -> None:
    zeroed(raw)
    raw[3 * SECTOR : 4 * SECTOR] = b"\xff" * SECTOR


def footers_too(raw: bytearray) -> None:
    raw[-SECTOR + 40] ^= 1
    raw[40] ^= 2


def entry_wrong(raw: bytearray) -> None:
    zeroed(raw)
    raw[3 * SECTOR : 3 * SECTOR + 4] = raw[3 * SECTOR + 12 : 3 * SECTOR + 16]


@pytest.mark.parametrize("damage", [bat_too, bat_erased, footers_too, entry_wrong])
@pytest.mark.parametrize("batmap", [True, False])
def test_what_is_not_proved_is_not_rebuilt(
    damage: Damage, batmap: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = drawn(2 * MIB, batmap, 2)
    zeroed(raw)
    raw[SECTOR : SECTOR + 8] = b"cxsparse"
    damage(raw)
    with pytest.raises(CorruptImage, match="cannot be rebuilt"):
        rebuild_header(MemoryStorage(bytes(raw)))
    path = tmp_path / "a.vhd"
    path.write_bytes(raw)
    assert run(["repair", "--rebuild-header", "--yes", str(path)]) == 1
    assert "cannot be rebuilt" in capsys.readouterr().err
    assert path.read_bytes() == raw
    assert [one.name for one in tmp_path.iterdir()] == ["a.vhd"]


def packed(block: int, blocks: tuple[int, ...], size: int, full: bool = True) -> bytearray:
    """Blocks without a gap, as other programs than blktap place them; no batmap."""
    picture = Picture(size, block, batmap=False)
    picture.footer = picture.copy = replace(picture.footer, creator=b"win ")
    for number in blocks:
        end = picture.end
        picture.add(number, *([] if full else [(0, 8)]))
        if not full:
            picture.data[number] = b"d" * 4096 + bytes(block - 4096)
        picture.blocks[number] = end
        picture.end = picture.layout.end_sector(end)
    return bytearray(picture.draw().getvalue())


@pytest.mark.parametrize("full", [True, False])
def test_two_blocks_do_not_pass_for_one_of_twice_the_size(full: bool) -> None:
    """Half of the table was overwritten: what is left would be a table for larger blocks."""
    raw = packed(2 * MIB, (3, 400), 1000 * MIB, full)
    zeroed(raw)
    raw[1536 + 4 * 250 : 1536 + 4 * 500] = bytes(1000)
    with pytest.raises(CorruptImage, match="cannot be rebuilt"):
        rebuild_header(MemoryStorage(bytes(raw)))


def test_blocks_that_could_have_two_sizes_are_refused() -> None:
    raw = packed(2 * MIB, (3,), 64 * MIB, full=False)
    zeroed(raw)
    with pytest.raises(CorruptImage, match="524288 or 1048576"):
        rebuild_header(MemoryStorage(bytes(raw)))


def later_half(raw: bytearray) -> None:
    """Zeros in the second half of the table, and over its end and the first block."""
    raw[1536 + 4 * 7290 : 1536 + 4 * 12290] = bytes(20000)
    raw[1536 + 4 * 5175 : 1536 + 4 * 5176] = bytes(4)


def sectors_behind(raw: bytearray) -> None:
    """Zeros also in the sectors behind the first half."""
    later_half(raw)
    raw[1536 + 4 * 5000 : 1536 + 4 * 5632] = bytes(4 * 632)


@pytest.mark.parametrize("damage", [later_half, sectors_behind])
def test_the_first_half_of_a_table_is_not_taken_for_it(damage: Damage) -> None:
    raw = packed(512 << 10, (9213, 4307, 6730), 5000 * MIB, full=False)
    zeroed(raw)
    damage(raw)
    with pytest.raises(CorruptImage, match=r"512 KiB .* or 1 MiB .* are possible"):
        rebuild_header(MemoryStorage(bytes(raw)))


def test_an_image_without_data_is_rebuilt_only_with_a_batmap() -> None:
    for batmap in (True, False):
        sound = drawn(2 * MIB, batmap, 0)
        raw = bytearray(sound)
        zeroed(raw)
        if batmap:
            assert rebuild_header(MemoryStorage(bytes(raw))).header.pack() == sound[HEADER]
        else:
            with pytest.raises(CorruptImage, match="nor anything to be rescued"):
                rebuild_header(MemoryStorage(bytes(raw)))


def test_the_preview_writes_nothing_and_undo_restores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = drawn(2 * MIB, True, 2)
    raw = bytearray(sound)
    zeroed(raw)
    path = tmp_path / "a.vhd"
    path.write_bytes(raw)
    assert run(["check", str(path)]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith(f"next: vhdtool repair {path} --rebuild-header")
    assert run(["repair", str(path), "--rebuild-header"]) == 3
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("evidence: the table at byte 1536 has 32 possible entries")
    assert out[-2] == f"{path}: with it `check` says: consistent"
    assert out[-1].startswith(f"next: vhdtool repair {path} --rebuild-header --yes")
    assert path.read_bytes() == raw
    assert run(["repair", str(path), "--rebuild-header", "--yes"]) == 0
    assert path.read_bytes() == sound
    assert run(["repair", str(path), "--rebuild-header"]) == 1
    assert "not damaged" in capsys.readouterr().err
    assert run(["repair", str(path), "--undo", f"{path}.undo"]) == 0
    assert path.read_bytes() == raw


def child(folder: Path) -> tuple[Path, Path]:
    base, kid = folder / "base.vhd", folder / "kid.vhd"
    base.write_bytes(drawn(2 * MIB, True, 2))
    snapshot(base, kid)
    return base, kid


def test_a_child_gets_the_parent_that_its_user_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, kid = child(tmp_path)
    raw = bytearray(kid.read_bytes())
    zeroed(raw)
    kid.write_bytes(raw)
    words = ["repair", str(kid), "--rebuild-header", "--yes"]
    assert run(words) == 1
    assert "name the parent with --parent" in capsys.readouterr().err
    assert kid.read_bytes() == raw
    assert run([*words, "--parent", str(base)]) in (0, 3)
    assert "nothing confirms it" in capsys.readouterr().out
    assert run(["check", str(kid)]) in (0, 3)
    assert f"{base}: consistent" in capsys.readouterr().out


def test_a_checksum_that_is_left_proves_the_parent(tmp_path: Path) -> None:
    base, kid = child(tmp_path)
    sound = kid.read_bytes()
    raw = bytearray(sound)
    block_size(raw)
    kid.write_bytes(raw)
    other = ["--parent", str(base)]
    assert run(["repair", str(kid), "--rebuild-header", "--yes"]) == 0
    assert kid.read_bytes() == sound
    assert run(["repair", str(base), "--rebuild-header", *other]) == 1
    assert run(["repair", str(kid), *other]) == 1


@pytest.mark.parametrize("seed", [3378044868, 1, 3])
def test_a_damaged_table_never_gives_a_wrong_header(seed: int) -> None:
    """Random images and damage to their tables: the header is the right one, or none.

    With the first seed image 10 once got blocks of 1 MiB: the rest of its table, behind entries
    that are zero, passed for a full block of that size.
    """
    chance = random.Random(seed)
    rebuilt = 0
    for number in range(60):
        block = chance.choice([512 << 10, MIB, 2 * MIB, 4 * MIB])
        size = chance.choice([8, 64, 1000, 5000]) * MIB
        blocks = tuple(chance.sample(range(size // block), min(3, size // block)))
        full = chance.random() < 0.5
        raw = packed(block, blocks, size, full)
        entries = size // block
        zeroed(raw)
        for _ in range(chance.randint(0, 2)):
            at = 1536 + 4 * chance.randrange(entries)
            count = chance.choice([4, 16, 512, 2 * entries])
            raw[at : at + count] = bytes(count) if chance.random() < 0.7 else b"\xff" * count
        try:
            header = rebuild_header(MemoryStorage(bytes(raw))).header
        except CorruptImage:
            continue
        rebuilt += 1
        found = (header.block_bytes, header.bat_offset, header.max_entries)
        assert found == (block, 1536, entries), f"seed {seed}, image {number}"
    assert rebuilt > 5, f"seed {seed}"
