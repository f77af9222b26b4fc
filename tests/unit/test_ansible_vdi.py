"""The module vdi: it changes what has to change, and foretells it in check mode."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.shims import owner
from tests.unit.test_ansible_collection import plugin
from vhdtool.errors import ActivationRefused
from vhdtool.image.create.empty import create_dynamic
from vhdtool.vdi.keys import key_file
from vhdtool.vdi.operations import Vdi

MODULE = plugin("modules", "vdi")


@pytest.fixture
def given(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The module's parameters; the shim that a test starts ends with it."""
    create_dynamic(tmp_path / "disk.vhd", 64 << 20)
    with tempfile.TemporaryDirectory(prefix="vdi") as run_dir:
        image = str(tmp_path / "disk.vhd")
        common = {"read_only": False, "force": None, "wait": 20.0, "run_dir": run_dir}
        yield {"image": image, "host": "alpha", **common}
        vdi = Vdi(image, "alpha", Path(run_dir))
        vdi.deactivate()
        vdi.detach()


def run(given: dict[str, Any], operation: str, check_mode: bool = False, **more: Any) -> Any:
    return MODULE.run({**given, "operation": operation, **more}, check_mode)


def test_each_operation_changes_something_once(given: dict[str, Any]) -> None:
    states = ("attached", "active", "attached", "detached")
    before = "detached"
    for operation, state in zip(
        ("attach", "activate", "deactivate", "detach"), states, strict=True
    ):
        foretold = run(given, operation, check_mode=True)
        assert (foretold["changed"], foretold["status"]["state"]) == (True, before)
        done = run(given, operation)
        assert (done["changed"], done["status"]["state"]) == (True, state)
        assert run(given, operation)["changed"] is False
        before = state


def test_a_host_that_may_live_is_refused_and_cleared_by_force(given: dict[str, Any]) -> None:
    with key_file(given["image"]) as file, file.change() as keys:
        keys.add("host_beta", owner("beta"), "RW")
    run(given, "attach")
    for operation in ("activate", "clear"):
        with pytest.raises(ActivationRefused, match=r"is active \(RW\) on beta .*--force 1"):
            run(given, operation)
    done = run(given, "clear", force=1)
    assert done["changed"] is True
    assert "removed by --force: host_beta" in done["notes"][0]
    assert run(given, "status")["status"]["keys"] == []
