"""The history as JSON values, for `vhdtool history --json`."""

import statistics
from typing import Any

from vhdtool.report.history import compare
from vhdtool.report.history.compare import Comparison
from vhdtool.report.history.orders import Cell, Order, Outcome, series
from vhdtool.report.history.runs import PastRun, Runs


def history(runs: Runs) -> dict[str, Any]:
    """Every run, what was skipped, and the orders of each setting."""
    return {
        "schema": 1,
        "runs": [_run(run) for run in runs.runs],
        "skipped": [{"name": one.name, "reason": one.reason} for one in runs.skipped],
        "settings": [
            {
                **_setting(one.runs[-1] if one.runs[-1].cases else one.runs[0]),
                "runs": [run.name for run in one.runs],
                "orders": [_order(order) for order in one.orders],
            }
            for one in series(runs.runs)
        ],
    }


def comparison(compared: Comparison) -> dict[str, Any]:
    """Two runs: the options that differ, and each order in both."""
    return {
        "schema": 1,
        "before": _run(compared.before),
        "after": _run(compared.after),
        "options_unknown": list(compared.unknown),
        "options": [
            {"name": one.name, "before": one.before, "after": one.after} for one in compared.options
        ],
        "orders": [
            {
                "name": pair.name,
                "change": pair.kind,
                "before": _side(pair.before),
                "after": _side(pair.after),
                "blackout_ratio": pair.blackout_ratio,
            }
            for pair in compared.pairs
        ],
    }


def _setting(run: PastRun) -> dict[str, str]:
    setting = run.setting
    return {
        "hypervisor": setting.hypervisor,
        "accelerator": setting.accelerator,
        "storage": setting.storage,
        "image": setting.image,
    }


def _run(run: PastRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "at": run.at.isoformat(),
        "as_expected": run.as_expected,
        "error": run.error or None,
        "cases": len(run.cases),
        **_setting(run),
    }


def _order(order: Order) -> dict[str, Any]:
    low, high = order.bounds
    first, last = order.first_bad, order.last_good
    failing = order.tail[0] if order.cells[-1].unexpected else None
    return {
        "name": order.strategy,
        "guard": order.guard,
        "expected": order.expected,
        "runs": len(order.cells),
        "cases": len(order.cases),
        "another_verdict": order.number_of(Outcome.WRONG),
        "no_proof": order.number_of(Outcome.UNPROVED),
        "rate": order.unexpected / len(order.cases),
        "bounds_95": [low, high],
        "status": order.status.value,
        "sentence": order.sentence,
        "first_bad": first.run.name if first else None,
        "bad_since": failing.run.name if failing else None,
        "last_good": last.run.name if last else None,
        "cells": [{"run": cell.run.name, **(_side(cell) or {})} for cell in order.cells],
    }


def _side(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {
        "verdicts": dict(sorted(cell.verdicts.items())),
        "as_expected": not cell.unexpected,
        "lost": compare.lost_text(cell),
        "margin_ms": _spread(cell.values("margin_ms")),
        "blackout_ms": _spread(cell.values("blackout_ms")),
    }


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
