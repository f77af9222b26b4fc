"""`vhdtool completion`: the script by which a shell completes commands and options."""

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Example: eval "$(vhdtool completion bash)"
             vhdtool completion fish > ~/.config/fish/completions/vhdtool.fish
    """
    from click.shell_completion import get_completion_class

    cli = context.find_root().command
    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(cli, {}, "vhdtool", "_VHDTOOL_COMPLETE").source())
