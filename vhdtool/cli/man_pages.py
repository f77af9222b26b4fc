"""Man pages, made from the help: `vhdtool`, one for each of its commands, and `vhd-util`."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from vhdtool import __version__
from vhdtool.cli.main import GROUPS, HELP, cli
from vhdtool.cli.vhd_util.completion import as_click

_CODE = re.compile(r"`([^`\n]+)`")


def write_pages(folder: str) -> list[str]:
    """Write all pages to a directory; return their paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in pages():
        path = Path(folder) / f"{name}.1"
        path.write_text(text, encoding="utf-8")
        paths.append(str(path))
    return paths


def pages() -> Iterator[tuple[str, str]]:
    """(name, text) of each page."""
    root = click.Context(cli, info_name="vhdtool", **cli.context_settings)
    yield "vhdtool", _page(root, HELP_OF_ROOT, _overview())
    for name, short in HELP.items():
        command = cli.get_command(root, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=root)
        yield f"vhdtool-{name}", _page(context, short, _subcommands(context), "vhdtool")
    theirs = click.Context(as_click(), info_name="vhd-util")
    yield "vhd-util", _page(theirs, HELP_OF_VHD_UTIL, _subcommands(theirs), "vhdtool")


HELP_OF_ROOT = "Work on VHD images, and judge whether a disk survives live migration."
HELP_OF_VHD_UTIL = "Work on VHD images with the command line of blktap's tool."


def _page(context: click.Context, short: str, further: str, see_also: str = "") -> str:
    """A page: name, synopsis, description, options, then `further` sections."""
    command = context.command
    path = context.command_path
    name = path.replace(" ", "-")
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [
        f'.TH "{_escape(name.upper())}" "1" "" "vhdtool {__version__}" "User Commands"',
        f".SH NAME\n{_escape(name)} \\- {_escape(short.removesuffix('.'))}",
        f".SH SYNOPSIS\n.B {_escape(path)}\n{_escape(usage)}",
        f".SH DESCRIPTION\n{_paragraphs(command.help)}",
    ]
    if options := _options(context):
        parts.append(f".SH OPTIONS\n{options}")
    parts += [further] if further else []
    if command.epilog:
        parts.append(f".SH NOTES\n{_paragraphs(command.epilog)}")
    if see_also:
        parts.append(f".SH SEE ALSO\n.BR {see_also} (1)")
    return "\n".join(parts) + "\n"


def _options(context: click.Context) -> str:
    records = []
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            words, text = record
            records.append(f".TP\n.B {_escape(words)}\n{_text(text)}")
    return "\n".join(records)


def _overview() -> str:
    parts = [".SH COMMANDS"]
    for title, group in GROUPS.items():
        parts.append(f".SS {_escape(title)}")
        for name, short in group.items():
            parts.append(f".TP\n.BR vhdtool\\-{_escape(name)} (1)\n{_text(short)}")
    return "\n".join(parts)


def _subcommands(context: click.Context) -> str:
    """The commands of a group, each with its usage, its text and its options."""
    group = context.command
    if not isinstance(group, click.Group):
        return ""
    parts = [".SH COMMANDS"]
    for name, command in group.commands.items():
        inner = click.Context(command, info_name=name, parent=context)
        usage = " ".join(command.collect_usage_pieces(inner))
        parts.append(f".SS {_escape(name)} {_escape(usage)}\n{_paragraphs(command.help)}")
        if options := _options(inner):
            parts.append(options)
    return "\n".join(parts)


def _paragraphs(text: str | None) -> str:
    """Help of click: a paragraph that begins with \\b keeps its lines."""
    shown = []
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            lines = _text(paragraph.removeprefix("\b\n"))
            shown.append(f".PP\n.nf\n{lines}\n.fi")
        else:
            shown.append(f".PP\n{_text(paragraph)}")
    return "\n".join(shown)


def _text(text: str) -> str:
    """Lines of text, of which none is a request; `code` is bold."""
    escaped = _CODE.sub(r"\\fB\1\\fP", _escape(text))
    return re.sub(r"^(?=[.'])", r"\\&", escaped, flags=re.MULTILINE)


def _escape(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")
