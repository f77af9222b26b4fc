"""Standard streams that are closed, gone or full: one line and an exit code, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vhdtool.image.create.empty import create_dynamic

MIB = 1 << 20
VHDTOOL = f"'{sys.executable}' -m vhdtool"
VHD_UTIL = f"'{sys.executable}' -m vhdtool.cli.vhd_util.main"
TAP_CTL = f"'{sys.executable}' -m vhdtool.cli.tap_ctl"
LONG = [
    f"{VHDTOOL} info disk.vhd",
    f"{VHDTOOL} read disk.vhd",
    f"{VHDTOOL} --help",
    f"{VHD_UTIL} read -p -n disk.vhd",
    f"{VHD_UTIL} read -r 0 -c 4096 -n disk.vhd",
    f"{VHD_UTIL} scan -m '*.vhd'",
    VHD_UTIL,
    TAP_CTL,
]
GONE = {VHD_UTIL: 32, TAP_CTL: 32, VHDTOOL: 1}
FULL = {VHD_UTIL: 28, TAP_CTL: 28, VHDTOOL: 1}


@pytest.fixture(autouse=True)
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_dynamic(tmp_path / "disk.vhd", 64 * MIB)
    monkeypatch.chdir(tmp_path)
    # As for a user: a pipe gets what is left in the buffer when the program ends.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def shell(script: str) -> tuple[int, str]:
    """The exit code of the script's first program, and its standard error."""
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stderr


def expected(command: str, codes: dict[str, int]) -> int:
    return next(code for program, code in codes.items() if command.startswith(program))


@pytest.mark.parametrize("command", LONG)
def test_a_reader_that_has_gone_ends_a_program(command: str) -> None:
    # The FIFO's reader ends before the program writes.
    script = f"mkfifo pipe; {{ sleep 0.3; {command}; }} >pipe & true <pipe; wait $!"
    assert shell(script) == (expected(command, GONE), "")


@pytest.mark.parametrize("command", LONG)
def test_a_full_output_is_one_line_and_an_exit_code(command: str) -> None:
    code, said = shell(f"{command} >/dev/full")
    assert code == expected(command, FULL)
    assert said.endswith(": No space left on device\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", LONG)
def test_closed_streams_are_no_traceback(command: str) -> None:
    assert shell(f"{command} <&- >&-") == (0, "")


def test_an_error_with_its_reader_gone_keeps_quiet() -> None:
    script = f"mkfifo pipe; {{ sleep 0.3; {VHD_UTIL} check -n no; }} >pipe 2>&1 & true <pipe"
    assert shell(f"{script}; wait $!") == (32, "")


def test_an_image_never_gets_a_standard_descriptor() -> None:
    """Else a child process, qemu-img for example, would print into it."""
    program = (
        "from vhdtool.cli.standard_streams import open_missing; open_missing();"
        "import os, sys; handle = os.open('disk.vhd', os.O_RDWR); os.write(2, b'')\n"
        "sys.exit(handle)"
    )
    code, _ = shell(f"'{sys.executable}' -c \"{program}\" <&- >&- 2>&-")
    assert code == 3
    assert os.path.getsize("disk.vhd") > 0


def test_vhd_util_suggests_a_command_on_standard_error() -> None:
    code, said = shell(f"{VHD_UTIL} chek")
    assert (code, said) == (0, "invalid COMMAND chek\nvhd-util: did you mean check?\n")


@pytest.mark.parametrize(
    "words",
    ["create -n - -s 5", "snapshot -n - -p disk.vhd", "revert -n disk.vhd -j -", "query -v -n -"],
)
def test_vhd_util_refuses_a_dash_as_path(words: str) -> None:
    before = os.listdir()
    code, said = shell(f"{VHD_UTIL} {words}")
    assert (code, said) == (22, "vhd-util: -: not a path here; ./- is a file of that name\n")
    assert os.listdir() == before
