"""docs/api.md and docs/concurrency.md: every example runs, and every public name has one."""

import doctest
import re
from pathlib import Path

import pytest

import vhdtool

DOCS = Path(__file__).resolve().parents[2] / "docs"
FLAGS = doctest.IGNORE_EXCEPTION_DETAIL | doctest.NORMALIZE_WHITESPACE
CODE = re.compile(r"```(?:pycon|python)\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", ["api.md", "concurrency.md"])
def test_the_examples_of_a_page_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(DOCS / page), module_relative=False, optionflags=FLAGS)
    assert result.attempted > 10
    assert result.failed == 0


def examples() -> str:
    return "\n".join(CODE.findall((DOCS / "api.md").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", [name for name in vhdtool.__all__ if name != "__version__"])
def test_a_public_name_has_an_example(name: str) -> None:
    assert re.search(rf"\bvhdtool\.(\w+\.)?{name}\b", examples())


def documented(kind: type) -> set[str]:
    """The public members that the reference shows."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    options = rf"^::: \S+\.{kind.__name__}\n    options:\n      members: \[(.*?)\]"
    chosen = re.search(options, page, re.MULTILINE)
    if chosen is not None:
        return set(chosen[1].split(", "))
    return {name for name in vars(kind) if not name.startswith("_")}


VARIABLES = {
    vhdtool.Image: "image",
    vhdtool.Salvage: "broken",
    vhdtool.Repair: "(done|plan)",
    vhdtool.ChainReport: "report",
}


@pytest.mark.parametrize("kind", VARIABLES, ids=lambda kind: kind.__name__)
def test_a_public_member_has_an_example(kind: type) -> None:
    shown = documented(kind)
    assert len(shown) > 2
    missing = [
        name for name in shown if not re.search(rf"\b{VARIABLES[kind]}\.{name}\b", examples())
    ]
    assert missing == []


def test_the_reference_names_every_public_object() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    members = set(re.findall(r"[\w]+", " ".join(re.findall(r"members: \[(.*?)\]", page))))
    members |= {line.rsplit(".", 1)[1] for line in re.findall(r"^::: (\S+)", page, re.MULTILINE)}
    table = set(re.findall(r"`(\w+)`", page))
    assert set(vhdtool.__all__) - {"__version__"} <= members | table
