"""Every structure against bytes that another program wrote, or that stand in the format's texts."""

from uuid import UUID

import pytest

from vhdtool.errors import CorruptImage
from vhdtool.vhd import batmap
from vhdtool.vhd.batmap import BatmapHeader
from vhdtool.vhd.footer import DYNAMIC, Footer
from vhdtool.vhd.geometry import Geometry
from vhdtool.vhd.header import Header, Locator
from vhdtool.vhd.units import NO_OFFSET, checksum, pad, unix_time, vhd_time

# What QEMU 7.2 wrote for `qemu-img create -f vpc -o force_size=on x 64M`.
QEMU_FOOTER = bytes.fromhex(
    "636f6e6563746978 00000002 00010000 0000000000000200 3298b669 71656d32 00050003 5769326b"
    "0000000004000000 0000000004000000 ffff 10 ff 00000003 ffffedce"
    "52b22d81a92f4b73ba3f0f6f37bcd66c".replace(" ", "")
).ljust(512, b"\0")


def test_footer_fields_are_read_from_their_places() -> None:
    footer = Footer.unpack(QEMU_FOOTER)
    assert footer.valid
    assert footer.features == 2
    assert footer.version == 0x00010000
    assert footer.data_offset == 512
    assert footer.timestamp == 0x3298B669
    assert footer.creator == b"qem2"
    assert footer.creator_version == 0x00050003
    assert footer.creator_os == b"Wi2k"
    assert footer.original_size == footer.current_size == 64 << 20
    assert footer.geometry == Geometry(65535, 16, 255)
    assert footer.disk_type == DYNAMIC
    assert footer.uuid == UUID("52b22d81-a92f-4b73-ba3f-0f6f37bcd66c")
    assert footer.hidden == footer.saved == 0


def test_footer_packs_to_the_same_bytes() -> None:
    raw = QEMU_FOOTER
    assert Footer.unpack(raw).pack() == raw


def test_footer_keeps_reserved_bytes() -> None:
    raw = QEMU_FOOTER[:500] + b"reserved use"
    assert Footer.unpack(raw).pack()[500:] == b"reserved use"


@pytest.mark.parametrize("place", [0, 20, 40, 84, 511])
def test_footer_checksum_sees_one_changed_bit(place: int) -> None:
    raw = bytearray(QEMU_FOOTER)
    raw[place] ^= 0x10
    assert not Footer.unpack(bytes(raw)).valid


def test_footer_of_511_bytes_is_accepted() -> None:
    assert Footer.unpack(QEMU_FOOTER[:511]).valid


def test_footer_of_fewer_bytes_is_refused() -> None:
    with pytest.raises(CorruptImage, match="510"):
        Footer.unpack(QEMU_FOOTER[:510])


def test_the_oldest_hidden_flag_is_outside_the_checksum() -> None:
    raw = bytearray(Footer(1 << 20, creator_version=0x00010001).pack())
    raw[85] = 1
    assert Footer.unpack(bytes(raw)).checksum_valid
    raw = bytearray(Footer(1 << 20, creator_version=0x00010003).pack())
    raw[85] = 1
    assert not Footer.unpack(bytes(raw)).checksum_valid


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((0, b"conectiX"), "not a VHD footer"),
        ((100, b"x"), "checksum"),
    ],
)
def test_footer_validate_names_file_and_place(change: tuple[int, bytes], message: str) -> None:
    raw = bytearray(QEMU_FOOTER)
    raw[change[0] : change[0] + len(change[1])] = change[1]
    with pytest.raises(CorruptImage, match=f"disk.vhd.*{message}"):
        Footer.unpack(bytes(raw)).validate("disk.vhd", "the footer")


def test_poisoned_footer_is_refused() -> None:
    footer = Footer.unpack(Footer(1 << 20, cookie=b"v_poison").pack())
    assert footer.poisoned
    with pytest.raises(CorruptImage, match="resize"):
        footer.validate("disk.vhd", "the footer")


# The values of QEMU's and the specification's CHS calculation.
@pytest.mark.parametrize(
    ("size", "triple"),
    [
        (512, (0, 4, 17)),
        (64 << 20, (963, 8, 17)),
        (1 << 30, (2080, 16, 63)),
        (100 << 30, (51400, 16, 255)),
        (2040 << 30, (65535, 16, 255)),
    ],
)
def test_geometry_follows_the_specification(size: int, triple: tuple[int, int, int]) -> None:
    assert Geometry.for_size(size) == Geometry(*triple)


