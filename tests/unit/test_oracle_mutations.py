"""Damaged records: never a traceback, never a better verdict, always the same one."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import oracle_cases
from vhdtool.oracle import verdict
from vhdtool.oracle.run import exit_code, judge_run
from vhdtool.oracle.verdict import VERDICTS, judge_case

ROUNDS = 40
KINDS = ("cut", "flip", "digit", "drop", "double", "swap", "zeros", "empty", "gone", "junk")


def mutations(kind: str, data: bytes, rng: random.Random) -> Iterator[bytes | None]:
    """One damaged version, or None for a file that is gone."""
    place = rng.randrange(len(data))
    lines = data.splitlines(keepends=True)
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    changed = bytearray(data)
    if kind == "cut":
        yield data[:place]
    elif kind == "flip":
        changed[place] ^= 1 << rng.randrange(8)
        yield bytes(changed)
    elif kind == "digit":
        digits = [i for i, byte in enumerate(data) if byte in b"0123456789"]
        changed[rng.choice(digits)] = rng.choice(b"0123456789")
        yield bytes(changed)
    elif kind == "drop":
        yield b"".join(lines[:one] + lines[one + 1 :])
    elif kind == "double":
        yield b"".join(lines[: one + 1] + lines[one:])
    elif kind == "swap":
        lines[one], lines[other] = lines[other], lines[one]
        yield b"".join(lines)
    elif kind == "zeros":
        yield data[:place] + bytes(64) + data[place + 64 :]
    elif kind == "junk":
        yield rng.randbytes(200) + b'\n{"seq": 1e999}\n[' + b"[" * 3000
    else:
        yield b"" if kind == "empty" else None


@pytest.mark.parametrize("name", ["activate", "overlap", "refused", "retry"])
def test_no_damage_makes_a_record_better(name: str, tmp_path: Path) -> None:
    """Fixed seed. What is torn or lost outside the snapshots never makes a clean run corrupt.

    A forged number may: an epoch that was changed is an overlap, as far as anyone can tell.
    """
    rng = random.Random(f"mutations of {name}")
    path = getattr(oracle_cases, name)().save(tmp_path / name)
    clean = judge_case(path)["verdict"]
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "image.vhd")
    for _ in range(ROUNDS):
        target = rng.choice(files)
        data = target.read_bytes()
        kind = rng.choice(KINDS)
        for damaged in mutations(kind, data, rng):
            if damaged is None:
                target.unlink()
            else:
                target.write_bytes(damaged)
            entry = judge_case(path)
            target.write_bytes(data)
            told = (target.name, damaged and damaged[:80], entry["why"])
            assert entry["verdict"] in VERDICTS
            assert "oracle failed" not in entry["why"], told
            json.dumps(entry, allow_nan=False)
            if clean == "corrupt":
                assert entry["verdict"] in ("corrupt", "error"), told
            elif target.parent.name != "metadata" and kind not in ("digit", "flip"):
                assert entry["verdict"] in (clean, "inconclusive", "error"), told
            else:
                assert entry["verdict"] in (clean, "inconclusive", "corrupt"), told


def test_a_damaged_image_never_ends_the_judging(tmp_path: Path) -> None:
    rng = random.Random(4711)
    for name in ("activate", "overlap"):
        lab = getattr(oracle_cases, name)()
        path = lab.save(tmp_path / name)
        image = path / "image.vhd"
        size = image.stat().st_size
        for _ in range(15):
            # The first pages hold footer copy, header, BAT and batmap; the end holds the footer.
            offset = rng.choice([rng.randrange(4096), size - 1 - rng.randrange(512)])
            with open(image, "r+b") as file:
                file.seek(offset)
                old = file.read(8)
                file.seek(offset)
                file.write(rng.randbytes(len(old)))
                file.flush()
                entry = judge_case(path)
                file.seek(offset)
                file.write(old)
            assert "oracle failed" not in json.dumps(entry), offset
            if name == "overlap":
                assert entry["verdict"] == "corrupt", (offset, entry["why"])


def test_pieces_of_the_wrong_kind_are_judged_too(tmp_path: Path) -> None:
    path = oracle_cases.activate().save(tmp_path / "case")
    for piece in ("case.json", "events.jsonl", "console.jsonl", "image.vhd"):
        data = (path / piece).read_bytes()
        (path / piece).unlink()
        (path / piece).mkdir()
        assert judge_case(path)["verdict"] == "inconclusive"
        (path / piece).rmdir()
        (path / piece).write_bytes(data)
    (path / "metadata" / "1-folder.json").mkdir()
    assert judge_case(path)["verdict"] == "inconclusive"


def test_numbers_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    lab = oracle_cases.activate()
    changes: tuple[dict[str, Any], ...] = (
        {"image_bytes": 1 << 60}, {"block_bytes": 512}, {"block_bytes": 0}, {"legs": 10**9},
        {"seed": -1}, {"image": "../../etc/passwd"}, {"hosts": "ab"}, {"hosts": ["a/b", "c"]},
        {"points": {"x": []}}, {"points": {"1": [[]]}}, {"points": {}}, {"expected": "fine"},
        {"guard": 1}, {"schema": 9}, {"image_bytes": 1e9}, {"seed": "7"},
    )  # fmt: skip
    for number, change in enumerate(changes):
        path = lab.save(tmp_path / str(number))
        (path / "case.json").write_text(json.dumps({**lab.case(), **change}))
        assert judge_case(path)["verdict"] == "inconclusive", change


def test_a_defect_of_the_judge_is_a_doubt_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    path = oracle_cases.activate().save(tmp_path / "case")
    for name in ("load_record", "cover", "longest_blackout", "try_oracles"):
        with monkeypatch.context() as patch:
            patch.setattr(verdict, name, broken)
            entry = judge_case(path)
        assert entry["verdict"] == "inconclusive"
        assert entry["case"] == "case"
        assert "ZeroDivisionError" in entry["why"]


def test_the_exit_code_of_a_damaged_run_is_never_success(tmp_path: Path) -> None:
    oracle_cases.activate().save(tmp_path / "run" / "activate")
    path = oracle_cases.overlap().save(tmp_path / "run" / "overlap")
    assert exit_code(judge_run(tmp_path / "run")) == 0
    (path / "case.json").unlink()
    assert exit_code(judge_run(tmp_path / "run")) == 125
