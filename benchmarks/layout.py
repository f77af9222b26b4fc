"""Counts of a package's layout, as a Markdown table; docs/decisions/0007-layout.md has them.

python benchmarks/layout.py [PACKAGE]
"""

import ast
import sys
from pathlib import Path

SMALL = 55
"""Lines; a module below that is seldom an idea of its own."""


def code_lines(text: str, tree: ast.Module) -> int:
    """Lines that are no comment, no docstring and not blank."""
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(n not in prose and not line.strip().startswith("#") and bool(line.strip())
               for n, line in lines)  # fmt: skip


def calls(tree: ast.Module, *names: str) -> int:
    """Calls of builtins by name."""
    return sum(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
        for node in ast.walk(tree)
    )


def base_names(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]


def counts(package: Path) -> dict[str, int]:
    texts = {path: path.read_text() for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    modules = {path: n for path, n in lines.items() if not path.name.startswith("__")}
    classes = [node for tree in trees.values() for node in ast.walk(tree)
               if isinstance(node, ast.ClassDef)]  # fmt: skip
    ours = {node.name for node in classes}
    return {
        "modules": len(modules),
        f"modules of fewer than {SMALL} lines": sum(n < SMALL for n in modules.values()),
        "longest module, lines": max(modules.values()),
        "lines of Python": sum(lines.values()),
        "lines of code": sum(code_lines(texts[path], tree) for path, tree in trees.items()),
        "lines of C": sum(len(path.read_text().splitlines()) for path in package.rglob("*.[ch]")),
        "calls of getattr and hasattr": sum(
            calls(tree, "getattr", "hasattr") for tree in trees.values()
        ),
        "classes with more than one base of ours": sum(
            sum(name in ours for name in base_names(node)) > 1 for node in classes
        ),
        "constructions of a DynamicDisk": sum(
            calls(tree, "DynamicDisk") for tree in trees.values()
        ),
    }


def main() -> None:
    here = Path(__file__).resolve().parent.parent / "vhdtool"
    package = Path(sys.argv[1]) if len(sys.argv) > 1 else here
    print("| | |\n|---|---|")
    for name, count in counts(package).items():
        print(f"| {name} | {count:,} |")


if __name__ == "__main__":
    main()
