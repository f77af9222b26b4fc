"""Footer, header, locators and batmap as `vhd-util read -p` prints them; scripts parse it."""

import time
from collections.abc import Callable

from vhdtool.errors import VhdtoolError
from vhdtool.image.metadata.ends import read_ends
from vhdtool.image.metadata.read import Metadata, read_batmap, read_header
from vhdtool.storage import FileStorage, Storage
from vhdtool.vhd.batmap import batmap_checksum, batmap_possible
from vhdtool.vhd.footer import DIFFERENCING, Footer
from vhdtool.vhd.header import Header
from vhdtool.vhd.locators import decode_locator
from vhdtool.vhd.units import unix_time

Number = Callable[[int], str]
_TYPES = {0: "None", 2: "Fixed hard disk", 3: "Dynamic hard disk", 4: "Differencing hard disk"}
_CODES = {
    b"Wi2r": "PLAT_CODE_WI2R",
    b"Wi2k": "PLAT_CODE_WI2K",
    b"W2ru": "PLAT_CODE_W2RU",
    b"W2ku": "PLAT_CODE_W2KU",
    b"Mac ": "PLAT_CODE_MAC",
    b"MacX": "PLAT_CODE_MACX",
}
_HOSTS = {b"Wi2k": "Windows", b"Mac ": "Macintosh"}


def decimal(value: int) -> str:
    return str(value)


def hexadecimal(value: int) -> str:
    return f"{value:#x}" if value else "0"


def print_headers(storage: Storage, meta: Metadata, show: Number) -> None:
    """Print footer, header, locators and batmap of an image."""
    _footer(meta.footer, show)
    if meta.header is None:
        return
    _header(meta.header, show)
    if meta.footer.disk_type == DIFFERENCING:
        _locators(storage, meta.header, show)
    if batmap_possible(meta.footer):
        _batmap(storage, meta, meta.header, show)


def dump(name: str, title: str, show: Number = decimal) -> None:
    """Print the readable metadata of an image that cannot be opened."""
    print(title)
    try:
        with FileStorage(name) as storage:
            ends = read_ends(storage)
            footer = ends.best or ends.footer or ends.copy
            if footer is not None:
                _footer(footer, show)
                _header(read_header(storage, footer.data_offset), show)
    except VhdtoolError:
        # Nothing more is readable; the reason has been printed already.
        return


def _title(text: str) -> None:
    print(f"{text}:\n{'-' * (len(text) + 1)}")


def _row(name: str, value: object) -> None:
    print(f"{name:<20}: {value}")


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _checksum(stored: int, correct: int) -> str:
    return f"0x{stored:x}|0x{correct:x} ({'Good!' if stored == correct else 'Bad!'})"


def _size(size: int, show: Number) -> str:
    return f"{show(size >> 20)} MB ({show(size)} Bytes)"


def _footer(footer: Footer, show: Number) -> None:
    _title("VHD Footer Summary")
    _row("Cookie", _text(footer.cookie))
    features = ("<TEMP>" if footer.features & 1 else "") + ("<RESV>" if footer.features & 2 else "")
    _row("Features", f"(0x{footer.features:08x}) {features}")
    _row("File format version", f"Major: {footer.version >> 16}, Minor: {footer.version & 0xFFFF}")
    _row("Data offset", show(footer.data_offset))
    _row("Timestamp", time.ctime(unix_time(footer.timestamp)))
    _row("Creator Application", f"'{_text(footer.creator)}'")
    version = footer.creator_version
    _row("Creator version", f"Major: {version >> 16}, Minor: {version & 0xFFFF}")
    _row("Creator OS", _HOSTS.get(footer.creator_os, "Unknown!"))
    _row("Original disk size", _size(footer.original_size, show))
    _row("Current disk size", _size(footer.current_size, show))
    chs = footer.geometry
    _row(
        "Geometry",
        f"Cyl: {show(chs.cylinders)}, Hds: {show(chs.heads)}, Sctrs: {show(chs.sectors)}",
    )
    _row("", f"= {_size(chs.size, show)}")
    _row("Disk type", _TYPES.get(footer.disk_type, "Unknown type!\n"))
    _row("Checksum", _checksum(footer.checksum, Footer.unpack(footer.pack()).checksum))
    _row("UUID", footer.uuid)
    _row("Saved state", "Yes" if footer.saved else "No")
    _row("Hidden", footer.hidden)
    print()


def _header(header: Header, show: Number) -> None:
    _title("VHD Header Summary")
    _row("Cookie", _text(header.cookie))
    _row("Data offset (unusd)", show(header.next_offset))
    _row("Table offset", show(header.bat_offset))
    _row("Header version", f"0x{header.version:08x}")
    _row("Max BAT size", show(header.max_entries))
    _row("Block size", f"{show(header.block_bytes)} ({show(header.block_bytes >> 20)} MB)")
    _row("Parent name", header.parent_name_text)
    _row("Parent UUID", header.parent_uuid)
    _row("Parent timestamp", time.ctime(unix_time(header.parent_timestamp)))
    _row("Checksum", _checksum(header.checksum, Header.unpack(header.pack()).checksum))
    print()


def _locators(storage: Storage, header: Header, show: Number) -> None:
    _title("VHD Parent Locators")
    for index, one in enumerate(header.locators):
        if not one.used:
            continue
        _row("locator:", index)
        _row("       code", _CODES.get(one.code, "UNKOWN"))
        _row("       data_space", show(one.space))
        _row("       data_length", show(one.length))
        _row("       data_offset", show(one.offset))
        path = None
        if one.length <= (one.capacity or 0):
            path = decode_locator(one.code, storage.pread(one.offset, one.length))
        if path is None:
            print("failed to read parent name")
        else:
            _row("       decoded name", path)
        print()


def _batmap(storage: Storage, meta: Metadata, header: Header, show: Number) -> None:
    batmap = meta.batmap
    bits = read_batmap(storage, batmap, header) if batmap is not None else None
    if batmap is None or bits is None:
        print("failed to get batmap header")
        return
    _title("VHD Batmap Summary")
    _row("Batmap offset", show(batmap.offset))
    _row("Batmap size (secs)", show(batmap.sectors))
    _row("Batmap version", f"0x{batmap.version:08x}")
    if batmap.key_set == 1:
        _row("Batmap keyhash nonce", batmap.key_nonce.hex())
        _row("Batmap keyhash hash ", batmap.key_hash.hex())
    correct = batmap_checksum(bits, meta.size, batmap.version)
    _row("Checksum", _checksum(batmap.checksum, correct))
    print()
