"""soak.json: medians over N runs of each case, and the failure rate that N runs exclude.

Only the standard library. Sources: the exact binomial bound of Clopper and Pearson (1934), one
sided; with no failures in n runs it is 1 - 0.05**(1/n), which "3/n" approximates from above.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vhdtool.errors import UsageError
from vhdtool.report import wording
from vhdtool.report.case import PHASES, Case, parse_entry
from vhdtool.report.lenient_json import items, mapping
from vhdtool.report.run import load_verdict

CONFIDENCE = 0.95
ENOUGH = 5
"""Fewer blackouts than this are too noisy to compare: single pairs vary by a factor of two."""
RATIO_LIMIT = 1.1
SWITCH_LIMIT_MS = 5.0


def failure_bound(failures: int, runs: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound on the failure rate (0..1) after `failures` in `runs`, at `confidence`.

    It is the largest rate at which so few failures have a probability of 1 - confidence.
    Raises ValueError unless 0 <= failures <= runs and 0 < confidence < 1.
    """
    if not 0 <= failures <= runs or not 0 < confidence < 1:
        raise ValueError("needs 0 <= failures <= runs and a confidence between 0 and 1")
    if failures == runs:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(failures, runs, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(failures: int, runs: int, rate: float) -> float:
    """P(X <= failures) for X binomial(runs, rate), 0 < rate < 1 and failures < runs.

    Each term from the one above it: the coefficients of thousands of runs fit no float.
    """
    log = (
        math.lgamma(runs + 1)
        - math.lgamma(failures + 1)
        - math.lgamma(runs - failures + 1)
        + failures * math.log(rate)
        + (runs - failures) * math.log1p(-rate)
    )
    factor, total = 1.0, 0.0
    for k in range(failures, -1, -1):
        total += factor
        ratio = k * (1 - rate) / ((runs - k + 1) * rate)
        if ratio < 1 and factor < total * 1e-17:
            break
        factor *= ratio
    return math.exp(log + math.log(total))


def median(values: Sequence[float]) -> float | None:
    """The median; None for no values."""
    return statistics.median(values) if values else None


def p90(values: Sequence[float]) -> float | None:
    """The 90th percentile, interpolated between the two nearest values; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    position = 0.9 * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def summarise(verdict: dict[str, Any]) -> dict[str, Any]:
    """Derive the contents of soak.json from verdict.json. Times are in ms.

    Inconclusive and failed cases count as not as expected. Times are those of the cases that were
    as expected: the others measure something else.
    """
    groups = dict[tuple[str, bool, str], list[Case]]()
    cases = [parse_entry(mapping(entry)) for entry in items(verdict.get("strategies"))]
    for case in sorted(cases, key=wording.order):
        groups.setdefault((case.strategy, case.guard, case.expected), []).append(case)
    strategies = [_group(key, cases) for key, cases in groups.items()]
    return {
        "schema": 1,
        "n": max((entry["runs"] for entry in strategies), default=0),
        "strategies": strategies,
        "ratios": _ratios(strategies),
        "targets": _targets(strategies),
    }


def has_repeats(run_dir: Path) -> bool:
    """Whether a case of the run was repeated. Raises UsageError without a verdict.json."""
    return bool(summarise(load_verdict(run_dir))["n"] > 1)


def write_soak(run_dir: Path) -> Path:
    """Write run_dir/soak.json from its verdict.json. Raises UsageError when either fails."""
    soak = summarise(load_verdict(run_dir))
    path = run_dir / "soak.json"
    try:
        path.write_text(json.dumps(soak, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def _group(key: tuple[str, bool, str], cases: list[Case]) -> dict[str, Any]:
    met = [case for case in cases if case.as_expected]
    margins = [case.margin_ms for case in met if case.margin_ms is not None]
    switches = [value for case in met if (value := _switch(case)) is not None]
    lost = [value for case in cases if (value := case.writes["lost"]) is not None]
    in_flight = [count for case in cases for count in case.in_flight]
    return {
        "name": key[0],
        "guard": key[1],
        "expected": key[2],
        "runs": len(cases),
        "as_expected": len(met),
        "bound_95": failure_bound(len(cases) - len(met), len(cases)),
        "blackout_ms": _spread(met, "total"),
        "phases_ms": {phase: _spread(met, phase) for phase in PHASES},
        "switch_ms": {"median": median(switches), "p90": p90(switches), "n": len(switches)},
        "margin_ms": {"median": median(margins), "min": min(margins, default=None)},
        "lost": _range(lost),
        "data_whole": sum(case.data_whole for case in cases),
        "in_flight": _range(in_flight),
    }


def _switch(case: Case) -> float | None:
    """deactivate + activate of a case: the cost of the order itself."""
    out, into = case.blackout_ms["deactivate"], case.blackout_ms["activate"]
    return None if out is None or into is None else out + into


def _range(values: list[int]) -> dict[str, int | None]:
    return {"min": min(values, default=None), "max": max(values, default=None)}


def _spread(cases: list[Case], key: str) -> dict[str, Any]:
    values = [value for case in cases if (value := case.blackout_ms[key]) is not None]
    return {"median": median(values), "p90": p90(values), "n": len(values)}


def _ratios(strategies: list[dict[str, Any]]) -> dict[str, float]:
    """Median blackout of each consistent strategy, relative to overlap in the same run."""
    base = next(
        (e["blackout_ms"] for e in strategies if e["name"] == "overlap" and not e["guard"]), None
    )
    if base is None or not base["median"] or base["n"] < ENOUGH:
        return {}
    return {
        f"{entry['name']}/overlap blackout": entry["blackout_ms"]["median"] / base["median"]
        for entry in strategies
        if entry["expected"] == "consistent" and entry["blackout_ms"]["n"] >= ENOUGH
    }


def _targets(strategies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The two limits on `activate`, where there are enough runs to check them."""
    targets = []
    ratio = _ratios(strategies).get("activate/overlap blackout")
    if ratio is not None:
        targets.append(_target("activate/overlap median blackout", ratio, RATIO_LIMIT, ""))
    for entry in strategies:
        if entry["name"] == "activate" and entry["switch_ms"]["n"] >= ENOUGH:
            value = entry["switch_ms"]["median"]
            what = "activate: median deactivate + activate"
            targets.append(_target(what, value, SWITCH_LIMIT_MS, "ms"))
    return targets


def _target(what: str, value: float, limit: float, unit: str) -> dict[str, Any]:
    return {"what": what, "value": value, "limit": limit, "unit": unit, "met": value <= limit}
