"""The soak statistics against values known from elsewhere."""

import json
from pathlib import Path

import pytest

from tests.support.synthetic_run import PHASES, entry
from vhdtool.errors import UsageError
from vhdtool.report.output import soak


@pytest.mark.parametrize(
    ("failures", "runs", "bound"),
    [
        (0, 1, 0.95),
        (0, 10, 0.258866),  # 1 - 0.05 ** (1 / 10)
        (0, 59, 0.049508),  # the smallest n that shows "below 5 %"
        (1, 10, 0.394163),  # tables of the exact (Clopper-Pearson) one-sided bound
        (2, 20, 0.282619),
        (10, 10, 1.0),
    ],
)
def test_bound_is_the_exact_one(failures: int, runs: int, bound: float) -> None:
    assert soak.failure_bound(failures, runs) == pytest.approx(bound, abs=1e-5)


def test_rule_of_three_is_a_little_above_the_exact_bound() -> None:
    assert soak.failure_bound(0, 100) < 3 / 100 < soak.failure_bound(0, 100) * 1.03


@pytest.mark.parametrize(("failures", "runs"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(failures: int, runs: int) -> None:
    with pytest.raises(ValueError, match="failures"):
        soak.failure_bound(failures, runs)


@pytest.mark.parametrize(
    ("values", "median", "p90"),
    [
        ([], None, None),
        ([7.0], 7.0, 7.0),
        ([3.0, 1.0], 2.0, 2.8),
        ([float(n) for n in range(1, 12)], 6.0, 10.0),
    ],
)
def test_median_and_p90(values: list[float], median: float | None, p90: float | None) -> None:
    assert soak.median(values) == median
    assert soak.p90(values) == (None if p90 is None else pytest.approx(p90))


def _runs(name: str, expected: str, totals: list[float]) -> list[dict[str, object]]:
    verdict = expected
    blackouts = [{"total": total} | dict.fromkeys(PHASES, total / 10) for total in totals]
    return [entry(name, False, expected, verdict, blackout_ms=times) for times in blackouts]


def test_medians_bound_ratio_and_targets_of_a_soak() -> None:
    entries = _runs("overlap", "corrupt", [40, 50, 60, 45, 55])
    entries += _runs("activate", "consistent", [44, 54, 64, 52, 53])
    summary = soak.summarise({"strategies": entries})
    assert summary["n"] == 5
    overlap, activate = summary["strategies"]
    assert (overlap["runs"], overlap["as_expected"]) == (5, 5)
    assert overlap["bound_95"] == pytest.approx(0.450720, abs=1e-5)
    assert overlap["lost"] == {"min": 243, "max": 243}
    assert activate["blackout_ms"]["median"] == 53
    assert activate["switch_ms"]["median"] == pytest.approx(10.6)
    assert summary["ratios"] == {"activate/overlap blackout": pytest.approx(1.06)}
    assert [target["met"] for target in summary["targets"]] == [True, False]


def test_what_proves_nothing_is_no_success_and_gives_no_times() -> None:
    entries = [
        entry("activate", True, "consistent", "consistent"),
        entry("activate", True, "consistent", "inconclusive", blackout_ms={"total": 9999.0}),
    ]
    (activate,) = soak.summarise({"strategies": entries})["strategies"]
    assert (activate["runs"], activate["as_expected"]) == (2, 1)
    assert activate["blackout_ms"]["median"] == 48


def test_few_runs_allow_no_comparison() -> None:
    entries = _runs("overlap", "corrupt", [40]) + _runs("activate", "consistent", [90])
    summary = soak.summarise({"strategies": entries})
    assert summary["ratios"] == {}
    assert summary["targets"] == []


def test_write_leaves_a_file_and_names_a_run_that_is_none(tmp_path: Path) -> None:
    verdict = {"strategies": _runs("activate", "consistent", [44])}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    assert json.loads(soak.write_soak(tmp_path).read_text())["schema"] == 1
    with pytest.raises(UsageError, match=r"nowhere.verdict\.json"):
        soak.write_soak(tmp_path / "nowhere")
