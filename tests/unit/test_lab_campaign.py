"""The lab's configuration, its cases, and the file formats that it writes by itself."""

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from vhdtool.cli import main as cli
from vhdtool.errors import ActivationRefused, LabError, UsageError
from vhdtool.lab import campaign as lab
from vhdtool.lab.case.record import Record
from vhdtool.lab.config import LabConfig
from vhdtool.lab.custom import custom_strategy
from vhdtool.lab.guest import build
from vhdtool.lab.hosts import bundle
from vhdtool.lab.hosts.shim import REFUSALS
from vhdtool.lab.live_checks.run import failed_checks
from vhdtool.lab.log import Place
from vhdtool.lab.options import RunOptions
from vhdtool.lab.strategies import STRATEGIES
from vhdtool.storage.image_lock import ImageInUse, NoLocks

ORDER = "D.attach | S.deactivate D.activate | S.detach"
HOST = {
    "ssh": "h",
    "address": "198.18.0.11",
    "python": "python3",
    "lib": "/l",
    "private_dir": "/p",
    "cache_dir": "/c",
}


def config(tmp_path: Path, **changes: Any) -> Path:
    value: dict[str, Any] = {
        "run_dir": str(tmp_path / "run"),
        "hosts": [{"name": "alpha", **HOST}, {"name": "beta", **HOST}],
        "shared_dir": "/srv",
        "guest": {"kernel": "/k", "initrd": "/i"},
        **changes,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(value))
    return path


def test_by_default_unsafe_orders_run_with_the_guard_off_and_on(tmp_path: Path) -> None:
    cases = [(s.name, guard) for s, guard in LabConfig.load(config(tmp_path)).cases()]
    assert len(cases) == 16
    assert ("overlap", False) in cases
    assert ("overlap", True) in cases
    assert ("activate", False) not in cases


