"""A sample of what `make mutate` does: careless edits of the oracles, seen by planted faults alone.

MUTATE_SEED chooses another sample of mutants. Takes about 15 s: each judges real records.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutate.__main__ import EQUIVALENT, HERE, ROOT, all_mutants, records, try_one
from tests.mutate.syntax_mutants import mutants_of, sample
from tests.unit.test_oracle_records import unpack

SEED = int(os.environ.get("MUTATE_SEED", "1"))
EDITS = {
    "the last sector of the disk may read as zeros": (
        "checks.content", "for sector, n in missing.items()",
        "for sector, n in sorted(missing.items())[:-1]",
    ),
    "equal pids on two hosts are one process": (
        "evidence.events", 'f"{self.host}:{self.pid}"', 'f"{self.pid}"',
    ),
    "a block that moves by fewer than 8 sectors has not moved": (
        "checks.growth", "if now == sector:", "if now is not None and abs(now - sector) < 8:",
    ),
    "a batmap that overstates is harmless": (
        "checks.structure", '"leaked-tail", ', '"leaked-tail", "batmap-overstates", ',
    ),
    "the last leg is not checked": (
        "checks.activation", "for leg in legs:\n        if leg.moved",
        "for leg in legs[:-1]:\n        if leg.moved",
    ),
    "one bit may go": ("checks.growth", "if not lost:", "if lost & (lost - 1) == 0:"),
    "seven writes are enough": (
        "coverage", "coverage.acked_after < MINIMUM", "coverage.acked_after < MINIMUM - 1",
    ),
    "a refcount of zero is one": (
        "readers.qcow2", "counted = refcounts.of(offset)\n        what",
        "counted = 1\n        what",
    ),
}  # fmt: skip
"""Edits that were made by hand once: module of the oracles, text before, text after."""


@pytest.mark.parametrize("name", list(EDITS))
def test_planted_faults_alone_see_a_careless_edit(name: str, tmp_path: Path) -> None:
    module, before, after = EDITS[name]
    path = ROOT / "vhdtool" / "oracle" / f"{module.replace('.', '/')}.py"
    text = path.read_text()
    assert text.count(before) == 1
    edited = tmp_path / "edited.py"
    edited.write_text(text.replace(before, after))
    record = {"checks.structure": "login-on", "readers.qcow2": "qcow2-hold-on"}.get(
        module, "reopen-on"
    )
    done = subprocess.run(
        [sys.executable, str(HERE / "mutated.py"), f"vhdtool.oracle.{module}", str(edited),
         "judge", f"{unpack(record, tmp_path)}=consistent"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith('["planted"'), done.stdout


def test_planted_faults_see_most_of_a_sample_of_mutants(tmp_path: Path) -> None:
    known = records([], tmp_path)
    chosen = sample(all_mutants(), 8, SEED)
    results = [try_one(mutant, known, tmp_path, tests=False) for mutant in chosen]
    missed = [f"{one.mutant.module}: {one.mutant.name}" for one in results if one.by == "survived"]
    assert len(missed) <= len(chosen) // 2, f"MUTATE_SEED={SEED}: {missed}"


def test_there_are_mutants_enough_and_each_has_a_name_of_its_own() -> None:
    mutants = all_mutants()
    assert len({(one.module, one.name) for one in mutants}) == len(mutants) >= 1000


def test_each_equivalent_mutant_exists_and_says_why() -> None:
    known = {(one.module, one.name) for one in all_mutants()}
    for module, reasons in EQUIVALENT.items():
        for name, why in reasons.items():
            assert (module, name) in known, f"{module}: {name}: no such mutant any more"
            assert len(why) > 20


def test_a_mutant_differs_from_its_module_in_one_place(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("def f(a, b):\n    if a < b and not a:\n        return any([a, 3])\n")
    sources = {mutant.kind: mutant.source() for mutant in mutants_of(path, "m")}
    assert "a <= b" in sources["comparison"]
    assert "if False:" in sources["check skipped"]
    assert "a < b and a:" in sources["not gone"]
    assert "all([a, 3])" in sources["any/all"]
    assert "any([a, 2])" in sources["bound"]
