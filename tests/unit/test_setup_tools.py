"""The tools behind the make targets refuse what would prove nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("module", "words", "told"),
    [
        ("tests.interop.shim_chaos", ["--kills", "0"], "'0' is no whole number from 1 on"),
        ("tests.fuzz.fuzz_vhd", ["--cases", "-5"], "'-5' is no whole number from 1 on"),
        ("tests.mutate_shim", ["--seeds", "0"], "'0' is no whole number from 1 on"),
        ("tests.tamper", ["--sample", "x"], "'x' is no whole number from 1 on"),
        ("tests.tamper", ["/no/such"], "/no/such: neither a case nor a run with cases"),
        ("tests.mutate", ["/no/such"], "/no/such: neither a case nor a run with cases"),
    ],
)
def test_no_cases_are_refused(module: str, words: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
