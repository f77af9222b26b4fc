"""`vhd-util`: the command lines that XenServer's storage manager uses, read as it reads them."""

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.image_tools import clean, content, write
from vhdtool.cli.vhd_util import main
from vhdtool.image.metadata.read import read_metadata
from vhdtool.storage import FileStorage
from vhdtool.storage import paths as names

MIB = 1 << 20
Call = Callable[..., bytes]


class Refused(Exception):
    """The tool's exit code was not 0."""


@pytest.fixture
def tool(capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    """Runs a command line, and gives its standard output or raises Refused(code, output)."""

    def call(*words: object) -> bytes:
        capfdbinary.readouterr()
        code = main.run([str(word) for word in words])
        sys.stdout.flush()
        out = capfdbinary.readouterr().out
        if code:
            raise Refused(code, out)
        return out

    return call


def refused(tool: Call, *words: object) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        tool(*words)
    code, out = caught.value.args
    return code, out.decode()


@pytest.fixture
def base(tmp_path: Path, tool: Call) -> Path:
    path = tmp_path / "base.vhd"
    assert tool("create", "--debug", "-n", path, "-s", "20") == b""
    return path


@pytest.fixture
def child(base: Path, tool: Call) -> Path:
    write(base, (0, b"b" * 4096))
    path = base.parent / "child.vhd"
    assert tool("snapshot", "--debug", "-n", path, "-p", base) == b""
    return path


def test_the_one_query_that_describes_an_image(tool: Call, base: Path, child: Path) -> None:
    virtual, used, parent, hidden, blocks = (
        tool("query", "--debug", "-vsafp", "-n", child).decode().strip().split("\n")
    )
    assert (int(virtual), int(used)) == (20, child.stat().st_size)
    assert parent == str(base)
    assert int(hidden.replace("hidden: ", "")) == 0
    assert int(blocks) == 0
    fields = tool("query", "--debug", "-vsaf", "-n", base).decode().strip().split("\n")
    assert fields == ["20", str(base.stat().st_size), "hidden: 0", "1"]
    fields = tool("query", "--debug", "-vsafp", "-n", base).decode().split("\n")
    assert "no parent" in fields[2]


def test_single_questions(tool: Call, base: Path, child: Path) -> None:
    assert tool("query", "--debug", "-p", "-n", child).decode().strip() == str(base)
    assert "no parent" in tool("query", "--debug", "-p", "-n", base).decode()
    assert int(tool("query", "--debug", "-v", "-n", base)) == 20
    assert int(tool("query", "--debug", "-S", "-n", base)) == 20
    assert int(tool("query", "--debug", "-s", "-n", base)) == base.stat().st_size
    assert int(tool("query", "--debug", "-a", "-n", base)) == 1
    depth = tool("query", "--debug", "-d", "-n", child).decode()
    assert depth.startswith("chain depth:")
    assert int(depth.split(":")[1].strip()) == 2


def test_type_from_the_headers(tool: Call, base: Path, child: Path) -> None:
    for path, kind in ((base, "Dynamic"), (child, "Differencing")):
        text = tool("read", "--debug", "-p", "-n", path).decode()
        match = re.match(r".*Disk type\s+: (\S+) hard disk.*", text, flags=re.DOTALL)
        assert match is not None
        assert match.group(1) == kind
    lines = tool("read", "-p", "-n", child).decode().split("\n")
    names = [line.split(":")[1].strip() for line in lines if "decoded name :" in line]
    assert names[0] == "./base.vhd"
    # A parent that is not there does not matter here.
    base.rename(base.with_name("away.vhd"))
    assert b"Differencing" in tool("read", "--debug", "-p", "-n", child)


def test_hidden_is_set_and_read(tool: Call, base: Path) -> None:
    for value in ("1", "0"):
        assert tool("set", "--debug", "-n", base, "-f", "hidden", "-v", value) == b""
        text = tool("query", "--debug", "-f", "-n", base).decode()
        assert text.split(":")[-1].strip() == value
    clean(base)
    os.truncate(base, base.stat().st_size - 512)
    assert tool("set", "-n", base, "-f", "hidden", "-v", "1") == b""
    clean(base)
    assert refused(tool, "set", "-n", base, "-f", "nonsense", "-v", "1")[0] == errno.EINVAL


def test_resizes_with_a_journal_and_within_the_tables(
    tool: Call, base: Path, tmp_path: Path
) -> None:
    write(base, (MIB, b"x" * 512))
    journal = tmp_path / "journal"
    assert tool("resize", "--debug", "-s", "50", "-n", base, "-j", journal) == b""
    assert not journal.exists()
    assert int(tool("query", "-v", "-n", base)) == 50
    assert refused(tool, "resize", "--debug", "-s", "60", "-n", base, "-f")[0] == errno.EINVAL
    roomy = tmp_path / "roomy.vhd"
    tool("create", "--debug", "-n", roomy, "-s", "20", "-S", "100")
    assert int(tool("query", "--debug", "-S", "-n", roomy)) == 100
    assert tool("resize", "--debug", "-s", "99", "-n", roomy, "-f") == b""
    assert int(tool("query", "-v", "-n", roomy)) == 100
    clean(base)
    clean(roomy)
    code, _ = refused(tool, "revert", "--debug", "-n", base, "-j", journal)
    assert code == errno.ENOENT


def test_an_interrupted_resize_is_reverted(
    tool: Call, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(base, (MIB, b"x" * 512))
    before, journal = base.read_bytes(), tmp_path / "journal"

    class PowerCut(BaseException):
        pass

    def cut(storage: FileStorage, changes: list[object]) -> None:
        storage.pwrite(0, b"half")
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr("vhdtool.image.journal.transaction.apply", cut)
        with pytest.raises(PowerCut):
            tool("resize", "--debug", "-s", "5000", "-n", base, "-j", journal)
    assert tool("revert", "--debug", "-n", base, "-j", journal) == b""
    assert not journal.exists()
    assert int(tool("query", "-v", "-n", base)) == 20
    assert base.read_bytes() == before
    assert tool("check", "-n", base) == f"{base} is valid\n".encode()


def test_space_set_aside_in_a_volume(tool: Call, base: Path) -> None:
    assert tool("modify", "--debug", "-s", 8 * MIB, "-n", base) == b""
    assert base.stat().st_size == 8 * MIB
    assert tool("check", "--debug", "-n", base) == f"{base} is valid\n".encode()
    used = int(tool("query", "-s", "-n", base))
    assert used < MIB
    assert refused(tool, "modify", "--debug", "-s", "512", "-n", base)[0] == errno.EINVAL


def test_throwing_all_data_away(tool: Call, child: Path) -> None:
    write(child, (0, b"c" * 8192))
    assert content(child)[:8192] == b"c" * 8192
    assert tool("modify", "--debug", "-z", "-n", child) == b""
    assert content(child)[:8192] == b"b" * 4096 + bytes(4096)
    assert int(tool("query", "-a", "-n", child)) == 0
    clean(child)


def test_block_bitmap(tool: Call, base: Path) -> None:
    write(base, (0, b"x"), (18 * MIB, b"y"))
    assert tool("read", "--debug", "-B", "-n", base) == bytes([0b10000000, 0b01000000])


def test_coalesce_counts_sectors(tool: Call, base: Path, child: Path) -> None:
    write(child, (MIB, b"c" * 1536))
    match = re.match(r"^Coalesced (\d+) sectors", tool("coalesce", "-n", child).decode())
    assert match is not None
    assert int(match.group(1)) == 3
    assert content(base)[MIB : MIB + 1536] == b"c" * 1536
    code, text = refused(tool, "coalesce", "--debug", "-n", base)
    assert (code, text.splitlines()[-1]) == (errno.EINVAL, "error coalescing: -22")


def test_snapshot_options(tool: Call, child: Path, tmp_path: Path) -> None:
    grandchild = tmp_path / "g.vhd"
    tool("snapshot", "--debug", "-n", grandchild, "-p", child)
    assert tool("query", "-p", "-n", grandchild).decode().strip().endswith("base.vhd")
    tool("snapshot", "--debug", "-n", grandchild, "-p", child, "-S", "200", "-e")
    assert tool("query", "-p", "-n", grandchild).decode().strip().endswith("child.vhd")
    assert int(tool("query", "-S", "-n", grandchild)) == 200
    code, text = refused(tool, "snapshot", "-n", grandchild, "-p", child, "-e", "-l", "2")
    assert code == errno.ENOSPC
    assert text == "snapshot depth exceeded: current depth: 2, limit: 2\n"
    raw = tmp_path / "disk.raw"
    raw.write_bytes(b"r" * 4 * MIB)
    tool("snapshot", "--debug", "-n", grandchild, "-p", raw, "-m")
    assert int(tool("query", "-v", "-n", grandchild)) == 4
    assert content(grandchild)[:5] == b"rrrrr"


def test_a_new_parent(tool: Call, base: Path, child: Path) -> None:
    moved = base.with_name("moved.vhd")
    base.rename(moved)
    code, text = refused(tool, "query", "--debug", "-p", "-n", child)
    assert (code, text) == (errno.ENOENT, "query failed\n")
    assert tool("modify", "--debug", "-p", moved, "-n", child) == b""
    assert tool("query", "-p", "-n", child).decode().strip() == str(moved)
    clean(child)
    # SM relinks to another ancestor so, which has another uuid.
    other = base.with_name("other.vhd")
    tool("create", "--debug", "-n", other, "-s", "20")
    assert tool("modify", "--debug", "-p", other, "-n", child) == b""
    clean(child)
    moved.write_bytes(b"q" * 20 * MIB)
    assert tool("modify", "--debug", "-p", moved, "-n", child, "-m") == b""
    assert content(child)[:3] == b"qqq"


def test_check_is_true_or_false(tool: Call, base: Path, child: Path) -> None:
    assert tool("check", "--debug", "-n", child, "-B") == f"{child} is valid\n".encode()
    assert tool("check", "-p", "-n", child).decode().splitlines() == [
        f"{child} is valid",
        f"{base} is valid",
    ]
    os.truncate(child, child.stat().st_size - 512)
    code, text = refused(tool, "check", "--debug", "-n", child)
    assert code == errno.EINVAL
    assert f"{child} appears invalid; dumping metadata\nVHD Footer Summary:" in text
    assert tool("check", "--debug", "-n", child, "-i") == f"{child} is valid\n".encode()
    assert tool("repair", "-n", child) == b""
    clean(child)
    base.rename(base.with_name("away"))
    assert refused(tool, "check", "-n", child)[0] == errno.ENOENT
    assert refused(tool, "check", "-n", base)[0] == errno.ENOENT


def test_another_disk_in_the_parents_place(tool: Call, base: Path, child: Path) -> None:
    base.unlink()
    tool("create", "-n", base, "-s", "20")
    assert refused(tool, "check", "-n", child)[0] == errno.EINVAL
    assert tool("check", "-n", child, "-I") == f"{child} is valid\n".encode()


def test_check_statistics(tool: Call, base: Path, child: Path) -> None:
    write(child, (0, b"c" * 1024))
    assert tool("check", "-s", "-p", "-n", child).decode().splitlines() == [
        "base.vhd: secs allocated: 0x1000 secs written: 0x8 (0.20%)",
        "child.vhd: secs allocated: 0x1000 secs written: 0x2 (0.05%) secs not in parent: 0x0 "
        "(0.00%) secs not in ancestors: 0x0 (0.00%)",
    ]


def lines(text: bytes) -> list[dict[str, str]]:
    """One dictionary for each image, as the storage manager splits a line."""
    return [
        dict(pair.split("=") for pair in line.split())
        for line in text.decode().split("\n")
        if line.strip()
    ]


def test_scan_of_files(tool: Call, base: Path, child: Path) -> None:
    tool("set", "-n", base, "-f", "hidden", "-v", "1")
    found = lines(tool("scan", "-f", "-m", base.parent / "*.vhd"))
    assert found == [
        {
            "vhd": "base.vhd",
            "capacity": str(20 * MIB),
            "size": str(base.stat().st_size),
            "hidden": "1",
            "parent": "none",
        },
        {
            "vhd": "child.vhd",
            "capacity": str(20 * MIB),
            "size": str(child.stat().st_size),
            "hidden": "0",
            "parent": "base.vhd",
        },
    ]
    found = lines(tool("scan", "-f", "-m", child, "-a"))
    assert [one["vhd"] for one in found] == ["child.vhd", "base.vhd"]
    assert tool("scan", "-f", "-m", base.parent / "none*.vhd") == b""
    tree = tool("scan", "-p", "-v", base, child).decode().splitlines()
    assert [line[: line.index(" cap")] for line in tree] == [f"vhd={base}", f"   vhd={child}"]


@pytest.mark.parametrize("kind", ["directory", "pipe", "socket", "device"])
def test_check_of_what_is_no_file_exits_with_einval(
    tool: Call, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "/dev/null" if kind == "device" else "odd"
    if kind == "directory":
        os.mkdir(name)
    elif kind == "pipe":
        os.mkfifo(name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(name)
    text = f"{name} is not a regular file or block device\n"
    assert refused(tool, "check", "-n", name) == (errno.EINVAL, text)
    assert refused(tool, "check", "-p", "-n", name) == (errno.EINVAL, text)


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("a*", 0),
        ("nope", 2),
        ("{nope,none}", 2),
        ("base.vhd/x", 20),
        ("base.vhd/*", 20),
        ("no/*", 5),
    ],
)
def test_scan_of_a_pattern_without_a_match(
    tool: Call, base: Path, pattern: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    if not code:
        assert tool("scan", "-f", "-m", pattern) == b""
        return
    end = "error-message='failure scanning target'\n"
    first = f"vhd=no scan-error=2 {end}" if code == errno.EIO else ""
    text = f"{first}vhd={pattern} scan-error={-code} {end}"
    assert refused(tool, "scan", "-f", "-m", pattern) == (code, text)


def test_scan_says_what_it_cannot_read(tool: Call, base: Path) -> None:
    base.with_name("broken.vhd").write_bytes(b"x" * 5000)
    code, text = refused(tool, "scan", "-f", "-m", base.parent / "*.vhd")
    assert code == errno.EINVAL
    out = tool("scan", "-f", "-m", base.parent / "*.vhd", "-c").decode().splitlines()
    broken = base.with_name("broken.vhd")
    assert out[0].startswith(f"vhd={base.name} ")
    assert out[1] == f"vhd={broken} scan-error=-22 error-message='opening file'"
    assert text.splitlines() == out
    assert refused(tool, "scan", "-f", "-m", "/nonexistent/*.vhd")[0] == errno.EIO


def test_errors_of_the_system_are_explained_in_plain_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.vhd"
    assert main.run(["scan", "-f", str(missing)]) == errno.ENOENT
    assert f"vhd-util: {missing}: No such file or directory\n" in capsys.readouterr().err


def test_scan_of_a_volume_group(
    tool: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two volumes on one device, found by what LVM's tools say, none of them active."""
    volumes = {"VHD-aaaa-1": tmp_path / "one", "VHD-bbbb-2": tmp_path / "two"}
    tool("create", "-n", volumes["VHD-aaaa-1"], "-s", "10")
    tool("snapshot", "-e", "-n", volumes["VHD-bbbb-2"], "-p", volumes["VHD-aaaa-1"])
    with FileStorage(volumes["VHD-bbbb-2"], writable=True) as storage:
        header = read_metadata(storage).header
        assert header is not None
        name = "VG_Xen--1-VHD--aaaa--1".encode("utf-16-be").ljust(512, b"\0")
        storage.pwrite(512, replace(header, parent_name=name).pack())
    device, start, extent = tmp_path / "device", MIB, 4 * MIB
    with device.open("wb") as file:
        for index, path in enumerate(volumes.values()):
            file.seek(start + (2 * index + 1) * extent)
            file.write(path.read_bytes())
        file.truncate(64 * MIB)
    rows = [
        f"  {name}|{extent}|linear|0|{extent}|{device}({2 * index + 1})|{extent}"
        for index, name in enumerate(volumes)
    ]
    tools = tmp_path / "bin"
    tools.mkdir()
    for program, text in {"pvs": f"  {device}|{start}", "lvs": "\n".join(rows)}.items():
        script = tools / program
        script.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    found = lines(tool("scan", "-f", "-m", "VHD-*", "-l", "VG_Xen-1"))
    assert [(one["vhd"], one["parent"], one["size"]) for one in found] == [
        ("VHD-aaaa-1", "none", str(extent)),
        ("VHD-bbbb-2", "VHD-aaaa-1", str(extent)),
    ]
    found = lines(tool("scan", "-f", "-l", "VG_Xen-1", "-m", "VHD-bbbb-2", "-a"))
    assert [one["vhd"] for one in found] == ["VHD-bbbb-2", "VHD-aaaa-1"]


def test_a_volume_is_remembered_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dm-3" / "dm").mkdir(parents=True)
    (tmp_path / "dm-3" / "dm" / "name").write_text("VG_Xen--1-VHD--aaaa\n")
    monkeypatch.setattr(names, "SYSFS", str(tmp_path))
    assert names.persistent_path("/dev/dm-3") == "/dev/mapper/VG_Xen--1-VHD--aaaa"
    assert names.persistent_path("/dev/dm-4") == "/dev/dm-4"


def test_keys(tool: Call, base: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.vhd"
    tool("create", "-n", empty, "-s", "10")
    assert tool("key", "-p", "-n", empty).strip() == b"none"
    assert tool("key", "-s", "-n", empty, "-H", "ab" * 32) == b""
    nonce, digest = tool("key", "-p", "-n", empty).decode().split()
    assert (nonce, digest) == ("00" * 32, "ab" * 32)
    clean(empty)
    write(base, (0, b"x"))
    assert refused(tool, "key", "-s", "-n", base, "-H", "ab" * 32)[0] == errno.EINVAL
    tool("snapshot", "-e", "-n", tmp_path / "kid.vhd", "-p", empty)
    assert tool("key", "-p", "-n", tmp_path / "kid.vhd").split()[1].decode() == digest
    key = tmp_path / "base,aes-xts-plain,256.key"
    key.write_bytes(b"k" * 32)
    assert len(tool("key", "-C", "-k", key).strip()) == 64


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["query", "-v", "-n", "/nonexistent"], errno.ENOENT),
        (["query", "-v", "-n", "/dev/null"], errno.EINVAL),
        (["query", "-v"], errno.EINVAL),
        (["query", "-Z", "-n", "x"], errno.EINVAL),
        (["create", "-n"], errno.EINVAL),
        (["create", "-n", "/nonexistent/x", "-s", "5"], errno.ENOENT),
        (["check", "-B", "-s", "-n", "x"], errno.EINVAL),
        (["scan"], errno.EINVAL),
        (["read", "-p", "-n", "/nonexistent"], errno.ENOENT),
    ],
)
def test_mistakes_exit_with_an_errno(tool: Call, words: list[str], code: int) -> None:
    assert refused(tool, *words)[0] == code


def test_help_and_unknown_commands_exit_with_0(tool: Call) -> None:
    assert b"COMMAND := { create | snapshot |" in tool()
    assert b"usage: vhd-util COMMAND" in tool("bogus")
    assert tool("query", "-h").startswith(b"options: ")


def test_it_is_a_command_of_the_package(base: Path) -> None:
    command = [sys.executable, "-m", "vhdtool.cli.vhd_util.main", "query", "-v", "-n", str(base)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("20\n", "")
