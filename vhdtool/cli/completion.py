"""`vhdtool completion`: what a shell needs to complete commands, options and file names."""

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a SHELL.

    \b
    Example: eval "$(vhdtool completion bash)"
             vhdtool completion fish > ~/.config/fish/completions/vhdtool.fish
    """
    from click.shell_completion import get_completion_class

    from vhdtool.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "vhdtool", "_VHDTOOL_COMPLETE").source())
