"""The commands of `vhdtool`: a module each, found by name, with the short help of its docstring."""

import importlib
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


def test_the_map_of_commands_names_each_command() -> None:
    doc = importlib.import_module("vhdtool.cli.commands").__doc__ or ""
    named = {word for line in doc.splitlines() for word in line.split(":")[-1].split()}
    assert set(HELP) <= named
