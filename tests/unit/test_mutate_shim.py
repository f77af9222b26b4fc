"""The wrong shims of `make mutate-shim`: the patches fit the shim as it is now."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mutate_shim.mutants import MUTANTS, Mutant
from vhdtool.lab.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
CC = shutil.which("cc")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_a_change_of_the_source_that_compiles(mutant: Mutant) -> None:
    texts: dict[str, str] = {}
    for name, old, new in mutant.patches:
        text = texts.get(name) or (ROOT / "vhdtool" / name).read_text()
        assert text.count(old) == 1, name
        texts[name] = text.replace(old, new)
    for name, text in texts.items():
        if name.endswith(".py"):
            compile(text, name, "exec")
        elif CC is not None:
            command = [CC, "-fsyntax-only", "-x", "c", "-I", str((ROOT / "vhdtool" / name).parent)]
            subprocess.run([*command, "-"], input=text, text=True, check=True)
    assert set(mutant.cases) <= set(STRATEGIES)


def test_there_are_twenty_and_each_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
