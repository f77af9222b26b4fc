"""A sample of what `make tamper` does, on committed records: no change gets a wrong verdict.

TAMPER_SEED chooses another sample. Takes about 10 s: each change is a whole judgement.
"""

import os
from pathlib import Path

import pytest

from tests.support import oracle_cases
from tests.tamper.__main__ import changes, tamper
from tests.tamper.draft import Draft
from tests.unit.test_oracle_records import unpack

SEED = int(os.environ.get("TAMPER_SEED", "1"))


@pytest.mark.parametrize("name", ["reopen-on", "implicit-first-on", "qcow2-hold-on"])
def test_no_change_of_a_real_record_gets_a_wrong_verdict(name: str, tmp_path: Path) -> None:
    result = tamper(unpack(name, tmp_path), sample=10, seed=SEED)
    assert result.tried >= 8, result
    assert not result.wrong, f"TAMPER_SEED={SEED}: " + "\n".join(result.wrong)


@pytest.mark.parametrize("name", ["activate-back", "activate-retry"])
def test_no_change_of_a_made_record_gets_a_wrong_verdict(name: str, tmp_path: Path) -> None:
    case = oracle_cases.SAFE[name]().save(tmp_path / name)
    result = tamper(case, sample=10, seed=SEED)
    assert result.tried >= 8, result
    assert not result.wrong, f"TAMPER_SEED={SEED}: " + "\n".join(result.wrong)


def test_there_are_200_different_changes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    case = unpack("reopen-on", tmp_path / "a")
    (tmp_path / "b").mkdir()
    names = [change.name for change in changes(Draft(case, tmp_path / "b"), None)]
    assert len(set(names)) >= 200
