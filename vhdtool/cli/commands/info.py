"""`vhdtool info`: every field of an image's metadata, as text or JSON."""

from typing import Any

import click

from vhdtool.cli.arguments import image_argument, json_option
from vhdtool.cli.output import print_json, table_text
from vhdtool.vhd.units import size_text


@click.command()
@image_argument
@json_option
def info(image: str, as_json: bool) -> None:
    """Show every field of an image's metadata.

    \b
    Example: vhdtool info disk.vhd
    """
    from vhdtool.image.chain.info import info as image_info

    result = image_info(image)
    if as_json:
        print_json(result)
    else:
        click.echo(_info_text(result))


def _info_text(data: dict[str, Any]) -> str:
    footer = data["footer"]
    pairs: list[tuple[str, object]] = [
        ("image", data["image"]),
        ("type", data["type"]),
        ("virtual size", size_text(data["virtual_size"])),
        ("file size", f"{size_text(data['file_size'])}, on disk {size_text(data['disk_size'])}"),
        ("uuid", footer["uuid"]),
        ("created", data["created"]),
        ("creator", f"{data['creator']}, version {_version(footer['creator_version'])}"),
        ("creator's host", data["creator_host"]),
        ("geometry", "/".join(str(n) for n in footer["geometry"]) + " (cylinders/heads/sectors)"),
        ("original size", size_text(footer["original_size"])),
        ("format version", _version(footer["version"])),
        ("features", f"0x{footer['features']:08x}"),
        ("saved state", _yes(footer["saved"])),
        ("hidden", _yes(footer["hidden"])),
        ("closed", "yes" if data["closed"] else _open_text(data["footer_killed"])),
    ]
    if data["size_for_qemu"] != data["virtual_size"]:
        pairs.append(("size for QEMU", size_text(data["size_for_qemu"])))
    if data["header"] is not None:
        pairs += _header_rows(data)
    return table_text(pairs)


def _header_rows(data: dict[str, Any]) -> list[tuple[str, object]]:
    header, batmap = data["header"], data["batmap"]
    pairs: list[tuple[str, object]] = [
        ("block size", size_text(header["block_bytes"])),
        ("blocks", f"{data['allocated']} of {data['blocks']} allocated"),
        ("header at", f"byte {data['footer']['data_offset']}"),
        ("BAT at", f"byte {header['bat_offset']}"),
        ("batmap", "none" if batmap is None else f"byte {batmap['offset']}"),
    ]
    if batmap is not None:
        pairs.append(("batmap version", _version(batmap["version"])))
        pairs.append(("batmap marker", batmap["marker"]))
        pairs.append(("encrypted", _yes(batmap["encrypted"])))
    if "chain" in data:
        pairs.append(("parent uuid", header["parent_uuid"]))
        pairs.append(("parent name", header["parent_name"]))
        pairs.append(("parent changed", data["parent_changed"]))
        pairs += [(f"locator {one['code']}", one["path"]) for one in data["locators"]]
        for depth, layer in enumerate(data["chain"], 1):
            text = layer.get("error") or f"{layer['image']} ({layer['type']})"
            pairs.append((f"parent {depth}", text))
    return pairs


def _version(value: int) -> str:
    return f"{value >> 16}.{value & 0xFFFF}"


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _open_text(killed: bool) -> str:
    if killed:
        return "no: tapdisk has it open, or had when it died"
    return "no: there is no footer at its end"
