"""`vhdtool scan`: the images of a directory as trees."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import click

from vhdtool.cli.arguments import json_option
from vhdtool.cli.findings import checked, summary_lines, worst
from vhdtool.cli.output import print_json
from vhdtool.vhd.units import size_text

if TYPE_CHECKING:
    from vhdtool.image.chain.check import ChainReport
    from vhdtool.image.chain.tree import Node

_OTHER_FORMATS = {"qcow2": "a qcow2 image, not a VHD", "vhdx": "a VHDX image, not a VHD"}


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--check", "with_check", is_flag=True, help="Check each image: a line each.")
@json_option
@click.pass_context
def scan(context: click.Context, paths: tuple[str, ...], with_check: bool, as_json: bool) -> None:
    """Show the images of a directory as trees of parents and children.

    PATHS are directories and images. The exit code is 2 when an image cannot be read or its parent
    is missing. With --check each image is checked, and the exit codes are those of `check`. An
    image that a process has open for writing is checked as one in use (`check --live`).

    \b
    Example: vhdtool scan /srv/images
             vhdtool scan --check /srv/images
    """
    from vhdtool.image.chain.tree import scan as scan_paths

    roots = scan_paths(list(paths))
    if with_check:
        context.exit(_check(roots, as_json))
    if as_json:
        print_json([node.as_dict() for node in roots])
    else:
        for node, depth in _in_order(roots):
            click.echo(f"{'  ' * depth}{node.path}: {_text(node)}")
    context.exit(2 if any(node.error is not None for node, _ in _in_order(roots)) else 0)


def _in_order(roots: "list[Node]") -> "Iterator[tuple[Node, int]]":
    """(node, depth) of all trees, each parent before its children."""
    left = [(root, 0) for root in reversed(roots)]
    while left:
        node, depth = left.pop()
        yield node, depth
        left += [(child, depth + 1) for child in reversed(node.children)]


def _text(node: "Node") -> str:
    if node.error is not None:
        return node.error.removeprefix(f"{node.path}: ")
    if node.kind in _OTHER_FORMATS:
        return _OTHER_FORMATS[node.kind]
    hidden = ", hidden" if node.hidden else ""
    return f"{node.kind}, {size_text(node.virtual_size)}{hidden}"


def _check(roots: "list[Node]", as_json: bool) -> int:
    """Check each VHD of the trees; return the exit code."""
    from vhdtool.image.chain.check import Known, check_chain
    from vhdtool.leases.claim import writer_of

    known: Known = {}

    def report(image: str) -> "ChainReport":
        return check_chain(image, "live" if writer_of(image) else "strict", known=known)

    verdicts = []
    for node, depth in _in_order(roots):
        indent = "  " * depth
        if node.kind in _OTHER_FORMATS:
            if not as_json:
                click.echo(f"{indent}{node.path}: {_text(node)}: not checked")
            continue
        one = checked(node.path, partial(report, node.path), as_json)
        verdicts.append(one)
        if not as_json:
            click.echo(indent + one.line())
    if as_json:
        print_json([one.as_dict() for one in verdicts])
    else:
        for line in summary_lines(verdicts):
            click.echo(line)
    return worst(one.exit_code for one in verdicts)
