"""`-` as standard input and output, and sizes as people type and read them."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vhdtool.cli.main import run
from vhdtool.cli.output import progress_text
from vhdtool.image.create.empty import create_dynamic
from vhdtool.vhd.units import size_text

MIB = 1 << 20
GIB = 1 << 30
Vhdtool = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def vhdtool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vhdtool:
    """Runs a command line in an empty directory, with bytes as standard input."""
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def call(words: str, data: bytes | int = b"") -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "vhdtool", *words.split()]
        given = None if isinstance(data, int) else data
        with subprocess.Popen(
            command,
            stdin=data if isinstance(data, int) else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ) as child:
            out, err = child.communicate(given, timeout=60)
        return subprocess.CompletedProcess(command, child.returncode, out, err)

    return call


@pytest.fixture
def raw() -> bytes:
    """Data at both ends and a large range of zeros between them."""
    return b"first" * 1000 + bytes(5 * MIB) + b"last" * 1000 + bytes(504)


def test_a_pipe_is_converted_to_an_image_and_back(vhdtool: Vhdtool, raw: bytes) -> None:
    assert vhdtool("convert - disk.vhd", raw).returncode == 0
    assert vhdtool("convert disk.vhd -").stdout.rstrip(b"\0") == raw.rstrip(b"\0")
    image = Path("disk.vhd").read_bytes()
    assert vhdtool("convert -q - copy.vhd", image).returncode == 0
    assert vhdtool("convert -q - -", image).stdout.rstrip(b"\0") == raw.rstrip(b"\0")
    assert sorted(os.listdir()) == ["copy.vhd", "disk.vhd"]


def test_a_fixed_image_is_written_to_standard_output(vhdtool: Vhdtool, raw: bytes) -> None:
    assert vhdtool("convert -q - disk.vhd", raw).returncode == 0
    Path("fixed.vhd").write_bytes(vhdtool("convert -q disk.vhd - --fixed").stdout)
    assert run(["check", "fixed.vhd"]) == 0
    assert Path("fixed.vhd").read_bytes()[: len(raw)] == raw


def test_messages_go_to_standard_error_beside_the_data(vhdtool: Vhdtool) -> None:
    create_dynamic("disk.vhd", MIB)
    done = vhdtool("convert disk.vhd -")
    assert done.stdout == bytes(MIB)
    assert done.stderr == b"standard output: raw, 1 MiB (1048576 bytes)\n"


def test_a_redirected_file_is_read_under_its_own_name(vhdtool: Vhdtool) -> None:
    """So that the relative path to its parent leads somewhere."""
    create_dynamic("base.vhd", MIB)
    assert run(["snapshot", "-q", "--keep-empty", "base.vhd", "child.vhd"]) == 0
    with open("child.vhd", "rb") as file:
        assert vhdtool("convert - flat.vhd", file.fileno()).returncode == 0


@pytest.mark.parametrize(
    ("words", "data", "said"),
    [
        ("convert - x.vhd", b"", "standard input: is empty"),
        ("convert disk.vhd - -O qcow2", b"", "-: standard output takes a raw disk"),
        ("convert disk.vhd - -O vpc", b"", "-: standard output takes a raw disk"),
        ("convert --salvage disk.vhd -", b"", "-: --salvage and --force-epoch need a file"),
        ("convert - disk.vhd", b"x", "disk.vhd: exists already"),
        ("convert - disk", b"x", "disk: the suffix does not say which format"),
        ("convert - no/x.vhd", b"x", "no: cannot hold a copy of standard input"),
        ("diff - disk.vhd", b"", "-: not JSON"),
    ],
)
def test_a_stream_that_cannot_be_used_is_one_line(
    vhdtool: Vhdtool, words: str, data: bytes, said: str
) -> None:
    create_dynamic("disk.vhd", MIB)
    done = vhdtool(words, data)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith(f"vhdtool: {said}")
    assert done.stderr.count(b"\n") == 1
    assert os.listdir() == ["disk.vhd"]


def test_dumps_and_findings_pass_through_pipes(vhdtool: Vhdtool) -> None:
    create_dynamic("disk.vhd", MIB)
    dump = vhdtool("meta -o - disk.vhd").stdout
    assert vhdtool("diff - disk.vhd", dump).stdout == b"no difference\n"
    assert vhdtool("read -o - disk.vhd").stdout == bytes(MIB)
    findings = vhdtool("diff --json - disk.vhd", dump).stdout
    assert vhdtool("damage --findings - disk.vhd", findings).returncode == 0
    assert os.listdir() == ["disk.vhd"]


@pytest.mark.parametrize(
    ("size", "becomes"),
    [("2m", 2 * MIB), ("+1m", 5 * MIB), ("-1m", 3 * MIB), ("+512k", 4 * MIB + 524288)],
)
def test_resize_takes_a_size_or_a_difference(size: str, becomes: int, tmp_path: Path) -> None:
    path = str(tmp_path / "disk.vhd")
    create_dynamic(path, 4 * MIB)
    assert run(["resize", path, size, "-q"]) == 0
    assert run(["resize", "-q", path, "--", "+0"]) == 0
    with open(path, "rb") as file:
        file.seek(48)
        assert int.from_bytes(file.read(8), "big") == becomes


def test_resize_to_less_than_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "disk.vhd")
    create_dynamic(path, 4 * MIB)
    assert run(["resize", path, "-4m"]) == 1
    assert capsys.readouterr().err == (
        f"vhdtool: {path}: has 4 MiB (4194304 bytes); nothing would be left\n"
    )
    assert run(["resize", path, "-x"]) == 1
    assert "No such option '-x'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "check", "map", "scan", "damage", "repair"])
def test_output_json_is_json(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "disk.vhd")
    create_dynamic(path, 4 * MIB)
    texts = []
    for words in (["--json"], ["--output", "json"], ["--output=human"], []):
        assert run([command, *words, path]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2] == texts[3]
    json.loads(texts[1])


def test_commands_say_sizes_in_both_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (
        "create a.vhd 64m",
        "snapshot --keep-empty a.vhd child.vhd",
        "convert a.vhd b.vhd",
        "convert a.vhd b.raw",
        "resize a.vhd 64m",
        "info a.vhd",
        "scan a.vhd",
    ):
        assert run(words.split()) == 0
        assert "64 MiB (67108864 bytes)" in capsys.readouterr().out, words
    assert run(["create", "c.vhd", "2041g"]) == 1
    assert "a size of 1.993 TiB (2191507062784 bytes) is impossible" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1 KiB (1024 bytes)"),
        (10 * GIB, "10 GiB (10737418240 bytes)"),
        (1023 * GIB, "1023 GiB (1098437885952 bytes)"),
        (2040 * GIB, "1.992 TiB (2190433320960 bytes)"),
    ],
)
def test_a_size_has_its_unit_and_its_bytes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("done", "seconds", "columns", "text"),
    [
        (0, 0.0, 80, "disk.vhd [..............................]   0%"),
        (GIB, 0.5, 80, "disk.vhd [#######.......................]  25%"),
        (GIB, 8.0, 80, "disk.vhd [#######.......................]  25%  128 MiB/s  0:24 left"),
        (GIB, 8.0, 50, "disk.vhd  25%  128 MiB/s  0:24 left"),
        (
            4 * GIB,
            7200.0,
            80,
            "disk.vhd [##############################] 100%  582.5 KiB/s  0:00 left",
        ),
    ],
)
def test_a_bar_has_share_rate_and_time_left(
    done: int, seconds: float, columns: int, text: str
) -> None:
    assert progress_text("disk.vhd", done, 4 * GIB, seconds, columns) == text


@pytest.mark.parametrize("columns", [1, 10, 30, 60, 80, 200])
def test_a_bar_never_fills_the_last_column(columns: int) -> None:
    line = progress_text("/srv/images/" + "long" * 40 + ".vhd", GIB, 4 * GIB, 3.0, columns)
    assert len(line) < max(columns, 36)


def test_a_bar_appears_on_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    path = str(tmp_path / "disk.vhd")
    create_dynamic(path, 4 * MIB)
    for stream, options, drawn in (
        (Terminal(), [], "\r\x1b[K"),
        (Terminal(), ["-q"], ""),
        (io.StringIO(), [], ""),
    ):
        monkeypatch.setattr("sys.stderr", stream)
        assert run(["fill", *options, path]) == 0
        assert stream.getvalue()[-4:] == drawn
