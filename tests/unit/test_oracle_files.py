"""The judge reads regular files of bounded size, and waits for nothing."""

import os
from pathlib import Path

import pytest

from tests.support import oracle_cases
from vhdtool.oracle.evidence import files as pieces
from vhdtool.oracle.evidence.files import read_file
from vhdtool.oracle.evidence.json_fields import TornRecord, parse_object
from vhdtool.oracle.verdict import judge_case

PIECES = (
    "case.json", "events.jsonl", "console.jsonl", "console-alpha.log", "image.vhd",
    "metadata/1-source-closed.json", "reproduce.txt", "check.json",
)  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("what", ["fifo", "device", "link out", "link to itself"])
def test_no_piece_makes_the_judge_wait_or_fill_its_memory(
    piece: str, what: str, tmp_path: Path
) -> None:
    folder = oracle_cases.activate().save(tmp_path / "case")
    path = folder / piece
    path.unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "link out":
        (tmp_path / "other").write_text("{}")
        path.symlink_to(tmp_path / "other")
    else:
        path.symlink_to(path.name)
    optional = piece in ("reproduce.txt", "check.json")
    assert judge_case(folder)["verdict"] == ("consistent" if optional else "inconclusive")


def test_a_linked_snapshot_folder_is_not_part_of_the_record(tmp_path: Path) -> None:
    folder = oracle_cases.activate().save(tmp_path / "case")
    (folder / "metadata").rename(tmp_path / "elsewhere")
    (folder / "metadata").symlink_to(tmp_path / "elsewhere")
    assert judge_case(folder)["verdict"] == "inconclusive"


def test_a_piece_of_any_size_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, pieces.LARGEST_FILE + 1)
    with pytest.raises(TornRecord, match="more than 64 MiB"):
        read_file(large)
    folder = oracle_cases.activate().save(tmp_path / "case")
    os.truncate(folder / "image.vhd", pieces.LARGEST_IMAGE + 512)
    entry = judge_case(folder)
    assert entry["verdict"] == "inconclusive"
    assert "image.vhd" in entry["why"]


def test_a_key_that_is_given_twice_is_torn_at_any_depth() -> None:
    for text in (b'{"a": 1, "a": 1}', b'{"a": {"b": 1, "b": 2}}', b'{"a": [{"b": 1, "b": 2}]}'):
        with pytest.raises(TornRecord, match="is repeated"):
            parse_object(text)
    assert parse_object(b'{"a": {"b": 1}, "b": 2}') == {"a": {"b": 1}, "b": 2}
