"""What each command does to each damaged image: it refuses and changes nothing, or is right."""

import errno
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.damaged import (
    BLOCK,
    CORPUS,
    MORE,
    SIZE,
    child_of,
    found_codes,
    sound,
    write_block,
)
from tests.support.image_tools import change_header, content
from tests.support.vhd_images import Picture
from vhdtool.cli.main import run
from vhdtool.cli.vhd_util.main import run as vhd_util
from vhdtool.errors import VhdtoolError
from vhdtool.image.chain.check import check_chain
from vhdtool.image.check import admission
from vhdtool.image.check.admission import TOLERATED_BY_READERS, readable
from vhdtool.image.check.image import check
from vhdtool.image.journal.transaction import change_journal_path
from vhdtool.image.metadata.dump import dump_metadata
from vhdtool.image.metadata.read import read_metadata
from vhdtool.image.salvage import open as lenient
from vhdtool.image.salvage.open import open_salvage
from vhdtool.storage import FileStorage
from vhdtool.vhd.footer import Footer
from vhdtool.vhd.header import Locator
from vhdtool.vhd.units import SECTOR

MIB = 1 << 20


def test_the_corpus_has_an_image_for_every_code_of_the_check() -> None:
    """A new code needs an image in damaged.py, which then goes through every command here."""
    assert found_codes() == set(CORPUS)


@pytest.mark.parametrize("code", CORPUS)
def test_the_check_finds_what_the_corpus_says(code: str, tmp_path: Path) -> None:
    CORPUS[code](tmp_path)
    report = check_chain(tmp_path / "image.vhd")
    found = [*report.links, *(one for each in report.reports for one in each.findings)]
    assert code in [one.code for one in found]


def judged_readable(image: Path) -> bool:
    """As the gate has to decide: nothing corrupt, but for a batmap that says too much."""
    with FileStorage(image) as storage:
        try:
            read_metadata(storage)
        except VhdtoolError:
            return False
        found = check(storage, "live").findings
    return not any(
        one.severity == "corrupt" and one.code not in TOLERATED_BY_READERS for one in found
    )


@pytest.mark.parametrize("code", [*CORPUS, *MORE])
def test_the_quick_look_at_the_tables_agrees_with_the_check(code: str, tmp_path: Path) -> None:
    {**CORPUS, **MORE}[code](tmp_path)
    image = tmp_path / "image.vhd"
    expected = judged_readable(image)
    with FileStorage(image) as storage:
        if expected:
            assert readable(storage).size >= 0
            return
        with pytest.raises(VhdtoolError):
            readable(storage)


def test_a_sound_image_needs_no_look_at_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CORPUS["footer-copy-missing"](tmp_path)

    def looked(*args: object) -> None:
        raise AssertionError("the check was asked")

    monkeypatch.setattr("vhdtool.image.check.image.check", looked)
    with FileStorage(tmp_path / "image.vhd") as storage:
        assert readable(storage).size


