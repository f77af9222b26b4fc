"""The commands of `vhdtool`: a module each, found by name, with the short help of its docstring."""

import inspect
from pathlib import Path

import click
import pytest

from vhdtool.cli import commands
from vhdtool.cli.main import HELP, cli


def test_each_command_has_a_module_of_its_name() -> None:
    modules = {path.stem for path in Path(commands.__file__).parent.glob("*.py")}
    assert modules - {"__init__"} == set(HELP)
    assert list(HELP) == sorted(HELP)


@pytest.mark.parametrize("name", HELP)
def test_short_help_is_the_docstrings_first_sentence(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.callback is not None
    text = " ".join((inspect.getdoc(command.callback) or "").split("\n\n")[0].split())
    assert HELP[name] == f"{text.removesuffix('.').split('. ')[0]}."
