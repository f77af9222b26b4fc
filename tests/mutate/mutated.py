"""Runs in a process of its own, with one module of the package imported from a mutated source.

mutated.py MODULE SOURCE judge CASE=VERDICT ...     prints JSON: what the records show
mutated.py MODULE SOURCE pytest ARGUMENT ...        exits with pytest's code
"""

import importlib.abc
import importlib.machinery
import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parents[2]


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec")


class Finder(importlib.abc.MetaPathFinder):
    """Finds `module` with another source; leaves all other modules to the usual finders."""

    def __init__(self, module: str, source: str) -> None:
        self.module, self.source = module, source

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.module:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(name, spec.origin, self.source)
        return spec


def judge(cases: Sequence[str]) -> int:
    """Prints [kind, record, why] of the first record that shows the mutant; null if none does."""
    from vhdtool.oracle.verdict import judge_case

    for case in cases:
        path, _, expected = case.rpartition("=")
        entry = judge_case(Path(path))
        planted = entry["planted"]
        missed = planted["faults"] - planted["caught"]
        if missed or "planted" in entry["why"]:
            print(json.dumps(["planted", Path(path).name, entry["why"]]))
            return 0
        if entry["verdict"] != expected:
            print(json.dumps(["verdict", Path(path).name, entry["why"]]))
            return 0
    print("null")
    return 0


def main() -> int:
    module, source, what, *rest = sys.argv[1:]
    sys.path[:0] = [str(ROOT)]
    sys.meta_path.insert(0, Finder(module, Path(source).read_text()))
    if what == "judge":
        return judge(rest)
    import pytest

    return int(pytest.main(rest))


if __name__ == "__main__":
    sys.exit(main())
