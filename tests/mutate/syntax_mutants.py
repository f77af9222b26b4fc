"""Mutants of a Python module: one small change of its syntax tree each, as a careless edit makes.

The list is the same on every machine: modules by name, changes in the order of the source. A
mutant's name has the function and the changed text, but no line number, so that it stays the same
when code above it changes.
"""

import ast
import copy
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_WEAKER: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OTHER_CALL = {"any": "all", "all": "any", "min": "max", "max": "min"}
_MESSAGES = ("text", "detail", "what", "where", "until", "reason", "why", "near", "since")
"""Names of variables that hold parts of messages."""
_WIDTH = 90


@dataclass(frozen=True)
class Mutant:
    """Change `number` of those that are possible in the module at `path`."""

    path: Path
    module: str
    kind: str
    name: str
    number: int

    def source(self) -> str:
        """The whole module with this one change in it."""
        tree = ast.parse(self.path.read_text())
        _change(tree, self.number)
        return ast.unparse(ast.fix_missing_locations(tree))


def mutants_of(path: Path, module: str) -> list[Mutant]:
    """Every mutant of a module; their names differ."""
    found: list[Mutant] = []
    seen: dict[str, int] = defaultdict(int)
    sites = _sites(ast.parse(path.read_text()))
    for number, (kind, function, was, now, _) in enumerate(sites):
        name = f"{function}: {kind}: {was[:_WIDTH]} -> {now[:_WIDTH]}"
        seen[name] += 1
        name += f" ({seen[name]})" if seen[name] > 1 else ""
        found.append(Mutant(path, module, kind, name, number))
    return found


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """`count` of them, from all modules and kinds in turn, so that no large module prevails."""
    rng = random.Random(seed)
    piles: dict[tuple[str, str], list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        piles[mutant.module, mutant.kind].append(mutant)
    for pile in piles.values():
        rng.shuffle(pile)
    order = list(piles)
    rng.shuffle(order)
    chosen: list[Mutant] = []
    while len(chosen) < min(count, len(mutants)):
        for key in order:
            if piles[key] and len(chosen) < count:
                chosen.append(piles[key].pop())
    return chosen


_Site = tuple[str, str, str, str, tuple[ast.AST, str, int | None, object]]
"""(kind, function, text before, text after, (parent, field, index, new node))."""


def _change(tree: ast.Module, number: int) -> None:
    for n, (*_, (parent, name, index, new)) in enumerate(_sites(tree)):
        if n == number:
            if index is None:
                setattr(parent, name, new)
            else:
                getattr(parent, name)[index : index + 1] = [] if new is None else [new]
            return


def _sites(tree: ast.Module) -> Iterator[_Site]:
    yield from _walk(tree, "module")


def _walk(node: ast.AST, function: str) -> Iterator[_Site]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        function = node.name if function == "module" else f"{function}.{node.name}"
    for name, value in ast.iter_fields(node):
        if _is_text(node, name):
            continue
        children = value if isinstance(value, list) else [value]
        for place, child in enumerate(children):
            if not isinstance(child, ast.AST):
                continue
            index = place if isinstance(value, list) else None
            for kind, new in _changes(node, name, child, function):
                yield kind, function, _source(child), _source(new), (node, name, index, new)
            yield from _walk(child, function)


def _is_text(node: ast.AST, name: str) -> bool:
    """Annotations, decorators and messages: a change there changes no verdict."""
    if isinstance(node, ast.JoinedStr):
        return True
    if isinstance(node, ast.Assign | ast.AugAssign):
        target = node.target if isinstance(node, ast.AugAssign) else node.targets[0]
        if isinstance(target, ast.Name) and target.id in _MESSAGES:
            return True
    return name in ("annotation", "returns", "decorator_list", "type_params", "bases", "msg")


def _source(node: object) -> str:
    return " ".join(ast.unparse(node).split()) if isinstance(node, ast.AST) else "nothing"


def _changes(
    parent: ast.AST, name: str, node: ast.AST, where: str
) -> Iterator[tuple[str, ast.AST | None]]:
    yield from _logic(node)
    if isinstance(node, ast.Call):
        yield from _calls(node)
    yield from _statements(node)
    if where != "module":
        yield from _constants(parent, name, node)
    yield from _fields(node)


def _logic(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        weaker = _WEAKER[type(node.ops[0])]()
        yield "comparison", ast.Compare(node.left, [weaker], node.comparators)
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield "filter gone", ast.comprehension(node.target, node.iter, node.ifs[1:], node.is_async)
    elif isinstance(node, ast.BoolOp):
        for place in range(len(node.values)):
            rest = [value for n, value in enumerate(node.values) if n != place]
            yield "term gone", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        other = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield "and/or", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not gone", node.operand


def _calls(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    """`all` for `any`, and findings of severity `info`."""
    called = node.func.id if isinstance(node.func, ast.Name) else ""
    if called in _OTHER_CALL:
        yield "any/all", ast.Call(ast.Name(_OTHER_CALL[called]), node.args, node.keywords)
    elif called == "doubt":
        words = [*node.args, ast.Constant("info")]
        yield "severity", ast.Call(ast.Name("Finding"), words, node.keywords)
    elif called == "Finding" and not (len(node.args) > 2 or _has(node, "severity")):
        info = ast.keyword("severity", ast.Constant("info"))
        yield "severity", ast.Call(node.func, node.args, [*node.keywords, info])


def _has(node: ast.Call, keyword: str) -> bool:
    return any(word.arg == keyword for word in node.keywords)


def _statements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.If):
        changed = copy.copy(node)
        changed.test = ast.Constant(False)
        yield "check skipped", changed
    elif isinstance(node, ast.For):
        shorter = copy.copy(node)
        but_one = ast.Slice(None, ast.UnaryOp(ast.USub(), ast.Constant(1)))
        shorter.iter = ast.Subscript(ast.Call(ast.Name("list"), [node.iter], []), but_one)
        yield "last ignored", shorter
    elif isinstance(node, ast.AugAssign):
        if not (isinstance(node.target, ast.Name) and node.target.id in _MESSAGES):
            yield "statement gone", ast.Pass()
    elif isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
        yield "statement gone", ast.Pass()


def _constants(parent: ast.AST, name: str, node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Bounds moved by one, and severities."""
    if not isinstance(node, ast.Constant):
        return
    if type(node.value) is int and not (name == "slice" and node.value < 0):
        yield "bound", ast.Constant(node.value + 1)
        if node.value > 0:
            yield "bound", ast.Constant(node.value - 1)
    elif node.value in ("doubt", "corrupt") and not isinstance(parent, ast.Dict):
        yield "severity", ast.Constant("info")


def _fields(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """One string fewer in a tuple or set of strings: a field that is not compared."""
    if not isinstance(node, ast.Tuple | ast.Set) or len(node.elts) < 2:
        return
    if all(isinstance(e, ast.Constant) and isinstance(e.value, str) for e in node.elts):
        for place in range(len(node.elts)):
            rest = [e for n, e in enumerate(node.elts) if n != place]
            shorter = ast.Set(rest) if isinstance(node, ast.Set) else ast.Tuple(rest, ast.Load())
            yield "field gone", shorter
