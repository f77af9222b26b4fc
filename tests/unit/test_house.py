"""The layout that a newcomer sees: maps that are true, short modules, imports without circles."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "vhdtool"
FOLDERS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
LONGEST = 350
MOST = 15
"""Entries of a folder: a dozen, and a few."""
LONG_FOLDERS = {"cli/commands": "one module a command"}


def short(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def entries(folder: Path) -> set[str]:
    """What the map of a folder names: `name` for a module, `name/` for a folder."""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return modules | {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}


@pytest.mark.parametrize("folder", FOLDERS, ids=short)
def test_the_map_of_a_folder_names_its_modules(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    rows = [line.split()[0] for line in text.splitlines()[1:] if line.strip()]
    named = {row for row in rows if row in entries(folder)}
    assert named == entries(folder)


@pytest.mark.parametrize("folder", FOLDERS, ids=short)
def test_a_folder_has_about_a_dozen_modules(folder: Path) -> None:
    if short(folder) not in LONG_FOLDERS:
        assert len(entries(folder)) <= MOST


@pytest.mark.parametrize("module", MODULES, ids=short)
def test_a_module_has_at_most_350_lines(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= LONGEST


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, also late and for types only."""
    files = {_name(path): path for path in PACKAGE.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name in files}
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = {f"{node.module}.{alias.name}" for alias in node.names} & set(files)
                found |= full or ({node.module} & set(files))
        graph[name] = found - {name}
    return graph


def test_no_two_modules_import_each_other() -> None:
    graph = imports()
    # The package itself gives names of its lowest modules, and they may ask for its version.
    graph.pop("vhdtool")
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
