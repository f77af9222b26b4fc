"""Writes a directory of runs as a nightly job leaves it, for the tests of the history.

Verdicts have the size and the figures of real runs: 15 cases, about 85 findings for each corrupt
one, 100 KB in all. Everything follows from the seed.
"""

import json
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.synthetic_run import PHASES, entry

START = datetime(2026, 1, 5, 2, 17, tzinfo=UTC)
ORDERS: tuple[tuple[str, bool, str, float | None], ...] = (
    ("overlap", False, "corrupt", -830.0),
    ("overlap", True, "refused", None),
    ("late-close", False, "corrupt", -450.0),
    ("late-close", True, "refused", None),
    ("reopen-early", False, "corrupt", -2.6),
    ("reopen-early", True, "refused", None),
    ("activate", True, "consistent", 4.0),
    ("reopen", True, "consistent", 6.0),
    ("hold", True, "consistent", 3.2),
    ("implicit", True, "consistent", 80.0),
    ("implicit-first", False, "corrupt", -310.0),
    ("implicit-first", True, "refused", None),
    ("login", True, "consistent", 6.8),
    ("activate-back", True, "consistent", 3.7),
    ("activate-retry", True, "consistent", 4.1),
)
"""(strategy, guard, expected verdict, usual margin in ms)."""
CONFIG: dict[str, Any] = {
    "strategies": ["all"],
    "guard": "default",
    "seed": 1,
    "repeats": 1,
    "image": "vhd",
    "image_bytes": "2g",
    "block_bytes": "2m",
    "profile": "paced",
    "pace_us": 4000,
    "hypervisor": "kvm",
    "accelerator": "auto",
    "hosts": [{"name": "alpha", "ssh": "alpha"}, {"name": "beta", "ssh": "beta"}],
    "storage": "local",
    "live_tests": True,
}
Odd = Callable[[int, str, bool, int], str | None]
"""(number of the run, strategy, guard, seed) -> another verdict than the expected one, or None."""


def name_of(number: int) -> str:
    """The name of a run: a night each."""
    return f"{START + timedelta(days=number):%Y%m%dT%H%M%S.000Z}"


def make_runs(folder: Path, count: int, seeds: int = 1, odd: Odd | None = None) -> list[Path]:
    """Write `count` runs, a night each, with all orders; return their directories."""
    return [make_run(folder, number, seeds, odd) for number in range(count)]


def make_run(
    folder: Path,
    number: int,
    seeds: int = 1,
    odd: Odd | None = None,
    config: Mapping[str, Any] | None = None,
    orders: tuple[tuple[str, bool, str, float | None], ...] = ORDERS,
    **verdict: Any,
) -> Path:
    """Write one run; `config` replaces options, `verdict` fields of verdict.json."""
    chance = random.Random(number)
    entries = [
        _case(chance, *order, seed, odd(number, order[0], order[1], seed) if odd else None)
        for seed in range(1, seeds + 1)
        for order in orders
    ]
    run = folder / name_of(number)
    run.mkdir(parents=True)
    content = {
        "schema": 1,
        "run": run.name,
        "hypervisor": "kvm",
        "accelerator": "tcg",
        "storage": "local",
        "image": "vhd",
        "error": None,
        "asked": [one["case"] for one in entries],
        "as_expected": all(one["verdict"] == one["expected"] for one in entries),
        "strategies": entries,
        **verdict,
    }
    (run / "verdict.json").write_text(json.dumps(content, indent=1) + "\n")
    (run / "config.json").write_text(json.dumps({**CONFIG, "repeats": seeds, **(config or {})}))
    return run


def _case(
    chance: random.Random,
    name: str,
    guard: bool,
    expected: str,
    margin: float | None,
    seed: int,
    odd: str | None,
) -> dict[str, Any]:
    verdict = odd or expected
    total = chance.lognormvariate(4.9, 0.3) if expected != "refused" else chance.uniform(15, 30)
    shares = (0.03, 0.005, 0.3, 0.02, 0.6)
    phases = [round(total * share * chance.uniform(0.5, 1.5), 3) for share in shares]
    case = entry(
        name,
        guard,
        expected,
        verdict,
        case=f"{name}-{'on' if guard else 'off'}-s{seed}",
        seed=seed,
        margin_ms=None if margin is None else round(margin * chance.lognormvariate(0, 0.25), 3),
        blackout_ms={"total": round(total, 3), **dict(zip(PHASES, phases, strict=True))},
    )
    for oracle in case["oracles"].values():
        oracle["findings"] = (oracle["findings"] * 2)[:85]
    return case
