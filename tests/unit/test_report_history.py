"""`vhdtool history`: what it counts, what it calls flaky, what it skips, and its page."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.html_page import checked
from tests.support.run_history import Odd, make_run, make_runs, name_of
from vhdtool.cli.main import cli
from vhdtool.report.history.compare import compare, usual_pair
from vhdtool.report.history.orders import Order, rate_bounds, series
from vhdtool.report.history.runs import read_run, read_runs

ACTIVATE = (("activate", True, "consistent", 4.0),)


def history(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["history", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["history", *map(str, arguments)], standalone_mode=False)
    assert result.exception is not None
    return str(result.exception)


def activate(folder: Path, marks: str, seeds: int = 1) -> Order:
    """The order activate in runs like "..C": one is corrupt in the last seed where there is a C."""
    verdicts = {"C": "corrupt", "E": "error", "?": "inconclusive", ".": None}

    def odd(number: int, strategy: str, guard: bool, seed: int) -> str | None:
        return verdicts[marks[number]] if seed == seeds else None

    for number in range(len(marks)):
        make_run(folder, number, seeds, odd, orders=ACTIVATE)
    ((order,),) = ([*one.orders] for one in series(read_runs(folder).runs))
    return order


@pytest.mark.parametrize(
    ("marks", "status"),
    [
        ("." * 5, "steady"),
        ("..C", "failing"),  # its first bad run
        ("CCC", "failing"),
        (".C.CCC", "failing"),  # three in a row are no flake
        (".C.CC", "flaky"),
        (".C.", "flaky"),
        ("..E....", "flaky"),  # the lab's own failures count too
        ("CC...", "recovered"),
        ("C" + "." * 30, "steady"),  # the rule looks at the newest 30 runs
        ("C" + "." * 29, "recovered"),
    ],
)
def test_a_status_follows_the_stated_rule(tmp_path: Path, marks: str, status: str) -> None:
    assert activate(tmp_path, marks).status == status


def test_a_failing_order_names_what_a_bisection_needs(tmp_path: Path) -> None:
    order = activate(tmp_path, "..CC", seeds=3)
    assert order.sentence == (
        f"failing since {name_of(2)} (2 runs), last as expected in {name_of(1)}, seed 3 of 3 seeds"
    )
    assert (order.unexpected, len(order.cases)) == (2, 12)


def test_the_first_bad_run_is_named_however_old(tmp_path: Path) -> None:
    assert activate(tmp_path, "C" + "." * 40).sentence == f"steady; first bad in {name_of(0)}"


def test_the_first_bad_run_is_named_beside_the_last(tmp_path: Path) -> None:
    last = f"flaky: bad in 2 of 5 runs, last in {name_of(3)}"
    assert activate(tmp_path, ".C.C.").sentence == f"{last}; first bad in {name_of(1)}"


@pytest.mark.parametrize(
    ("failures", "runs", "low", "high"),
    [
        (0, 10, 0.0, 0.258866),
        (2, 20, 0.018065, 0.282619),  # R: binom.test(2, 20, conf.level = 0.9)
        (10, 10, 0.741134, 1.0),
        (3, 1000, 0.000818, 0.007735),
        (5000, 10000, 0.491724, 0.508276),  # its coefficients fit no float
    ],
)
def test_bounds_of_a_rate_are_exact(failures: int, runs: int, low: float, high: float) -> None:
    assert rate_bounds(failures, runs) == pytest.approx((low, high), abs=2e-5)


def test_folders_that_are_no_runs_are_named_and_skipped(tmp_path: Path) -> None:
    make_runs(tmp_path, 2)
    (tmp_path / "latest").symlink_to(name_of(1))
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "a file").write_text("x")
    for name, text in {
        "cut": '{"schema": 1, "strateg',
        "deep": "[" * 100_000,
        "list": "[]",
        "newer": '{"schema": 2, "strategies": []}',
        "\udcff": "{}",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "verdict.json").write_text(text)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "verdict.json")
    output = history(tmp_path)
    assert "2 runs, 2026-01-05 to 2026-01-06, 2 as expected" in output
    assert "skipped 7, which are no runs that can be read:" in output
    for line in (
        "notes: verdict.json: missing",
        "cut: verdict.json: not JSON (Unterminated string",
        "deep: verdict.json: not JSON",
        "list: verdict.json: not the verdict of a run",
        "newer: verdict.json: schema 2, this version reads 1",
        "pipe: verdict.json: not a regular file",
        "�: verdict.json: not the verdict of a run",
    ):
        assert f"  {line}" in output
    page = (tmp_path / "history.html").read_text()
    assert "Skipped: 7" in page
    assert len(json.loads(history(tmp_path, "--json"))["skipped"]) == 7


def test_a_directory_without_runs_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path}: no runs in this directory"
    run = make_run(tmp_path, 0)
    assert "it is a run itself: vhdtool report" in refused(run)
    assert "No such file or directory" in refused(tmp_path / "nowhere")
    assert not (tmp_path / "history.html").exists()


def test_runs_of_two_settings_are_not_counted_together(tmp_path: Path) -> None:
    for number in range(4):
        image = "qcow2" if number % 2 else "vhd"
        make_run(tmp_path, number, orders=ACTIVATE, image=image)
    # Its hosts were unreachable: it has no cases, and no setting of its own.
    lost: dict[str, Any] = {"hypervisor": None, "accelerator": None, "storage": None, "image": None}
    make_run(tmp_path, 4, orders=(), error="beta: unreachable", as_expected=False, **lost)
    found = json.loads(history(tmp_path, "--json"))
    assert [(one["image"], len(one["runs"])) for one in found["settings"]] == [
        ("qcow2", 3),
        ("vhd", 2),
    ]
    assert [one["orders"][0]["runs"] for one in found["settings"]] == [2, 2]
    assert found["runs"][-1]["error"] == "beta: unreachable"
    history(tmp_path)
    assert (tmp_path / "history.html").read_text().count("Δ") == 2, "in the two legends alone"


def test_a_diff_shows_options_verdicts_and_figures(tmp_path: Path) -> None:
    make_run(tmp_path, 0, orders=ACTIVATE)
    odd: Odd = lambda number, strategy, guard, seed: "corrupt"  # noqa: E731
    config = {"image_bytes": "256m", "block_bytes": 2 << 20, "pace_us": "1000", "own": 1}
    make_run(tmp_path, 1, odd=odd, orders=ACTIVATE, config=config, accelerator="kvm")
    (tmp_path / "latest").symlink_to(name_of(1))
    output = history(tmp_path, "--diff", name_of(0), "latest")
    assert output.endswith(f"page: {tmp_path}/history.html\n")
    changes = [line.split() for line in output.splitlines() if "->" in line]
    assert changes[:-1] == [
        ["accelerator", "tcg", "->", "kvm"],
        ["IMAGE_SIZE", "2g", "->", "256m"],
        ["PACE", "4000", "->", "1000"],
        ["own", "not", "recorded", "->", "1"],
    ]
    assert "worse: activate, guard on: consistent -> corrupt" in output
    assert "243 acknowledged writes cannot be read back" in output
    page = (tmp_path / "history.html").read_text()
    assert "IMAGE_SIZE" in page
    assert "worse" in page
    found = json.loads(history(tmp_path, "--json", "--diff", name_of(0), name_of(1)))
    assert found["options"][1] == {"name": "IMAGE_SIZE", "before": "2g", "after": "256m"}
    assert found["orders"][0]["change"] == "worse"


def test_a_kind_of_image_is_one_change(tmp_path: Path) -> None:
    for number, image in enumerate(("vhd", "qcow2")):
        make_run(tmp_path, number, config={"image": image}, image=image)
    compared = usual_pair(read_runs(tmp_path).runs)
    assert compared is not None
    assert [(one.name, one.after) for one in compared.options] == [("image", "qcow2")]


def test_the_page_compares_with_a_run_of_the_setting(tmp_path: Path) -> None:
    def odd(number: int, strategy: str, guard: bool, seed: int) -> str | None:
        return "error" if number in (1, 4) else None

    for number, image in enumerate(("vhd", "vhd", "qcow2", "qcow2", "vhd")):
        make_run(tmp_path, number, odd=odd, image=image)
    compared = usual_pair(read_runs(tmp_path).runs)
    assert compared is not None
    assert (compared.before.name, compared.after.name) == (name_of(0), name_of(4))


def test_commits_are_named_and_compared(tmp_path: Path) -> None:
    def odd(number: int, strategy: str, guard: bool, seed: int) -> str | None:
        return "corrupt" if number else None

    for number, commit in enumerate(("0a0a0a0a0a0a", "0b0b0b0b0b0b")):
        run = make_run(tmp_path, number, odd=odd, orders=ACTIVATE)
        (run / "software.json").write_text(json.dumps({"vhdtool": "1.0", "commit": commit}))
    output = history(tmp_path)
    assert f"failing since {name_of(1)} (commit 0b0b0b0b0b0b) (1 run), " in output
    assert f"last as expected in {name_of(0)} (commit 0a0a0a0a0a0a), seed 1" in output
    page = (tmp_path / "history.html").read_text()
    assert page.count("Δ") == 1, "in the legend alone: commits change each night"
    output = history(tmp_path, "--diff", name_of(0), name_of(1))
    assert "commit  0a0a0a0a0a0a  ->  0b0b0b0b0b0b" in output


def test_without_a_config_only_settings_are_compared(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    (runs[1] / "config.json").write_text("{")
    compared = compare(*map(read_run, runs))
    assert compared.unknown == (name_of(1),)
    assert compared.options == ()


def test_a_diff_without_a_directory_writes_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = make_runs(tmp_path / "runs", 2)
    monkeypatch.chdir(tmp_path)
    names = history("--diff", old.name, new.name)
    assert history("--diff", old, f"runs/{new.name}") == names
    assert "verdicts: 0 of 15 orders differ" in names
    assert json.loads(history("--diff", old, new, "--json"))["options"] == []
    assert not (tmp_path / "runs" / "history.html").exists()
    history("--diff", old, new, "--json", "-o", "page.html")
    assert "Two runs compared" in (tmp_path / "page.html").read_text()


def test_a_diff_of_what_is_no_run_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path, 0)
    (tmp_path / "notes").mkdir()
    assert refused(tmp_path, "--diff", name_of(0), "nope").startswith("nope: no such run")
    found = refused(tmp_path, "--diff", name_of(0), "notes")
    assert found == "notes: verdict.json: missing; give the directory of a run"


def test_the_page_loads_nothing_and_links_to_the_runs(tmp_path: Path) -> None:
    def odd(number: int, strategy: str, guard: bool, seed: int) -> str | None:
        return "corrupt" if strategy == "activate" and number == 70 else None

    runs = make_runs(tmp_path / "runs", 75, odd=odd)
    (runs[70] / "verdict.json").write_text(
        (runs[70] / "verdict.json").read_text().replace("31 BAT", "<script>alert(1)</script>")
    )
    (tmp_path / "pages").mkdir()
    page = tmp_path / "pages" / "h.html"
    history(tmp_path / "runs", "-o", page)
    checker = checked(page.read_text())
    assert not {tag for tag, _ in checker.seen} & {"script", "img", "link", "iframe", "object"}
    assert not any({"src", "style", "onclick"} & set(attrs) for _, attrs in checker.seen)
    links = {str(attrs["href"]) for tag, attrs in checker.seen if tag == "a"}
    outside = {link for link in links if not link.startswith("#")}
    report = f"../runs/{name_of(70)}/report.html"
    assert {report, f"{report}#case-activate-on-s1"} <= outside
    assert all(link.startswith("../runs/2026") for link in outside)


def test_two_given_orders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    orders = ("D.attach | S.deactivate D.activate | S.detach", "D.attach D.open | S.detach |")
    custom = (("custom", True, "consistent", 4.0),)
    runs = [
        make_run(tmp_path / "runs", night, config={"steps": steps}, orders=custom)
        for night, steps in enumerate((*orders, orders[0]))
    ]
    ((one, other),) = (one.orders for one in series(read_runs(tmp_path / "runs").runs))
    assert {one.strategy: len(one.cells), other.strategy: len(other.cells)} == {
        orders[0]: 2,
        orders[1]: 1,
    }
    shown = history(tmp_path / "runs", "-o", tmp_path / "h.html")
    page = (tmp_path / "h.html").read_text()
    assert all(order in shown and order in page for order in orders)
    pairs = compare(read_run(runs[0]), read_run(runs[1])).pairs
    assert {pair.kind for pair in pairs} == {"only before", "only after"}


def test_a_long_reason_is_cut_with_a_mark(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", 0, orders=ACTIVATE)
    verdict = json.loads((run / "verdict.json").read_text())
    verdict["strategies"][0] |= {"verdict": "corrupt", "why": "x" * 500}
    (run / "verdict.json").write_text(json.dumps(verdict))
    history(tmp_path / "runs", "-o", tmp_path / "h.html")
    assert "xxx..." in (tmp_path / "h.html").read_text()


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    make_run(tmp_path, 0)
    (tmp_path / "history.html").mkdir()
    assert "cannot be written" in refused(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [name_of(0), "history.html"]


def test_without_a_template_engine_all_but_the_page_works(tmp_path: Path) -> None:
    make_run(tmp_path, 0, orders=ACTIVATE)
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from vhdtool.cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))"
    )

    def called(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert called("history", str(tmp_path), "--json")[0] == 0
    status, output, error = called("history", str(tmp_path))
    assert "activate" in output
    needed = "vhdtool: history needs the Python package jinja2: pip install 'vhdtool[lab]'\n"
    assert (status, error) == (1, needed)
    assert called("report", str(tmp_path / name_of(0)))[0] == 1


def test_a_run_with_another_name_is_dated_by_an_event(tmp_path: Path) -> None:
    run = make_run(tmp_path, 3, orders=ACTIVATE)
    run = run.rename(tmp_path / "mine")
    (run / "activate-on-s1").mkdir()
    (run / "activate-on-s1" / "events.jsonl").write_text('{"seq": 1, "wall": 1800000000.0}\n')
    assert read_run(run).at.isoformat() == "2027-01-15T08:00:00+00:00"