@pytest.mark.parametrize(
    "code", ["block-overlap", "fixed-too-short", "data-past-end", "bat-zeroed"]
)
def test_a_damaged_image_is_converted_and_its_losses_listed(
    code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CORPUS[code](tmp_path)
    image, new = tmp_path / "image.vhd", tmp_path / "new.vhd"
    assert run(["convert", str(image), str(new)]) == 1
    assert not new.exists()
    with open_salvage(image) as salvage:
        expected = salvage.read(0, salvage.size)
    for words in ([], ["--fixed"], ["-O", "raw"]):
        capsys.readouterr()
        assert run(["convert", "--salvage", "--force", *words, str(image), str(new)]) == 2
        assert "lost: guest sectors " in (out := capsys.readouterr().out)
        assert code in out
        if "raw" in words:
            assert new.read_bytes() == expected
        else:
            assert check_chain(new).exit_code == 0
            assert content(new) == expected


def test_a_sound_image_loses_nothing_by_a_salvage(tmp_path: Path) -> None:
    CORPUS["leaked-tail"](tmp_path)
    image, new = tmp_path / "image.vhd", tmp_path / "new.vhd"
    assert run(["convert", "--salvage", str(image), str(new)]) == 0
    assert content(new) == content(image)
    assert run(["convert", "--salvage", str(image), str(tmp_path / "new.qcow2")]) == 1


def test_nothing_is_written_over_an_image_that_others_stand_on(tmp_path: Path) -> None:
    CORPUS["parent-time"](tmp_path)
    image, base = tmp_path / "image.vhd", tmp_path / "base.vhd"
    before = base.read_bytes()
    for words in (
        ["convert", "--force", str(image), str(base)],
        ["convert", "--force", "--salvage", str(image), str(base)],
        ["snapshot", "--force", str(image), str(base)],
        ["create", "--force", "--parent", str(image), str(base)],
    ):
        assert run(words) == 1
    assert vhd_util(["snapshot", "-n", str(base), "-p", str(image)]) == errno.EINVAL
    assert base.read_bytes() == before


def test_a_journal_of_the_image_before_keeps_a_new_one_out(tmp_path: Path) -> None:
    """A repair would play it back into the new image."""
    CORPUS["journal-pending"](tmp_path)
    image = tmp_path / "image.vhd"
    image.unlink()
    assert run(["create", str(image), "4m"]) == 1
    assert not image.exists()
    Path(change_journal_path(image)).unlink()
    assert run(["create", str(image), "4m"]) == 0


def test_salvage_reads_an_interrupted_change_as_if_repaired(tmp_path: Path) -> None:
    CORPUS["journal-pending"](tmp_path)
    image, raw, new = tmp_path / "image.vhd", tmp_path / "new.raw", tmp_path / "new.vhd"
    assert run(["damage", str(image)]) == 0
    assert run(["read", "--salvage", str(image), "-o", str(raw)]) == 0
    assert run(["convert", "--salvage", str(image), str(new)]) == 0
    assert run(["repair", "--yes", str(image)]) == 0
    assert raw.read_bytes() == content(new) == content(image)


def test_revert_takes_only_a_journal(tmp_path: Path) -> None:
    CORPUS["parent-time"](tmp_path)
    image, other = tmp_path / "image.vhd", tmp_path / "notes.txt"
    other.write_text("precious")
    before = image.read_bytes()
    assert vhd_util(["revert", "-n", str(image), "-j", str(other)]) == errno.EINVAL
    assert (image.read_bytes(), other.read_text()) == (before, "precious")


@pytest.mark.parametrize("letter", "drR")
def test_vhd_util_shows_no_data_of_a_damaged_image(
    letter: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    CORPUS["block-overlap"](tmp_path)
    image = str(tmp_path / "image.vhd")
    assert vhd_util(["read", "-n", image, f"-{letter}", "3"]) == errno.EINVAL
    assert capfdbinary.readouterr().out == b""
    assert vhd_util(["read", "-n", image, "-p", "-b", "3"]) == 0
    assert vhd_util(["query", "-n", image, "-vsfd"]) == 0


def test_looking_at_a_damaged_image_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CORPUS["block-overlap"](tmp_path)
    image = str(tmp_path / "image.vhd")
    child_of(Path(image))
    codes = {"info": 0, "check": 2, "damage": 2, "meta": 0, "repair": 2, "scan": 0}
    assert {name: run([name, image]) for name in codes} == codes
    assert run(["read", "--salvage", image, "-o", str(tmp_path / "raw")]) == 2
    assert run(["info", str(tmp_path / "kid.vhd")]) == 0
    assert image in capsys.readouterr().out
    assert run(["map", image]) == 1


GATE = {
    "cli/notes.py": "hints, and the size for a progress bar",
    "cli/vhd_util/check.py": "it tells about damage",
    "cli/vhd_util/metadata_text.py": "it tells about damage",
    "cli/vhd_util/conventions.py": "fields, and no data",
    "cli/vhd_util/repair.py": "whether there is a footer to be mended",
    "cli/vhd_util/read.py": "it asks the gate before it shows data",
    "cli/vhd_util/scan.py": "fields, and no data",
    "image/disk/dynamic.py": "its policy asks the gate; tapdisk2 itself does not",
    "image/chain/open.py": "names only, or through the gate",
    "image/chain/check.py": "it tells about damage",
    "image/check/image.py": "it tells about damage",
    "image/create/differencing.py": "after parent_facts has been through the gate",
    "image/chain/detect.py": "whether it is a VHD at all",
    "image/chain/info.py": "fields, and no data",
    "image/salvage/open.py": "for salvage",
    "image/metadata/dump.py": "fields, and no data",
    "image/metadata/read.py": "its home",
    "image/metadata/ends.py": "its home",
    "image/disk/open.py": "the kind and the size",
    "image/chain/locate_parent.py": "uuids",
    "image/check/lost_header.py": "for damaged images",
    "image/edit/repair.py": "it mends damage",
    "image/chain/tree.py": "fields, and no data",
    "tapdisk/tapctl/images.py": "the key, before the image is opened",
}
"""Who reads metadata without asking the gate, and why that is right."""


def test_no_other_module_reads_metadata_past_the_gate() -> None:
    package = Path(admission.__file__).parents[2]
    reads = re.compile(r"\b(read_metadata|read_block_tables|read_ends)\(")
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if reads.search(path.read_text()) and path.name != "admission.py"
    }
    assert found <= set(GATE)


@pytest.mark.parametrize("code", sorted(CORPUS))
def test_every_refusal_names_a_command_or_says_that_none_helps(
    code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CORPUS[code](tmp_path)
    if run(["convert", str(tmp_path / "image.vhd"), str(tmp_path / "new.raw")]):
        (line,) = capsys.readouterr().err.splitlines()
        words = ("`vhdtool ", "vhdtool repair", "no command can", "the tool that began it")
        assert any(one in line for one in words), line


@pytest.mark.parametrize("code", sorted(CORPUS))
def test_an_image_with_an_exit_code_is_not_consistent(
    code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CORPUS[code](tmp_path)
    result = run(["check", str(tmp_path / "image.vhd")])
    lines = [one for one in capsys.readouterr().out.splitlines() if ".vhd: " in one]
    first = next(one for one in lines if one.startswith(f"{tmp_path / 'image.vhd'}: "))
    verdict = first.split(": ", 1)[1].split(",")[0]
    assert verdict == {0: "consistent", 2: "corrupt", 3: "unclean"}[result]


@pytest.mark.parametrize("offset", [1 << 63, 1 << 40, 2560])
def test_locators_of_a_disk_without_a_parent_count_for_nothing(offset: int, tmp_path: Path) -> None:
    """No reader looks at them; a writer must not take their numbers for the end of the headers."""
    path = tmp_path / "image.vhd"
    picture = sound()
    path.write_bytes(picture.draw().getvalue())
    one = Locator(b"W2ru", SECTOR, 20, 0, offset)
    change_header(path, locators=(one, *picture.header.locators[1:]))
    before = content(path)
    raw = bytearray(path.read_bytes())
    path.write_bytes(bytes(SECTOR) + raw[SECTOR:])
    assert run(["repair", "--yes", str(path)]) == 0
    assert path.read_bytes() == raw
    write_block(path, 7, bytes(SECTOR))
    assert run(["resize", str(path), "100m"]) == 0
    assert run(["check", str(path)]) == 0
    assert content(path)[: len(before)] == before
    assert path.stat().st_size < 16 * MIB


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_salvage_takes_no_size_that_no_disk_can_have(kind: str, tmp_path: Path) -> None:
    """The copy of the footer has the right one, where there is a copy."""
    path, new = tmp_path / "image.vhd", tmp_path / "new.vhd"
    if kind == "fixed":
        CORPUS["fixed-too-short"](tmp_path)
    else:
        path.write_bytes(sound().draw().getvalue())
    raw = path.read_bytes()
    footer = replace(Footer.unpack(raw[-SECTOR:]), current_size=(1 << 63) - SECTOR)
    path.write_bytes(raw[:-SECTOR] + footer.pack())
    assert run(["convert", "--salvage", str(path), str(new)]) == 2
    assert run(["check", str(new)]) == 0
    whole = content(new)
    assert len(whole) == (SIZE if kind == "dynamic" else SIZE // 2)
    assert any(whole)


def _all_in_one_place() -> Picture:
    picture = sound()
    picture.blocks = dict.fromkeys(range(8), picture.blocks[3])
    picture.batmap_bits[:] = bytes(len(picture.batmap_bits))
    return picture


def test_salvage_trusts_nothing_beyond_the_listed_overlaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = tmp_path / "image.vhd", tmp_path / "new.raw"
    path.write_bytes(_all_in_one_place().draw().getvalue())
    monkeypatch.setattr(lenient, "MOST_FINDINGS", 4)
    assert run(["read", "--salvage", str(path), "-o", str(new)]) == 2
    assert not any(new.read_bytes())


def test_a_bat_beyond_the_file_costs_no_bitmaps(tmp_path: Path) -> None:
    disk = _all_in_one_place().draw()
    assert len(dump_metadata(disk)["bitmaps"]) <= disk.size() // BLOCK + 1
    assert len(dump_metadata(sound().draw())["bitmaps"]) == 3
    reads = []
    read = disk.pread
    disk.pread = lambda at, length: reads.append(at) or read(at, length)  # type: ignore
    report = check(disk, limit=4)
    assert report.truncated == {"block-overlap"}
    assert "and 10 more of these" in [one.message for one in report.findings]
    assert len(reads) < 20
