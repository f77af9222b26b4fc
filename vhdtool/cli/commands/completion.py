"""`vhdtool completion`: the script by which a shell completes commands and options."""

import click

VARIABLES = {"vhdtool": "_VHDTOOL_COMPLETE", "vhd-util": "_VHD_UTIL_COMPLETE"}
"""Program -> the variable by which its script asks it."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.argument("program", type=click.Choice(list(VARIABLES)), required=False)
@click.pass_context
def completion(context: click.Context, shell: str, program: str | None) -> None:
    """Print the completion script for a shell.

    PROGRAM is vhdtool or vhd-util; the default is both.

    \b
    Example: eval "$(vhdtool completion bash)"
             vhdtool completion fish vhdtool > ~/.config/fish/completions/vhdtool.fish
             vhdtool completion fish vhd-util > ~/.config/fish/completions/vhd-util.fish
    """
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    assert completer is not None
    root = context.find_root().command
    for name in [program] if program else VARIABLES:
        click.echo(completer(root, {}, name, VARIABLES[name]).source())
