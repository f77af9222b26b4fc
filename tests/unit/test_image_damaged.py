"""What each command does to each damaged image: it refuses and changes nothing, or is right."""

from pathlib import Path

import pytest
from damaged import CORPUS, MORE, found_codes

from vhdtool.errors import VhdtoolError
from vhdtool.image import admission
from vhdtool.image.admission import BATMAP_LIES, readable
from vhdtool.image.chain_check import check_chain
from vhdtool.image.check import check
from vhdtool.image.metadata import read_metadata
from vhdtool.storage import FileStorage


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
    return not any(one.severity == "corrupt" and one.code not in BATMAP_LIES for one in found)


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

    monkeypatch.setattr(admission, "check", looked)
    with FileStorage(tmp_path / "image.vhd") as storage:
        assert readable(storage).size
