"""`vhdtool scan`: the images of a directory as trees."""

from typing import TYPE_CHECKING

import click

from vhdtool.cli.arguments import json_option
from vhdtool.cli.output import print_json, size_text

if TYPE_CHECKING:
    from vhdtool.image.chain.tree import Node


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
@json_option
@click.pass_context
def scan(context: click.Context, paths: tuple[str, ...], as_json: bool) -> None:
    """Show the images of a directory as trees of parents and children.

    PATHS are directories and images. The exit code is 2 when an image cannot be read or its parent
    is missing.

    \b
    Example: vhdtool scan /srv/images
    """
    from vhdtool.image.chain.tree import scan as scan_paths

    roots = scan_paths(list(paths))
    if as_json:
        print_json([node.as_dict() for node in roots])
    else:
        for node in roots:
            _show(node)
    context.exit(2 if any(_broken(node) for node in roots) else 0)


def _show(root: "Node") -> None:
    left = [(root, 0)]
    while left:
        node, depth = left.pop()
        error = node.error and node.error.removeprefix(f"{node.path}: ")
        text = error or f"{node.kind}, {size_text(node.virtual_size)}"
        hidden = ", hidden" if node.hidden else ""
        click.echo(f"{'  ' * depth}{node.path}: {text}{hidden}")
        left += [(child, depth + 1) for child in reversed(node.children)]


def _broken(root: "Node") -> bool:
    left = [root]
    while left:
        node = left.pop()
        if node.error is not None:
            return True
        left += node.children
    return False
