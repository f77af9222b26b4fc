"""docs/vhd.md: its example runs, and it names every command."""

import re
from pathlib import Path

import click
import pytest

from vhdtool.cli.main import GROUPS, HELP, cli, run

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "vhd.md").read_text(encoding="utf-8")
ON_IMAGES = set(HELP) - set(GROUPS["Migrations"])


def test_the_library_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "docs/vhd.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("differencing 67108864 ['child.vhd', '")
    assert lines[1:] == ["b'some bytes'", "1048576 512 0"]


def test_every_command_is_named() -> None:
    named = set(re.findall(r"`([a-z]+)(?: [^`]*)?`", PAGE))
    assert named >= ON_IMAGES


@pytest.mark.parametrize("command", sorted(ON_IMAGES))
def test_every_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"Example: vhdtool {command}" in capsys.readouterr().out.replace('eval "$(', "")


def test_the_table_of_other_tools_names_our_commands_and_options() -> None:
    """Each word in its right column is a command of `vhdtool`, with options that it has."""
    table = PAGE.split("## From other tools")[1].split("\n\n")[1]
    cells = [line.split(" | ")[1] for line in table.splitlines()[2:]]
    named = [code.split() for cell in cells for code in re.findall("`([^`]*)`", cell)]
    called = [words for words in named if words[0] in HELP]
    assert {words[0] for words in called} >= {"info", "check", "convert", "resize", "coalesce"}
    for name, *rest in called:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        known = {option for one in command.params for option in one.opts + one.secondary_opts}
        assert {word for word in rest if word.startswith("--")} <= known, name
    others = {words[0] for words in named} - set(HELP)
    assert others <= {"--output", "--json", "-1G", "--shrink", "nbd-client", "vhd-util", "vhdtool"}
