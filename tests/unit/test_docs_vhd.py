"""docs/vhd.md: its example runs, and it names every command."""

import re
from pathlib import Path

import pytest

from vhdtool.cli.main import GROUPS, HELP, run

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
