"""`make lab` from its first line to its last: end to end, interrupted, killed, twice at once."""

import importlib.machinery
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.lab_e2e.conftest import ROOT
from tests.support.footprint import networks_of, remains
from tests.support.run_history import make_runs
from vhdtool.errors import VhdtoolError
from vhdtool.lab.localhosts.control import LocalHosts
from vhdtool.report.lifecycle import UNFINISHED


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts scripts/lab with a state directory and a run directory of this test."""
    hosts = LocalHosts(tmp_path / "lab", print)
    started: list[subprocess.Popen[str]] = []

    def start(verb: str = "run", **options: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "VHDLAB_STATE": str(hosts.state.directory),
            "RUN_DIR": str(tmp_path / "run"),
            **options,
        }
        process = subprocess.Popen(
            [sys.executable, "scripts/lab", verb],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        with process:
            pass
    hosts.down(force=True)


def wait_for_line(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return
    pytest.fail(f"{words!r} never came:\n{''.join(seen)}")


def error_of(run: Path) -> str:
    """Why the run did not come to its end; junit.xml has to say the same."""
    error = json.loads((run / "verdict.json").read_text())["error"]
    assert f'message="{error}"' in (run / "junit.xml").read_text()
    return str(error)


def test_four_strategies_end_to_end_leave_nothing_behind(make_lab, tmp_path) -> None:
    lab = LocalHosts(tmp_path / "lab", print)
    old = make_runs(tmp_path, 3)
    done = make_lab(STRATEGY="activate,xcp,login,overlap", SEED="3", KEEP_RUNS="2")
    output, _ = done.communicate(timeout=240)
    assert done.returncode == 0, output
    assert "removed 2 old runs" in output
    assert [run.exists() for run in old] == [False, False, True]
    plays = [line for line in output.splitlines() if line.startswith("== ")]
    assert len(plays) == len(set(plays))
    assert output.splitlines()[-1] == (
        "The hosts stay up for the next run; `make clean-lab` ends them."
    )
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert {(c["name"], c["guard"], c["verdict"]) for c in verdict["strategies"]} == {
        ("activate", True, "consistent"),
        ("xcp", True, "consistent"),
        ("login", True, "consistent"),
        ("overlap", False, "corrupt"),
        ("overlap", True, "refused"),
    }
    held = json.loads((tmp_path / "run" / "xcp-on-s3" / "held" / "alpha-leg-1.json").read_text())
    assert [key.split(" (")[0] for key in held["held"]["keys"]] == ["beta: host_beta"]
    for name in ("activate-on-s3", "overlap-off-s3"):
        log = (tmp_path / "run" / name / "testinfra-live.log").read_text()
        assert " passed" in log, log
        assert " failed" not in log, log
    judge = [sys.executable, "-m", "vhdtool.cli.main", "judge", str(tmp_path / "run")]
    assert subprocess.run(judge, check=False, capture_output=True).returncode == 0

    networks = networks_of(lab)
    clean, _ = make_lab("clean").communicate(timeout=30)
    assert clean == "hosts stopped\n"
    assert remains(lab, networks) == []


def test_a_safe_and_an_unsafe_order_on_qcow2(make_lab, tmp_path) -> None:
    """Takes 20 s: it provisions hosts and migrates a guest twice."""
    done = make_lab(STRATEGY="activate,overlap", GUARD="off", IMAGE="qcow2", SEED="5")
    output, _ = done.communicate(timeout=240)
    assert done.returncode == 0, output
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    cases = {case["name"]: case for case in verdict["strategies"]}
    assert {name: case["verdict"] for name, case in cases.items()} == {
        "activate": "consistent",
        "overlap": "corrupt",
    }
    for case in cases.values():
        assert case["planted"]["caught"] == case["planted"]["faults"] > 8
    safe, lost = (cases[name]["oracles"] for name in ("activate", "overlap"))
    assert {one["result"] for one in safe.values()} == {"pass"}
    # Writes are gone, and qemu-img check finds nothing but leaks.
    assert (lost["content"]["result"], lost["metadata"]["result"]) == ("fail", "fail")
    assert lost["structure"]["result"] == "pass"
    reproduce = (tmp_path / "run" / "activate-off-s5" / "reproduce.txt").read_text()
    assert reproduce == "make lab STRATEGY=activate SEED=5 GUARD=off IMAGE=qcow2\n"


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_an_interrupted_lab_ends_its_hosts_and_keeps_its_logs(make_lab, tmp_path, how) -> None:
    lab = LocalHosts(tmp_path / "lab", print)
    running = make_lab(STRATEGY="activate")
    wait_for_line(running, "== Migrate")
    networks = networks_of(lab)
    time.sleep(1)  # Into the case, wherever it is then.
    if how == "Ctrl-C":
        os.killpg(running.pid, signal.SIGINT)
    else:
        running.terminate()
    output, _ = running.communicate(timeout=40)
    assert running.returncode == 130, output
    assert "The hosts were ended. Logs:" in output
    assert remains(lab, networks) == []
    assert (tmp_path / "run" / "ansible.log").exists()
    assert (tmp_path / "run" / "hosts.log").exists()
    # By the runner, which was in the middle of a case; who interrupts it first is a matter of luck.
    words = ("it was interrupted", "it was ended with exit code 143")
    assert error_of(tmp_path / "run") in words


def test_a_lab_with_a_closed_output_ends_its_hosts(make_lab, tmp_path) -> None:
    lab = LocalHosts(tmp_path / "lab", print)
    running = make_lab(STRATEGY="activate", KEEP="0")
    wait_for_line(running, "hosts started")
    networks = networks_of(lab)
    running.stdout.close()
    assert running.wait(40) == 130
    assert remains(lab, networks) == []
    assert error_of(tmp_path / "run") == "it was interrupted"


def test_two_labs_at_once_and_a_killed_one(make_lab, tmp_path) -> None:
    lab = LocalHosts(tmp_path / "lab", print)
    first = make_lab(STRATEGY="activate")
    wait_for_line(first, "== Migrate")
    networks = networks_of(lab)
    second = make_lab(STRATEGY="activate")
    output, _ = second.communicate(timeout=30)
    assert second.returncode == 1
    assert output.startswith(f"lab: another run (pid {first.pid}) is using the lab")
    assert len(output.splitlines()) == 1
    first.kill()
    first.wait()
    assert error_of(tmp_path / "run") == UNFINISHED
    clean, _ = make_lab("clean").communicate(timeout=30)
    assert clean == "hosts stopped\n"
    assert remains(lab, networks) == []


@pytest.fixture
def script() -> ModuleType:
    """scripts/lab as a module; it has no suffix, being a command."""
    loader = importlib.machinery.SourceFileLoader("lab_script", str(ROOT / "scripts" / "lab"))
    spec = importlib.util.spec_from_loader("lab_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_options_of_make_become_variables_of_the_playbook(script) -> None:
    given = script.variables({"STRATEGY": "activate", "SEED": "7", "REPEATS": ""})
    assert given["migration_strategies"] == "activate"
    assert given["migration_seed"] == "7"
    assert not {"migration_guard", "migration_repeats"} & set(given)
    off = script.variables({"STRATEGY": "overlap", "GUARD": "off"})
    assert off["migration_guard"] == "off"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"SEED": str(1 << 64)}, "SEED=18446744073709551616 is too large"),
        ({"STRATEGY": "activate,activate"}, "names activate twice"),
        ({"IMAGE_SIZE": "1m"}, "IMAGE_SIZE=1m is too small"),
        ({"BLOCK_SIZE": "3m"}, "BLOCK_SIZE=3m is no power of two"),
        ({"PACE": "100"}, "PACE=100 is too small"),
        ({"SHARED_SIZE": "much"}, "give a positive number"),
        ({"SHARED": "/no/such"}, "/no/such: is no directory; name one that the hosts share"),
        (
            {"MAKEFLAGS": "s -- STRATGY=activate"},
            "STRATGY=: no such option; did you mean STRATEGY?",
        ),
        ({"STRATEGIES": "activate"}, "STRATEGIES=: no such option; did you mean STRATEGY?"),
        ({"STRATEGY": "activte"}, "did you mean activate?"),
        ({"STEPS": "D.attach | S.deactivate | S.detach"}, "the destination is attached at RESUME"),
        ({"RUN_DIR": "/proc/run"}, "/proc/run: the record of the run cannot be made there"),
        ({"RUN_DIR": "/proc/run"}, "choose another directory by RUN_DIR="),
        ({"RUN_DIR": f"{ROOT}/Makefile"}, "choose another directory by RUN_DIR="),
        ({"KEEP": "yes"}, "KEEP=yes: is none of 0, 1"),
        ({"KEEP_RUNS": "-1"}, "KEEP_RUNS=-1: is not a number of runs"),
    ],
)
def test_a_wrong_word_is_one_line_and_leaves_nothing(make_lab, tmp_path, given, words) -> None:
    done = make_lab(**given)
    output, _ = done.communicate(timeout=30)
    assert done.returncode == 1
    assert output.startswith("lab: ")
    assert words in output
    assert len(output.splitlines()) == 1, output
    assert not (tmp_path / "run").exists()
    assert {path.name for path in (tmp_path / "lab").glob("*")} <= {"holder.json"}


def test_names_of_make_variables_are_found_beside_quotes(script) -> None:
    assert script.given_to_make(r"ks -- D= SEED=7 Q=x\ y=1 A=b\ C=d") == ["D", "SEED", "Q", "A"]
    assert script.given_to_make("s -- SÉED=7 SE-ED=1 a.b:=2 C::=3") == ["SÉED", "SE-ED", "a.b", "C"]
    assert script.given_to_make("k -j2") == []


def test_a_soak_refuses_repeats_which_it_counts_by_n(script) -> None:
    asked = script.variables({"N": "3", "MAKEFLAGS": "s -- N=3"}, soak=True)
    assert asked["migration_repeats"] == "3"
    with pytest.raises(script.UsageError, match=r"REPEATS=: no such option; .*there are .* N,"):
        script.variables({"REPEATS": "3", "MAKEFLAGS": "s -- REPEATS=3"}, soak=True)
    with pytest.raises(script.UsageError, match=r"^N=x is not a whole number"):
        script.variables({"N": "x", "MAKEFLAGS": "s -- N=x"}, soak=True)


def test_the_lab_has_an_environment_of_its_own(script, monkeypatch) -> None:
    for name, value in {
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "xx_YY",
        "PYTHONHOME": "/nowhere",
        "ANSIBLE_STDOUT_CALLBACK": "no.such",
        "HOME": "/nowhere",
        "XDG_CACHE_HOME": "relative",
        "TMPDIR": "/nowhere",
        "PYTEST_ADDOPTS": "--no-such",
    }.items():
        monkeypatch.setenv(name, value)
    found = script.environment()
    assert found["LC_ALL"] == "C.UTF-8"
    assert Path(found["HOME"]).is_dir()
    gone = {"LANG", "PYTHONHOME", "ANSIBLE_STDOUT_CALLBACK", "XDG_CACHE_HOME", "TMPDIR"}
    assert not (gone | {"PYTEST_ADDOPTS"}) & set(found)
    monkeypatch.delenv("HOME")
    assert Path(script.environment()["HOME"]).is_dir()


def test_a_normal_user_is_told_that_root_is_needed(script, monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(VhdtoolError, match="needs root"):
        script.run(soak=False)
