"""The commands on images: exit codes, one clear line, never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.vhd_images import Picture
from vhdtool.cli.main import run
from vhdtool.image.create.empty import create_dynamic

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.vhd"
    create_dynamic(path, 8 * MIB)
    return path


def damaged(path: Path) -> Path:
    picture = Picture(8 * MIB, 512 << 10)
    picture.add(0)
    picture.blocks[5] = picture.blocks[0]
    path.write_bytes(picture.draw().getvalue())
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["check"],
        ["check", "--bogus"],
        ["check", "/nonexistent/x.vhd"],
        ["info", "/nonexistent/x.vhd"],
        ["create", "/nonexistent/x.vhd", "1m"],
        ["create", "x.vhd", "tall"],
        ["create", "x.vhd", "0"],
        ["diff", "one"],
        ["map", "/dev/null"],
        ["read", "/"],
        ["nosuch"],
        ["--nosuch"],
        [],
    ],
)
def test_mistakes_exit_1_with_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    if arguments:
        assert len(err.splitlines()) == 1
        assert err.startswith("vhdtool: ")


def test_check_exit_codes(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(image)]) == 0
    os.truncate(image, image.stat().st_size - 512)
    assert run(["check", str(image)]) == 3
    assert run(["check", "--unclean", str(image)]) == 0
    assert run(["check", "--live", str(image)]) == 0
    assert run(["check", str(damaged(tmp_path / "bad.vhd"))]) == 2
    assert "block-overlap" in capsys.readouterr().out
    (tmp_path / "no.vhd").write_bytes(b"x" * 5000)
    assert run(["check", str(tmp_path / "no.vhd")]) == 1


def test_check_json_lists_every_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--json", str(damaged(tmp_path / "bad.vhd"))]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "corrupt"
    assert report["exit_code"] == 2
    one = report["findings"][0]
    assert set(one) == {"code", "severity", "message", "block", "offset", "sectors"}
    assert one["code"] == "block-overlap"


def test_quiet_check_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "-q", str(damaged(tmp_path / "bad.vhd"))]) == 2
    assert capsys.readouterr().out == ""


def test_create_refuses_to_overwrite(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = image.read_bytes()
    assert run(["create", str(image), "1m"]) == 1
    assert "exists" in capsys.readouterr().err
    assert image.read_bytes() == before
    assert run(["create", "--force", str(image), "1m"]) == 0


def test_info_shows_the_fields(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(image)]) == 0
    text = capsys.readouterr().out
    assert "8 MiB (8388608 bytes)" in text
    assert "Xen blktap" in text
    assert run(["info", "--json", str(image)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["virtual_size"] == 8 * MIB
    assert data["closed"] is True


def test_meta_and_monotonic_diff(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tmp_path / "before.json"
    picture = Picture(8 * MIB, 512 << 10)
    picture.add(1)
    image.write_bytes(picture.draw().getvalue())
    assert run(["meta", str(image), "-o", str(before)]) == 0
    assert run(["diff", "--monotonic", str(before), str(image)]) == 0
    assert run(["diff", str(before), str(image)]) == 0
    picture.add(2)
    image.write_bytes(picture.draw().getvalue())
    assert run(["diff", "--monotonic", str(before), str(image)]) == 0
    assert run(["diff", str(before), str(image)]) == 3
    picture.bits[1][0] = 0x7F
    image.write_bytes(picture.draw().getvalue())
    capsys.readouterr()
    assert run(["diff", "--json", "--monotonic", str(before), str(image)]) == 2
    (one,) = json.loads(capsys.readouterr().out)["findings"]
    assert one["code"] == "bitmap-bit-lost"
    (tmp_path / "no.json").write_text("{broken")
    assert run(["diff", str(before), str(tmp_path / "no.json")]) == 1


def test_map_and_read(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = Picture(8 * MIB, 512 << 10)
    picture.add(1, (1, 2), fill=0x61)
    image.write_bytes(picture.draw().getvalue())
    assert run(["map", "--json", str(image)]) == 0
    ranges = json.loads(capsys.readouterr().out)
    data = [(one["start"], one["length"]) for one in ranges if one["data"]]
    assert data == [((512 << 10) + 512, 1024)]
    assert sum(one["length"] for one in ranges) == 8 * MIB
    out = tmp_path / "disk.raw"
    assert run(["read", str(image), "-o", str(out)]) == 0
    raw = out.read_bytes()
    assert len(raw) == 8 * MIB
    assert raw.strip(b"\0") == b"a" * 1024
    assert out.stat().st_blocks * 512 < MIB
    assert run(["read", str(image), "-o", str(out)]) == 1
    assert run(["read", "/dev/null"]) == 1


def test_readers_write_nothing(image: Path, tmp_path: Path) -> None:
    image.chmod(0o444)
    before = (image.read_bytes(), image.stat().st_mtime_ns)
    for command in ("info", "check", "meta", "map", "read"):
        run([command, str(image), *(["-o", str(tmp_path / "x")] if command == "read" else [])])
    assert (image.read_bytes(), image.stat().st_mtime_ns) == before


def test_group_help_imports_no_command() -> None:
    code = (
        "import sys; from vhdtool.cli.main import run; run(['--help']);"
        "print([name for name in sys.modules if name.startswith('vhdtool.cli.commands')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_info_starts_without_leases_and_journal(image: Path) -> None:
    code = (
        f"import sys; from vhdtool.cli.main import run; run(['info', {str(image)!r}]);"
        "print([name for name in sys.modules if name.startswith(('vhdtool.leases',"
        " 'vhdtool.image.journal', 'vhdtool.image.chain.open', 'vhdtool.lab', 'rich'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_pipe_that_closes_is_no_traceback(image: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m vhdtool read {image} | head -c 10 >/dev/null",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr


def complete(words: str, module: str = "vhdtool", variable: str = "_VHDTOOL_COMPLETE") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", module],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            variable: "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        },
    )
    return done.stdout.split()


def test_shells_complete_commands_options_and_files() -> None:
    assert complete("vhdtool ch") == ["plain,check"]
    assert "plain,--unclean" in complete("vhdtool check --un")
    assert complete("vhdtool check di") == ["file,di"]
    assert "plain,info" in complete("vhdtool nosuch ")


def test_shells_complete_vhd_util() -> None:
    def answer(words: str) -> list[str]:
        return complete(words, "vhdtool.cli.vhd_util.main", "_VHD_UTIL_COMPLETE")

    assert answer("vhd-util co") == ["plain,coalesce"]
    assert answer("vhd-util resize -") == ["plain,-n", "plain,-s", "plain,-j", "plain,-f"]
    assert answer("vhd-util check -n di") == ["file,di"]
    assert answer("vhd-util scan di") == ["file,di"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_of_one_program_or_both(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["completion", shell, "vhdtool"]) == 0
    ours = capsys.readouterr().out
    assert run(["completion", shell, "vhd-util"]) == 0
    theirs = capsys.readouterr().out
    assert ("_VHDTOOL_COMPLETE" in ours, "_VHD_UTIL_COMPLETE" in theirs) == (True, True)
    assert run(["completion", shell]) == 0
    assert capsys.readouterr().out == ours + theirs


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_readers_work_on_a_read_only_mount(tmp_path: Path) -> None:
    """Nothing is written to an image opened for reading: here nothing can be."""
    create_dynamic(tmp_path / "base.vhd", 8 * MIB)
    assert run(["snapshot", "-q", str(tmp_path / "base.vhd"), str(tmp_path / "child.vhd")]) == 0
    commands = [
        f"vhdtool {words} $M/child.vhd"
        for words in (
            "info",
            "check",
            "meta",
            "map",
            "read --length 4k",
            "repair",
            "scan",
            "damage",
        )
    ]
    commands += [
        "vhdtool diff $M/child.vhd $M/child.vhd",
        "vhdtool read --salvage --length 4k $M/child.vhd",
        "vhd-util check -p -n $M/child.vhd",
        "vhd-util query -vspfdSma -n $M/child.vhd",
        "vhd-util read -p -n $M/child.vhd",
        'vhd-util scan -f -m "$M/*.vhd"',
    ]
    script = "\n".join(
        [
            f"set -e; M={tmp_path}",
            f"vhdtool() {{ '{sys.executable}' -m vhdtool \"$@\" >/dev/null; }}",
            f"vhd-util() {{ '{sys.executable}' -m vhdtool.cli.vhd_util.main \"$@\" >/dev/null; }}",
            "mount --bind $M $M; mount -o remount,bind,ro $M",
            "! touch $M/x 2>/dev/null",
            *commands,
        ]
    )
    command = ["unshare", "--mount", "bash", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
