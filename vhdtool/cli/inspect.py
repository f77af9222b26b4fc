"""`vhdtool info` and `vhdtool check`."""

from typing import TYPE_CHECKING, Any

import click

from vhdtool.cli.options import human, image_argument, json_option, print_json, quiet_option, rows

if TYPE_CHECKING:
    from vhdtool.image.chain.check import ChainReport


@click.command()
@image_argument
@json_option
def info(image: str, as_json: bool) -> None:
    """Show every field of an image's metadata, in words.

    \b
    Example: vhdtool info disk.vhd
    """
    from vhdtool.image.chain.info import info as collect

    result = collect(image)
    if as_json:
        print_json(result)
    else:
        click.echo(_info_text(result))


def _info_text(data: dict[str, Any]) -> str:
    footer = data["footer"]
    pairs: list[tuple[str, object]] = [
        ("image", data["image"]),
        ("type", data["type"]),
        ("virtual size", human(data["virtual_size"])),
        ("file size", f"{human(data['file_size'])}, on disk {human(data['disk_size'])}"),
        ("uuid", footer["uuid"]),
        ("created", data["created"]),
        ("creator", f"{data['creator']}, version {_version(footer['creator_version'])}"),
        ("creator's host", data["creator_host"]),
        ("geometry", "/".join(str(n) for n in footer["geometry"]) + " (cylinders/heads/sectors)"),
        ("original size", human(footer["original_size"])),
        ("format version", _version(footer["version"])),
        ("features", f"0x{footer['features']:08x}"),
        ("saved state", _yes(footer["saved"])),
        ("hidden", _yes(footer["hidden"])),
        ("closed", "yes" if data["closed"] else _open_text(data["footer_killed"])),
    ]
    if data["size_for_qemu"] != data["virtual_size"]:
        pairs.append(("size for QEMU", human(data["size_for_qemu"])))
    if data["header"] is not None:
        pairs += _header_rows(data)
    return rows(pairs)


def _header_rows(data: dict[str, Any]) -> list[tuple[str, object]]:
    header, batmap = data["header"], data["batmap"]
    pairs: list[tuple[str, object]] = [
        ("block size", human(header["block_bytes"])),
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


@click.command()
@image_argument
@click.option("--strict", "mode", flag_value="strict", default=True, help="Closed (default).")
@click.option("--unclean", "mode", flag_value="unclean", help="Crashed: no footer is no fault.")
@click.option("--live", "mode", flag_value="live", help="In use: its end may move meanwhile.")
@click.option("--bitmaps/--no-bitmaps", default=True, help="Read every block's bitmap (default).")
@click.option("--parents/--no-parents", default=True, help="Check the parents too (default).")
@json_option
@quiet_option
@click.pass_context
def check(
    context: click.Context,
    image: str,
    mode: str,
    bitmaps: bool,
    parents: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check an image, and say for each fault what it means. Writes nothing.

    Exit codes: 0 consistent; 1 the check could not be done; 2 corrupt; 3 unclean, leaks, or blocks
    that no BAT entry names (a probable loss), but all that the BAT names is whole.

    \b
    Example: vhdtool check --unclean disk.vhd
    """
    from vhdtool.image.chain.check import check_chain

    report = check_chain(image, mode, bitmaps, parents)  # type: ignore[arg-type]
    if as_json:
        print_json(report.as_dict())
    elif not quiet:
        _print_report(report)
    context.exit(report.exit_code)


def _print_report(report: "ChainReport") -> None:
    for finding in report.links:
        click.echo(f"{finding.severity}: {finding.code}: {finding.message}")
    for one in report.reports:
        for finding in one.findings:
            place = ""
            if finding.offset is not None:
                place = f" (byte {finding.offset})"
            guest = ""
            if finding.sectors is not None:
                first, count = finding.sectors
                guest = f"; guest sectors {first} to {first + count - 1}"
            click.echo(f"{finding.severity}: {finding.code}: {finding.message}{place}{guest}")
        text = f"{one.name}: {report.verdict(one)}"
        if one.blocks:
            text += f", {one.allocated} of {one.blocks} blocks allocated"
        if one.orphans:
            text += (
                f"; {len(one.orphans)} more in the file that no BAT entry names: a probable loss"
            )
        click.echo(text)
    for line in report.advice():
        click.echo(f"help: {line}")
