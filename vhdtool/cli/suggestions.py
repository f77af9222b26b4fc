"""What an unknown command or option may have meant.

Options that overwrite, discard or end the protection of something are never suggested: who copies
a suggestion must not lose data by it.
"""

from collections.abc import Iterable

import click

NEVER = frozenset(
    {
        "--drop-orphans",
        "--faithful",
        "--force",
        "--force-epoch",
        "--other-disk",
        "--undo",
        "--yes",
    }
)
"""Options that are not suggested."""
OTHER_TOOLS = {
    "commit": "coalesce",
    "copy": "convert",
    "dd": "read",
    "key": "vhd-util key",
    "list": "scan",
    "query": "info",
    "rebase": "modify --parent",
    "revert": "repair --undo",
    "set": "modify",
}
"""Commands of qemu-img and vhd-util that have another name here -> that name."""


def unknown_command(name: str, known: Iterable[str]) -> str:
    """The message for a command that does not exist."""
    text = f"No such command '{name}'."
    if name in OTHER_TOOLS:
        other = OTHER_TOOLS[name]
        return f"{text} `{other if other.startswith('vhd-util') else f'vhdtool {other}'}` does it."
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    return f"{text} Did you mean '{near[0]}'?" if near else f"{text} See `vhdtool --help`."


def unknown_option(error: click.NoSuchOption) -> str:
    """The message for an option that does not exist."""
    text = f"No such option '{error.option_name}'."
    # The nearest only: where it is not to be suggested, a worse guess would mislead.
    near = (error.possibilities or [""])[0]
    if near and near not in NEVER:
        return f"{text} Did you mean '{near}'?"
    return f"{text} See `{error.ctx.command_path} --help`." if error.ctx is not None else text
