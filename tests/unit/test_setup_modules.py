"""The modules of the collection, as functions on this machine."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        Path(path).stem, ROOT / "plugins" / "modules" / path
    )
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


shared = module("shared_directory.py")
preflight = module("preflight.py")


@pytest.fixture
def held(tmp_path: Path) -> Iterator[str]:
    path = shared.hold(str(tmp_path))
    yield path
    Path(path).unlink(missing_ok=True)
    os.wait()  # the holder ends with its file


def test_a_lock_that_another_process_holds_keeps_out(held: str) -> None:
    assert shared.problem(held, "kvm1") == ""


def test_a_useless_lock_names_its_file_system_and_options(tmp_path: Path) -> None:
    unlocked = tmp_path / "probe"
    unlocked.touch()
    told = shared.problem(str(unlocked), "kvm1")
    kind, options = shared.mount_of(str(tmp_path))
    assert told.startswith(f"{tmp_path} does not share locks: kvm1 holds one")
    assert f"(file system {kind}, options {options})" in told
    assert kind != "unknown"


def test_a_missing_file_is_reported_as_an_unshared_directory(tmp_path: Path) -> None:
    assert f"{tmp_path} is not shared" in shared.problem(str(tmp_path / "none"), "kvm1")


def test_a_directory_is_written_to_and_not_asked(tmp_path: Path) -> None:
    assert preflight.write_problem(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []
    assert preflight.write_problem(str(tmp_path / "none")) == "No such file or directory"
    assert preflight.write_problem("/proc") is not None