HEADER = (
    b"cxsparse"
    + b"\xff" * 8
    + (1536).to_bytes(8, "big")
    + bytes.fromhex("00010000 00000021 00200000".replace(" ", ""))
)


def header_bytes() -> bytes:
    locator = bytes.fromhex("57327275 00000200 0000001a 00000000 0000000000000e00".replace(" ", ""))
    raw = HEADER + bytes(4) + bytes(range(16)) + bytes([0, 0, 0, 9]) + bytes(4)
    raw += "base.vhd".encode("utf-16-be").ljust(512, b"\0") + locator
    raw = raw.ljust(1024, b"\0")
    return raw[:36] + checksum(raw).to_bytes(4, "big") + raw[40:]


def test_header_fields_are_read_from_their_places() -> None:
    header = Header.unpack(header_bytes())
    assert header.valid
    assert header.next_offset == NO_OFFSET
    assert header.bat_offset == 1536
    assert header.max_entries == 33
    assert header.block_bytes == 2 << 20
    assert header.parent_uuid == UUID(bytes=bytes(range(16)))
    assert header.parent_timestamp == 9
    assert header.parent_name_text == "base.vhd"
    assert header.locators[0] == Locator(b"W2ru", 512, 26, 0, 3584)
    assert not header.locators[1].used
    assert header.bat_bytes == 512
    assert header.bat_end == 2048


def test_header_packs_to_the_same_bytes() -> None:
    assert Header.unpack(header_bytes()).pack() == header_bytes()


def test_header_checksum_sees_one_changed_bit() -> None:
    raw = bytearray(header_bytes())
    raw[1000] ^= 1
    assert not Header.unpack(bytes(raw)).valid


@pytest.mark.parametrize("block", [0, 3 << 20, 256, (2 << 20) + 1])
def test_header_refuses_impossible_blocks(block: int) -> None:
    header = Header.unpack(Header(1, block).pack())
    with pytest.raises(CorruptImage, match="block size"):
        header.validate("disk.vhd")


@pytest.mark.parametrize(
    ("space", "room"), [(0, 0), (1, 512), (511, 511 * 512), (512, 512), (1024, 1024), (513, None)]
)
def test_locator_room_counts_sectors_below_512_and_bytes_above(
    space: int, room: int | None
) -> None:
    assert Locator(b"W2ku", space).capacity == room


def batmap_header_bytes() -> bytes:
    raw = b"tdbatmap" + (4096).to_bytes(8, "big") + (2).to_bytes(4, "big")
    raw += bytes.fromhex("00010002 fffffef0 01 01".replace(" ", "")) + b"n" * 32 + b"h" * 32
    return raw.ljust(512, b"\0")


def test_batmap_header_fields_are_read_from_their_places() -> None:
    header = BatmapHeader.unpack(batmap_header_bytes())
    assert header.has_cookie
    assert (header.offset, header.sectors) == (4096, 2)
    assert header.version == 0x00010002
    assert header.checksum == 0xFFFFFEF0
    assert (header.marker, header.key_set) == (1, 1)
    assert header.key_nonce == b"n" * 32
    assert header.key_hash == b"h" * 32
    assert header.pack() == batmap_header_bytes()


def test_batmap_checksum_covers_the_size_rounded_down() -> None:
    gib = 1 << 30
    bits = bytes(512) + b"\xff" * 512
    # 8 GiB are 4096 blocks: one sector of bits. 8 GiB and seven blocks still sum one sector.
    assert batmap.batmap_checksum(bits, 8 * gib) == 0xFFFFFFFF
    assert batmap.batmap_checksum(bits, 8 * gib + 7 * (2 << 20)) == 0xFFFFFFFF
    assert batmap.batmap_checksum(bits, 8 * gib + 8 * (2 << 20)) == ~(255 * 512) & 0xFFFFFFFF


def test_batmap_checksum_of_version_1_1_sums_signed_bytes() -> None:
    bits = b"\xff\x01".ljust(512, b"\0")
    assert batmap.batmap_checksum(bits, 1 << 20, 0x00010001) == ~(-1 + 1) & 0xFFFFFFFF
    assert batmap.batmap_checksum(bits, 1 << 20) == ~256 & 0xFFFFFFFF


def test_times_count_from_2000() -> None:
    assert vhd_time(946684800) == 0
    assert unix_time(1) == 946684801
    assert vhd_time(0) == 0


def test_pad_rounds_up() -> None:
    assert [pad(n) for n in (0, 1, 512, 513)] == [0, 512, 512, 1024]
