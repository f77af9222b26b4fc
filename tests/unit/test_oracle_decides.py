"""The rules by which a verdict is decided, one at a time and at their bounds.

What planted faults see in real records is not repeated here; these are the cases that a sound
record does not have.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import oracle_cases
from vhdtool.oracle.checks.activation import ActivationOutcome
from vhdtool.oracle.checks.content import ContentOutcome
from vhdtool.oracle.checks.leftovers import LeftoversOutcome
from vhdtool.oracle.checks.structure import check_structure
from vhdtool.oracle.contradictions.epochs import check_epochs
from vhdtool.oracle.coverage import Coverage
from vhdtool.oracle.evidence.events import Event, Events
from vhdtool.oracle.evidence.record import load_record
from vhdtool.oracle.finding import Finding, Outcome, doubt
from vhdtool.oracle.judge import Evidence, Outcomes, prepare
from vhdtool.oracle.planted.plant import Planted
from vhdtool.oracle.readers.image_view import FileView
from vhdtool.oracle.verdict import VERDICTS, WHOLE, decide

CLEAN = Outcomes(ContentOutcome(), Outcome(), Outcome(), ActivationOutcome(), LeftoversOutcome())
LEAKS = (
    "geometry", "leaked-block", "leaked-tail", "orphan-block", "size-disagrees", "size-odd",
)  # fmt: skip
PROOF = Finding("lost", "write 1 is lost")


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    record = load_record(oracle_cases.activate().save(tmp_path / "case"))
    return prepare(record, None)


def verdict(
    evidence: Evidence,
    outcomes: Outcomes = CLEAN,
    coverage: Coverage | None = None,
    planted: Planted | None = None,
) -> str:
    found, _ = decide(evidence, outcomes, coverage or Coverage(), planted or Planted())
    assert found in VERDICTS
    return found


def failed(evidence: Evidence, live: bool) -> Evidence:
    case = evidence.record.case
    assert case is not None
    changed = replace(case, error="QEMU died", live_check_failed=live)
    return replace(evidence, record=replace(evidence.record, case=changed))


def test_the_first_of_the_reasons_is_the_verdict(evidence: Evidence) -> None:
    assert verdict(evidence) == "consistent"
    for name in ("content", "metadata", "structure", "activation", "leftovers"):
        outcome = getattr(CLEAN, name)
        doubtful = replace(CLEAN, **{name: replace(outcome, findings=(doubt("x", "why"),))})
        assert verdict(evidence, doubtful) == "inconclusive"
        damaged = replace(CLEAN, **{name: replace(outcome, findings=(PROOF,))})
        assert verdict(evidence, damaged) == "corrupt"
        assert verdict(failed(evidence, live=True), damaged) == "corrupt"
        assert verdict(failed(evidence, live=False), damaged) == "error"
    assert verdict(failed(evidence, live=True)) == "error"
    assert verdict(evidence, coverage=Coverage(doubts=["too little"])) == "inconclusive"
    assert verdict(evidence, planted=Planted(missed=["content: x"])) == "inconclusive"
    assert verdict(evidence, coverage=Coverage(refused="beta refused")) == "refused"
    console = replace(evidence.console, oops="Kernel panic")
    assert verdict(replace(evidence, console=console)) == "error"


def test_whole_data_under_a_broken_rule_is_said_first(evidence: Evidence) -> None:
    broken = replace(CLEAN, activation=ActivationOutcome((PROOF,), overlap_epochs=1))
    _, why = decide(evidence, broken, Coverage(), Planted())
    assert why.startswith(f"{WHOLE}: two hosts were active at once; first: ")
    for name in ("content", "metadata", "structure"):
        for found in (PROOF, doubt("x", "why")):
            outcome = replace(getattr(CLEAN, name), findings=(found,))
            _, why = decide(evidence, replace(broken, **{name: outcome}), Coverage(), Planted())
            assert WHOLE not in why


def test_what_is_left_behind_is_not_consistent_and_not_refused(evidence: Evidence) -> None:
    left = replace(CLEAN, leftovers=LeftoversOutcome((Finding("left-keys", "a key", "left"),)))
    assert verdict(evidence, left) == "inconclusive"
    assert verdict(evidence, left, Coverage(refused="beta refused")) == "inconclusive"


def test_reasons_are_counted_once_each(evidence: Evidence) -> None:
    coverage = Coverage(doubts=["a", "b", "a"])
    _, why = decide(evidence, CLEAN, coverage, Planted(missed=["c"]))
    assert why == "It proves nothing: a (and 2 more reasons)"
    _, why = decide(evidence, CLEAN, Coverage(doubts=["a"]), Planted())
    assert why == "It proves nothing: a"
    damaged = replace(CLEAN, content=ContentOutcome((PROOF,), lost_writes=frozenset({1})))
    _, why = decide(evidence, damaged, Coverage(), Planted())
    assert why == "1 acknowledged write lost; first: write 1 is lost"


def event(seq: int, name: str, epoch: int | None, **extra: object) -> Event:
    return Event(seq, name, 1, "alpha", "source", 7, epoch, float(seq), extra)


def test_a_failed_activation_accounts_for_one_epoch() -> None:
    read, release = event(1, "activated", 1), event(3, "deactivated", 4, ended=1)
    for released, untold in ((3, 0), (None, 1), (2, 1)):
        refused = event(2, "refused", None, op="activate", released=released)
        last = event(3, "deactivated", 4, ended=1)
        found = check_epochs(Events((read, refused, last), ()))
        assert len(found) == untold, (released, found)
    two = (event(2, "refused", None, released=3), event(3, "refused", None, released=5))
    found = check_epochs(Events((read, *two, event(4, "deactivated", 6, ended=1)), ()))
    assert found == []
    far = event(2, "refused", None, released=4)
    assert len(check_epochs(Events((read, far, replace(release, epoch=5)), ()))) == 1


@pytest.mark.parametrize("code", LEAKS)
def test_leaked_space_is_only_information(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vhdtool.image.check.image import CheckReport
    from vhdtool.image.metadata.findings import Finding as Checked
    from vhdtool.oracle.checks import structure

    def check(view: FileView, mode: str) -> CheckReport:
        report = CheckReport(view.name, mode)
        report.findings = [
            Checked(code, "unclean", "said"),
            Checked("footers-differ", "unclean", "said"),
        ]
        return report

    monkeypatch.setattr(structure, "check", check)
    with FileView(oracle_cases.activate().save(tmp_path / "case") / "image.vhd") as view:
        found = check_structure(view, "vhd", None).findings
    assert [finding.severity for finding in found] == ["info", "corrupt"]
