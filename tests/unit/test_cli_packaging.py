"""The program as one file, and its man pages."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vhdtool.cli.main import HELP, run
from vhdtool.cli.man_pages import pages
from vhdtool.cli.vhd_util.table import COMMANDS

PYTHON = ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "/usr/bin/python3", "-S"]
"""An empty environment: no variables, and no package beside the standard library."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rescue") / "vhdtool.pyz"
    assert run(["bundle", "--pyz", "--out", str(path)]) == 0
    (path.parent / "vhd-util").symlink_to(path.name)
    return path


def call(program: Path, words: str, name: str = "vhdtool.pyz") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTHON, name, *words.split()],
        cwd=program.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_one_file_works_on_images_with_python_alone(program: Path) -> None:
    for words, said in (
        ("create -q --force disk.vhd 64m", ""),
        ("check disk.vhd", "disk.vhd: consistent"),
        ("repair disk.vhd", "disk.vhd: nothing to repair"),
        ("convert -q --force disk.vhd disk.raw", ""),
        ("--version", "vhdtool "),
    ):
        done = call(program, words)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert done.stdout.startswith(said)
    assert call(program, "query -v -n disk.vhd", "vhd-util").stdout == "64\n"
    assert os.access(program, os.X_OK)


def test_the_one_file_names_the_package_that_a_command_lacks(program: Path) -> None:
    done = call(program, "report nothing")
    assert done.returncode == 1
    assert re.fullmatch("vhdtool: report needs the Python package rich: .*\n", done.stderr)
    for words in ("bundle --out x", "bundle --pyz --out x"):
        done = call(program, words)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert not (program.parent / "x").exists()


def test_the_one_file_is_the_same_for_the_same_sources(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bundle", "--pyz", "--out", str(program)]) == 0
    assert capsys.readouterr().out.endswith(": unchanged\n")


def test_each_command_has_a_man_page_with_its_options() -> None:
    texts = dict(pages())
    assert set(texts) == {"vhdtool", "vhd-util", *(f"vhdtool-{name}" for name in HELP)}
    assert "\\-\\-place\\-orphans" in texts["vhdtool-convert"]
    assert ".SS begin " in texts["vhdtool-lab"]
    for name in COMMANDS:
        assert f".SS {name} " in texts["vhd-util"]


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
def test_man_pages_have_no_warnings(tmp_path: Path) -> None:
    for name, text in pages():
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Kutf8", "-Tutf8"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == "", name
