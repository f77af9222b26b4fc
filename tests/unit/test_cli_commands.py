"""The commands of `vhdtool`: a module each, found by name, with the short help of its docstring."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from vhdtool.cli import commands
from vhdtool.cli.main import GROUPS, HELP, WRONG_USAGE, cli, run
from vhdtool.cli.suggestions import NEVER, OTHER_TOOLS


def test_each_command_has_a_module_of_its_name() -> None:
    modules = {path.stem for path in Path(commands.__file__).parent.glob("*.py")}
    assert modules - {"__init__"} == set(HELP)


def test_help_and_the_folders_map_have_the_same_groups() -> None:
    """Those of `vhdtool --help`, with the same commands in the same order."""
    groups: dict[str, list[str]] = {}
    for line in (commands.__doc__ or "").splitlines():
        if line.endswith(":"):
            groups[line.removesuffix(":")] = []
        elif groups and line.strip():
            groups[list(groups)[-1]].append(line.split()[0])
    assert groups == {title: list(group) for title, group in GROUPS.items()}


def all_commands(group: click.Group = cli, name: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        yield f"{name} {word}".strip(), command
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{name} {word}".strip())


ALL = dict(all_commands())
PATHS = [
    (name, one)
    for name, command in ALL.items()
    for one in command.params
    if isinstance(one.type, click.Path) and not one.type.allow_dash
]


@pytest.mark.parametrize(("name", "path"), PATHS, ids=lambda one: getattr(one, "name", one))
def test_a_dash_as_path_is_refused_and_makes_no_file(
    name: str,
    path: click.Parameter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = []
    for one in ALL[name].params:
        if isinstance(one, click.Argument):
            words.append("-" if one is path else "1m" if one.name == "size" else "word")
        elif one is path:
            words += [one.opts[-1], *["-"] * one.nargs]
        elif one.required:
            words += [one.opts[-1], "7"]
    assert run([*name.split(), *words]) == WRONG_USAGE.get(name.split()[0], 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "./- is a file of that name" in line or "'-' does not exist" in line
    assert list(tmp_path.iterdir()) == []


RISKY = re.compile("overwrite|discard|take over|other UUID|another UUID|guard off|write the repair")


def test_options_that_may_lose_data_are_not_suggested() -> None:
    found = {
        option
        for command in ALL.values()
        for one in command.params
        if isinstance(one, click.Option) and RISKY.search((one.help or "").lower())
        for option in one.opts
    }
    assert {"--force", "--force-epoch", "--yes", "--drop-orphans"} <= found
    assert found <= NEVER


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("chek x", "No such command 'chek'. Did you mean 'check'?"),
        ("commit x", "No such command 'commit'. `vhdtool coalesce` does it."),
        ("key x", "No such command 'key'. `vhd-util key` does it."),
        ("xyz", "No such command 'xyz'. See `vhdtool --help`."),
        ("info --jsn x", "No such option '--jsn'. Did you mean '--json'?"),
        ("serve --fork x", "No such option '--fork'. See `vhdtool serve --help`."),
        ("create --forse x", "No such option '--forse'. See `vhdtool create --help`."),
        ("repair --yess x", "No such option '--yess'. See `vhdtool repair --help`."),
    ],
)
def test_a_mistyped_word_gets_the_nearest_safe_one(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words.split()) == 1
    assert capsys.readouterr().err == f"vhdtool: {said}\n"


def test_names_of_other_tools_lead_to_commands_that_exist() -> None:
    for name, ours in OTHER_TOOLS.items():
        assert name not in HELP
        assert ours.split()[0] in {*HELP, "vhd-util"}


@pytest.mark.parametrize("name", HELP)
def test_short_help_is_the_docstrings_first_sentence(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.callback is not None
    text = " ".join((inspect.getdoc(command.callback) or "").split("\n\n")[0].split())
    assert HELP[name] == f"{text.removesuffix('.').split('. ')[0]}."


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bundle", "--out", "/proc/x"], "/proc/x: cannot create it: No such file or directory"),
        (["bundle", "--pyz", "--out", "/proc/x"], "/proc/x: cannot create it: No such file or"),
        (["read", "--offset", "2m", "a.vhd"], "--offset 2097152: the disk ends at byte 1048576"),
        (["read", "--salvage", "--offset", "2m", "a.vhd"], "the disk ends at byte 1048576"),
        (["lab", "run", "--config", "no"], "no: no configuration of a lab: No such file or"),
        (["hosts", "up", "--state", "/proc/x"], "/proc/x: the files of the hosts cannot be made"),
        (["judge", "no"], "no: no such directory; give a run or a case directory"),
    ],
)
def test_a_wrong_path_is_one_line(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["create", "a.vhd", "1m"]) == 0
    capfd.readouterr()
    assert run(words) != 0
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line
