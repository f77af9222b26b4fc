"""Figures of README.md and docs/strategies.md are those of the committed files that they name."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import verdicts
from benchmarks.soak import PLACES, collect, paragraph, replaced
from tests.support.synthetic_run import entry

ROOT = Path(__file__).resolve().parents[2]
TIMED = re.compile(r"\d ?(ms|MB|MB/s|MiB/s|IOPS)\b")


@pytest.mark.parametrize("image", PLACES)
def test_a_page_has_the_figures_of_the_file_it_names(image: str) -> None:
    source, name = PLACES[image]
    figures = json.loads((ROOT / source).read_text())
    page = (ROOT / name).read_text()
    assert replaced(page, source, paragraph(image, figures)) == page
    assert all(one["as_expected"] == one["runs"] for one in figures["strategies"])
    assert figures["command"].startswith(f"make soak N={figures['n']}")


@pytest.mark.parametrize(("source", "name"), verdicts.PLACES)
def test_a_page_has_the_verdicts_of_the_file_it_names(source: str, name: str) -> None:
    found = json.loads((ROOT / source).read_text())
    page = (ROOT / name).read_text()
    assert replaced(page, source, verdicts.PLACES[source, name](found)) == page
    assert all(case["verdict"] == case["expected"] for case in found["cases"])


def test_verdicts_of_a_run_that_went_wrong_are_refused(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text('{"as_expected": false}')
    with pytest.raises(SystemExit, match="is not as expected"):
        verdicts.summary(tmp_path, "make lab", "Xen")


def test_the_readme_has_no_measured_figure_outside_its_comments() -> None:
    readme = (ROOT / "README.md").read_text()
    outside = re.sub(r"<!-- figures: .*?<!-- end of figures -->", "", readme, flags=re.DOTALL)
    assert not TIMED.findall(outside)
    assert TIMED.findall(readme)


def test_figures_of_a_run_that_went_wrong_are_refused(tmp_path: Path) -> None:
    case = entry("activate", True, "consistent", "corrupt")
    verdict = {"as_expected": False, "image": "vhd", "strategies": [case, case]}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    with pytest.raises(SystemExit, match="is not as expected"):
        collect(tmp_path)
    single = {"as_expected": True, "image": "vhd", "strategies": [entry("a", True, "x", "x")]}
    (tmp_path / "verdict.json").write_text(json.dumps(single))
    with pytest.raises(SystemExit, match="is no soak"):
        collect(tmp_path)