def test_orders_that_cannot_run_on_qcow2_are_left_out_of_all(tmp_path: Path) -> None:
    chosen = LabConfig.load(config(tmp_path, image="qcow2"))
    cases = chosen.cases()
    assert "implicit" not in {strategy.name for strategy, _ in cases}
    assert len(cases) == 14
    assert [line.split(":")[0] for line in chosen.left_out()] == ["implicit", "login"]
    assert LabConfig.load(config(tmp_path)).left_out() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "vmdk"}, "image: vmdk is none of vhd, qcow2"),
        ({"image": "qcow2", "strategies": ["implicit"]}, "implicit: does not run on qcow2"),
        ({"strategies": ["overlep"]}, "'overlep' does not exist; did you mean overlap? there are"),
        ({"strategies": ["activate"], "steps": ORDER}, "steps: are an order of their own"),
        ({"expect": "refused"}, "expect: refused is for an order that is given by its steps"),
        ({"steps": ORDER, "expect": "corrupt", "guard": "on"}, "expect: corrupt with the guard on"),
        ({"steps": 5}, "steps: 5 is no order of steps"),
        ({"seed": -1}, "seed: -1 is too small"),
        ({"seed": 1 << 64}, "seed: 18446744073709551616 is too large"),
        ({"seed": (1 << 64) - 1, "repeats": 2}, "2 repeats count up from"),
        ({"seed": True}, "seed: True is not a whole number"),
        ({"seed": "1\n2"}, "seed: '1\\n2' is not a whole number"),
        ({"seed": "9" * 5000}, "9... is not a whole number"),
        ({"strategies": "\nx"}, "strategies: '\\nx': strategy 'x' does not exist"),
        ({"strategies": None}, "strategies: None is no list of strategies"),
        ({"strategies": 5}, "strategies: 5 is no list of strategies"),
        ({"image_bytes": -5}, "image_bytes: -5 is not a size"),
        ({"image_bytes": 1 << 20}, "image_bytes: 1048576 is too small, the least is 64m"),
        ({"image_bytes": (1 << 30) + 1}, "no whole number of 512-byte sectors"),
        ({"image_bytes": 2041 << 30}, "too large, the most is 2040g"),
        ({"block_bytes": 1024}, "too small, the least is 512k"),
        ({"block_bytes": 3 << 20}, "no power of two"),
        (
            {"block_bytes": 4 << 20, "image_bytes": 1 << 30},
            "256 blocks of 4194304 bytes are all in use",
        ),
        ({"pace_us": 100}, "pace_us: 100 is too small"),
        ({"pace_us": 10**6}, "pace_us: 1000000 is too large"),
        ({"strategies": ["activate", "activate"]}, "names activate twice"),
        ({"strategies": ["all", "activate"]}, "has all beside other names"),
        ({"strategies": []}, "names no strategy"),
        ({"migration_port": 80}, "migration_port: 80 is too small"),
        ({"hosts": [{"name": "kvm 1", **HOST}, {"name": "b", **HOST}]}, "host 'kvm 1'"),
        ({"hosts": [{"name": "b", **HOST}] * 2}, "host b: named twice"),
        ({"repeats": 0}, "repeats: 0"),
        ({"guard": "maybe"}, "guard: maybe is none of"),
        ({"hypervisor": "vmware"}, "hypervisor: vmware is none of"),
        ({"profile": "wild"}, "profile: wild is none of"),
        ({"hosts": [{"name": "alpha", **HOST}]}, "two hosts, not 1"),
        ({"colour": "red"}, "bad configuration"),
        ({"guest": {}}, "bad configuration"),
    ],
)
def test_bad_values_are_one_line_before_anything_is_touched(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        LabConfig.load(config(tmp_path, **changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_may_be_words(tmp_path: Path) -> None:
    loaded = LabConfig.load(config(tmp_path, image_bytes="1g", block_bytes="512K"))
    assert (loaded.image_bytes, loaded.block_bytes) == (1 << 30, 512 << 10)


def test_an_option_is_named_as_the_user_gave_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UsageError, match=r"^SEED=x is not a whole number$"):
        RunOptions.of_make({"SEED": "x", "PATH": "/bin"})
    with pytest.raises(UsageError, match=r"^STRATEGY=activte: strategy 'activte' .* activate\? "):
        RunOptions.of_make({"STRATEGY": "activte"})
    assert RunOptions.of_make({"SEED": ""}) == RunOptions()
    # YAML reads on and off as booleans.
    assert RunOptions.of_playbook({"migration_guard": False}).guard == "off"
    assert cli.run(["lab", "validate", '{"migration_seed": 7}']) == 0
    for words in ('{"migration_seed": -1}', '{"migration_sead": 1}', "[]", "{", "[" * 99_999):
        assert cli.run(["lab", "validate", words]) == 125
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "vhdtool: migration_seed: -1 is too small, the least is 0"
    assert len(lines) == 5


def test_wrong_usage_of_lab_exits_with_125(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, strategies=["nope"])
    assert cli.run(["lab", "run", "--config", str(path)]) == 125
    assert cli.run(["lab", "run", "--config", str(tmp_path / "none.json")]) == 125
    assert "Traceback" not in capfd.readouterr().err


def test_strategies_are_listed_with_their_steps() -> None:
    result = CliRunner().invoke(cli.cli, ["lab", "strategies"])
    assert "D.attach · SUSPENDED · S.deactivate D.activate · RESUME · S.detach" in result.output
    assert "D.attach D.open · SUSPENDED · nothing · RESUME · S.deactivate S.detach" in result.output


def test_the_bundle_is_deterministic_and_needs_no_packages(tmp_path: Path) -> None:
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    assert bundle.write(first)
    assert not bundle.write(first)
    bundle.write(second)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        archive.extractall(tmp_path / "lib")
    modules = "vhdtool.tapdisk.__main__, vhdtool.lab.hosts.agent, vhdtool.image.metadata.dump"
    done = subprocess.run(
        # -S leaves site-packages out: what hosts lack must not be needed.
        [sys.executable, "-S", "-c", f"import {modules}"],
        env={"PYTHONPATH": str(tmp_path / "lib")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_initramfs_is_a_newc_archive_that_cpio_would_read() -> None:
    data = build.cpio([("dir", 0o040755, b""), ("dir/file", 0o100755, b"hello")])
    assert data.startswith(b"070701")
    assert len(data) % 4 == 0
    assert b"dir/file\0" in data
    assert b"hello" in data
    assert b"TRAILER!!!\0" in data
    assert gzip.decompress(build.gzip_fast(data)) == data


def test_the_initramfs_has_the_load_on_its_python_path() -> None:
    entries = {name: data for name, _, data in build.tree({"modules/virtio.ko": b"x"})}
    assert b"insmod" in entries["init"]
    assert b'modules="virtio"' in entries["init"]
    assert b"class Schedule" in entries["usr/lib/python3.11/schedule.py"]
    assert "usr/lib/python3.11" in entries


@pytest.mark.parametrize(
    ("told", "runs"),
    [("CorruptImage", 1), ("VhdtoolError", 1), ("StorageError", 2), ("fenced", 1)],
)
def test_a_case_with_an_unusable_image_is_not_repeated(
    told: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second try might be lucky, and the verdict consistent."""
    told_to: list[str] = []

    class Unlucky:
        def __init__(self, _: object, record: Record, *__: object) -> None:
            self.record = record

        def run(self) -> None:
            if told == "fenced":
                self.record.note("fenced", "alpha", reason="another host has written")
            self.record.close()
            raise REFUSALS.get(told, LabError)("beta: activate: no VHD")

    monkeypatch.setattr(lab, "CaseRun", Unlucky)
    loaded = LabConfig.load(config(tmp_path))
    plan: Any = SimpleNamespace(
        strategy=STRATEGIES["activate"],
        guard=True,
        seed=1,
        name="activate-on-s1",
        image_bytes=512,
        block_bytes=512,
        deep_blocks=0,
        frees=True,
        profile="paced",
        pace_us=1,
        kind="vhd",
        describe=dict,
    )
    hosts: Any = [SimpleNamespace(name="alpha"), SimpleNamespace(name="beta")]
    driver: Any = SimpleNamespace(accelerator="tcg")
    run = lab.Lab(loaded, lambda path: {}, told_to.append, driver)
    run.run_case(plan, hosts, Place(3, 15, "activate on s1"))
    errors = [line[9:] for line in told_to if "lab error" in line]
    assert errors == ["[3/15] activate on s1 lab error: beta: activate: no VHD"] * runs
    case = json.loads((loaded.run_dir / "activate-on-s1" / "case.json").read_text())
    assert case["error"]["what"] == "beta: activate: no VHD"
    assert case["attempts"] == runs


def test_a_given_order_that_is_refused_needs_no_later_points() -> None:
    cancelled = [{"event": "cancelled"}]
    record: Any = SimpleNamespace(count=lambda wanted: sum(map(wanted, cancelled)))
    given: Any = SimpleNamespace(strategy=custom_strategy(ORDER, "consistent"))
    assert lab.refused_points(given, record) == {"points": {"1": ["all-closed"]}}
    strategy: Any = SimpleNamespace(strategy=STRATEGIES["activate"])
    assert lab.refused_points(strategy, record) == {}
    cancelled.clear()
    assert lab.refused_points(given, record) == {}


def test_an_image_in_use_refuses_the_hand_over() -> None:
    """A shim tells the name of its error, and not of what that derives from."""
    assert REFUSALS[ImageInUse.__name__] is ActivationRefused
    assert NoLocks.__name__ not in REFUSALS


def test_the_judging_process_ends_with_its_controller() -> None:
    """It holds the controller's output, and the playbook would wait for the end of that."""
    code = (
        "import os, time; from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context; from vhdtool.lab.campaign import end_with\n"
        "pool = ProcessPoolExecutor(1, get_context('fork'), end_with, (os.getpid(),))\n"
        "print(pool.submit(os.getpid).result(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as controller:
        assert controller.stdout is not None
        assert int(controller.stdout.readline()) != controller.pid
        controller.kill()
        assert controller.stdout.read() == b""


def test_a_failed_look_names_its_checks_in_words() -> None:
    output = "F.\nFAILED lab/test_live.py::test_one_host_is_active[ssh://alpha] - assert\n1 failed"
    assert failed_checks(output) == "not true that one host is active"
    assert failed_checks("collected 0 items\n\nno tests ran in 0.1s\n") == "no tests ran in 0.1s"
