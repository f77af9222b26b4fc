"""Planted faults: caught by oracles that work, and telling on oracles that do not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import oracle_cases
from vhdtool.oracle import judge as judging
from vhdtool.oracle.checks.activation import ActivationOutcome
from vhdtool.oracle.checks.content import ContentOutcome
from vhdtool.oracle.checks.leftovers import LeftoversOutcome
from vhdtool.oracle.evidence.record import load_record
from vhdtool.oracle.finding import Finding, Outcome
from vhdtool.oracle.judge import Evidence, Outcomes, prepare, run_oracles
from vhdtool.oracle.planted import plant as planted
from vhdtool.oracle.planted.plant import try_oracles
from vhdtool.oracle.readers.image_view import FileView
from vhdtool.oracle.verdict import judge_case

MAKERS = (*oracle_cases.SAFE.values(), oracle_cases.refused, oracle_cases.overlap)


@contextmanager
def judged(path: Path) -> Iterator[tuple[Evidence, Outcomes]]:
    record = load_record(path)
    assert record.image
    with FileView(record.image) as view:
        evidence = prepare(record, view)
        yield evidence, run_oracles(evidence)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: str(make.__name__))
@pytest.mark.parametrize("seed", range(3))
def test_every_fault_is_planted_and_caught(
    make: Callable[[int], oracle_cases.Lab], seed: int, tmp_path: Path
) -> None:
    with judged(make(seed).save(tmp_path / "case")) as (evidence, outcomes):
        result = try_oracles(evidence, outcomes)
    assert not result.missed
    assert result.faults == result.caught
    expected = {
        "content: dropped-ack-early", "content: dropped-ack-late", "content: never-written",
        "metadata: entry-gone", "metadata: entry-moved", "metadata: bit-gone",
        "metadata: image-entry-gone", "metadata: swapped-footer", "structure: overlap",
        "structure: foreign-footer", "structure: entry-past-end",
        "activation: second-activation-first", "activation: second-activation-last",
    }  # fmt: skip
    assert expected <= set(result.names)


@pytest.mark.parametrize("name", judging.ORACLES)
def test_a_blind_oracle_makes_the_case_inconclusive(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {
        "content": ContentOutcome(),
        "activation": ActivationOutcome(),
        "leftovers": LeftoversOutcome(),
    }
    blind = empty.get(name, Outcome())
    monkeypatch.setattr(judging, f"judge_{name}", lambda _evidence: blind)
    monkeypatch.setitem(judging.ORACLES, name, lambda _evidence: blind)
    entry = judge_case(oracle_cases.activate().save(tmp_path / "case"))
    assert entry["verdict"] == "inconclusive"
    assert entry["planted"]["caught"] < entry["planted"]["faults"] or name == "activation"
    assert f"({name}: " in entry["why"]


def test_an_old_finding_or_another_position_is_no_catch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Outcome((Finding("lost", "always the same", block=1, sectors=(0, 1)),))
    with judged(oracle_cases.activate().save(tmp_path / "case")) as (evidence, outcomes):
        monkeypatch.setitem(judging.ORACLES, "content", lambda _evidence: noise)
        result = try_oracles(evidence, outcomes)
    assert {"content: dropped-ack-early", "content: never-written"} <= set(result.missed)


def test_planting_changes_no_file(tmp_path: Path) -> None:
    path = oracle_cases.activate().save(tmp_path / "case")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    judge_case(path)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_an_old_finding_at_the_position_is_no_catch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = Finding("lost", "all of it", block=0, sectors=(0, 1 << 40))
    noise = ContentOutcome((everything,))
    with judged(oracle_cases.activate().save(tmp_path / "case")) as (evidence, outcomes):
        monkeypatch.setitem(judging.ORACLES, "content", lambda _evidence: noise)
        assert "content: dropped-ack-late" not in try_oracles(evidence, outcomes).missed
        result = try_oracles(evidence, replace(outcomes, content=noise))
    assert {"content: dropped-ack-early", "content: dropped-ack-late"} <= set(result.missed)


def test_an_oracle_without_one_of_its_faults_is_not_awake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kind of fault that finds no place counts as missed, and not as tried."""
    monkeypatch.setattr(planted, "PLANTERS", planted.PLANTERS[:-1])
    entry = judge_case(oracle_cases.activate().save(tmp_path / "case"))
    assert entry["verdict"] == "inconclusive"
    assert "could not be planted" in entry["why"]
