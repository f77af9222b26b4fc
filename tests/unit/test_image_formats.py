"""A format is never guessed where name or content speaks for another one."""

import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import vhdtool
from vhdtool.cli.main import run
from vhdtool.errors import NotAVhd, UsageError, VhdtoolError
from vhdtool.image.chain.detect import guess_input
from vhdtool.image.create.empty import create_dynamic, create_fixed
from vhdtool.image.disk.open import kind_of
from vhdtool.vhd.footer import SECTOR

SIZE = 192 << 10
PART = 64 << 10


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vhd() -> bytes:
    """A fixed VHD, whose guest has put an MBR on it."""
    create_fixed("fixed.vhd", SIZE, overwrite=True)
    data = bytearray(Path("fixed.vhd").read_bytes())
    data[:510] = os.urandom(510)
    data[510:512] = b"\x55\xaa"
    return bytes(data)


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def packed(how: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: put(path, how(os.urandom(PART)))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("disk.vhd", vhd()[:PART])


def tarred(path: Path) -> None:
    vhd()
    with tarfile.open(path, "w") as archive:
        archive.add("fixed.vhd")


def begins(magic: bytes, at: int = 0) -> Callable[[Path], None]:
    return lambda path: put(path, bytes(at) + magic + bytes(PART))


OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "one byte appended": (lambda path: put(path, vhd() + b"\n"), "truncate -s 197120"),
    "padded": (lambda path: put(path, vhd() + bytes(3584)), "truncate -s 197120"),
    "gzip": (packed(gzip.compress), "gzip"),
    "bzip2": (packed(bz2.compress), "bzip2"),
    "xz": (packed(lzma.compress), "xz"),
    "zstd": (begins(b"\x28\xb5\x2f\xfd"), "zstd"),
    "zip": (zipped, "zip"),
    "tar": (tarred, "tar"),
    "7z": (begins(b"7z\xbc\xaf\x27\x1c"), "7z"),
    "vmdk": (begins(b"KDMV"), "VMDK"),
    "vmdk descriptor": (begins(b"# Disk DescriptorFile\n"), "VMDK"),
    "vdi": (begins(b"\x7f\x10\xda\xbe", 0x40), "VDI"),
}
READABLE = {"qcow2": b"QFI\xfb\0\0\0\3", "vhdx": b"vhdxfile"}


@pytest.mark.parametrize("name", ["a.vhd", "A.VHD", "a.vpc", "a", "a.img", "a.raw"])
@pytest.mark.parametrize("content", OTHERS)
def test_another_format_is_refused_whatever_the_name(
    name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, looks = OTHERS[content]
    make(Path(name))
    before = set(os.listdir())
    for guess in (guess_input, kind_of):
        with pytest.raises(VhdtoolError) as told:
            guess(name)
        assert looks in str(told.value)
        assert "--format raw" in str(told.value)
    for target in ("out.vhd", "out.raw", "out.qcow2"):
        assert run(["convert", name, target]) == 1
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 3
    assert set(os.listdir()) == before
    assert run(["convert", "-q", "-f", "raw", name, "out.raw"]) == 0
    size = Path(name).stat().st_size
    assert Path("out.raw").read_bytes()[:size] == Path(name).read_bytes()


@pytest.mark.parametrize("content", [b"", bytes(SIZE), vhd])
@pytest.mark.parametrize("suffix", ["vhd", "vpc", "avhd", "qcow2", "vhdx"])
def test_a_name_that_promises_more_than_the_content_is_refused(
    suffix: str, content: bytes | Callable[[], bytes]
) -> None:
    """As a VHD that broke off in a download: no footer is left to know it by."""
    path = Path(f"a.{suffix}")
    path.write_bytes(content if isinstance(content, bytes) else content()[:-SECTOR])
    with pytest.raises(NotAVhd if suffix in ("vhd", "vpc", "avhd") else UsageError) as told:
        guess_input(path)
    assert "--format raw" in str(told.value)
    if callable(content):
        assert "MBR" in str(told.value)
        assert ("fixed VHD" in str(told.value)) == (suffix in ("vhd", "vpc", "avhd"))


@pytest.mark.parametrize("kind", READABLE)
def test_a_format_is_known_by_content_unless_the_name_differs(kind: str) -> None:
    for name in (f"a.{kind}", "a", "a.img"):
        Path(name).write_bytes(READABLE[kind] + bytes(PART))
        assert guess_input(name) == kind
    Path("a.vhd").write_bytes(READABLE[kind] + bytes(PART))
    with pytest.raises(NotAVhd, match=f"--format {kind}"):
        guess_input("a.vhd")


def test_a_raw_disk_is_guessed_where_nothing_speaks_against_it() -> None:
    for name in ("a", "a.raw", "a.img", "a.iso", "a.bin"):
        for content in (vhd()[:-SECTOR], bytes(PART), os.urandom(PART), b"x"):
            Path(name).write_bytes(content)
            assert guess_input(name) == "raw"


def test_a_vhd_is_known_by_its_footer_whatever_its_guest_wrote() -> None:
    for magic in (*READABLE.values(), b"KDMV", b"\x1f\x8b\x08"):
        data = bytearray(vhd())
        data[: len(magic)] = magic
        for name in ("a.vhd", "a", "a.qcow2"):
            Path(name).write_bytes(data)
            assert guess_input(name) == "vpc"
            assert kind_of(name) == "vhd"


@pytest.mark.parametrize(
    "words",
    [
        ["check"],
        ["info"],
        ["read"],
        ["map"],
        ["damage"],
        ["repair"],
        ["meta"],
        ["resize", "a.vhd", "8m"],
        ["fill"],
        ["snapshot", "a.vhd", "b.vhd"],
        ["create", "--parent", "a.vhd", "b.vhd"],
        ["modify", "--hidden"],
        ["serve", "--socket", "s"],
        ["serve", "--format", "vhd", "--socket", "s", "a.vhd"],
    ],
)
def test_every_command_says_what_the_file_looks_like(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    OTHERS["vmdk"][0](Path("a.vhd"))
    before = Path("a.vhd").read_bytes()
    assert run([*words, *(["a.vhd"] if "a.vhd" not in words else [])]) == 1
    said = capsys.readouterr().err
    assert "looks like a VMDK image" in said
    assert len(said.splitlines()) == 1
    assert Path("a.vhd").read_bytes() == before
    assert os.listdir() == ["a.vhd"]


def test_the_library_says_it_too() -> None:
    OTHERS["gzip"][0](Path("a.vhd"))
    with pytest.raises(NotAVhd, match="gzip"):
        vhdtool.open("a.vhd")


def test_a_dynamic_image_with_more_behind_it_stays_one() -> None:
    create_dynamic("a.vhd", SIZE)
    with open("a.vhd", "ab") as file:
        file.write(bytes(512))
    assert guess_input("a.vhd") == "vpc"
