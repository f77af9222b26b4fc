"""scripts/setup: says what is missing and stops, or does nothing, and quickly."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = ("sh", "sed", "tr", "cat", "dirname", "sha256sum", "id", "env", "flock", "grep", "cut")
SOURCES = (
    "requirements.lock",
    "pyproject.toml",
    "scripts/setup",
    "vhdtool/image/metadata/bat_sort.c",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("vhdtool/nbd/csrc/*.[ch]")),
)
"""What decides whether .venv is up to date."""

Run = Callable[[], subprocess.CompletedProcess[str]]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with just what setup reads."""
    for name in ("scripts/packages.txt", *SOURCES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH of its own: ordinary tools, and no apt yet."""
    directory = tmp_path / "tools"
    directory.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (directory / name).symlink_to(found)
    return directory


@pytest.fixture
def setup(checkout: Path, tools: Path) -> Run:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(checkout / "scripts" / "setup")],
            env={"PATH": str(tools)},
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )

    return run


def fake(tools: Path, name: str, text: str) -> None:
    (tools / name).unlink(missing_ok=True)
    (tools / name).write_text(f"#!/bin/sh\n{text}\n")
    (tools / name).chmod(0o755)


def packages(checkout: Path) -> list[str]:
    lines = (checkout / "scripts" / "packages.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def fake_dpkg(tools: Path, checkout: Path, missing: set[str]) -> None:
    present = [name for name in packages(checkout) if name not in missing]
    fake(tools, "dpkg-query", "\n".join(f"echo 'ii {name}'" for name in present))
    fake(tools, "apt-get", "echo apt-get was called >&2; exit 99")


def stamp(checkout: Path) -> None:
    """As if setup had made this checkout's .venv."""
    text = f"{checkout.resolve()}\n".encode()
    for name in SOURCES:
        text += (checkout / name).read_bytes()
    (checkout / ".venv").mkdir()
    digest = hashlib.sha256(text).hexdigest()
    (checkout / ".venv" / "setup.stamp").write_text(f"{digest}  -\n")


def test_where_there_is_no_apt_the_packages_are_named(setup, checkout) -> None:
    done = setup()
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("setup: this system has no dpkg-query: Debian 12 or alike is needed")
    assert all(name in line for name in packages(checkout))


def test_a_normal_user_is_told_which_packages_are_missing(setup, checkout, tools) -> None:
    fake(tools, "id", "echo 1000")
    fake_dpkg(tools, checkout, {"fio", "qemu-utils"})
    done = setup()
    assert done.returncode == 1
    assert done.stderr == ("setup: root is needed to install what is missing: qemu-utils fio\n")


def test_a_normal_user_learns_that_the_venv_is_missing(setup, checkout, tools) -> None:
    fake(tools, "id", "echo 1000")
    fake_dpkg(tools, checkout, set())
    done = setup()
    assert done.returncode == 1
    assert done.stderr == (
        "setup: root is needed to install what is missing: the Python packages of .venv\n"
    )


def test_nothing_is_done_or_said_when_all_is_there(setup, checkout, tools) -> None:
    fake_dpkg(tools, checkout, set())
    stamp(checkout)
    done = setup()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_another_lock_file_is_noticed(setup, checkout, tools) -> None:
    fake(tools, "id", "echo 1000")
    fake_dpkg(tools, checkout, set())
    stamp(checkout)
    with open(checkout / "requirements.lock", "a") as lock:
        lock.write("# changed\n")
    assert setup().returncode == 1


def test_a_virtual_environment_behind_a_link_is_left_alone(
    setup, checkout, tools, tmp_path
) -> None:
    fake(tools, "id", "echo 0")
    fake_dpkg(tools, checkout, set())
    others = tmp_path / "others"
    others.mkdir()
    (others / "setup.stamp").write_text("of another checkout\n")
    (checkout / ".venv").symlink_to(others)
    done = setup()
    assert done.returncode == 1
    assert done.stderr.startswith(f"setup: {checkout}/.venv is a symbolic link; remove it")
    assert (others / "setup.stamp").read_text() == "of another checkout\n"


def test_the_lock_names_no_host_and_pins_every_package() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pinned = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert pinned
    assert all("==" in line for line in pinned)
    assert lock.count("--hash=sha256:") >= len(pinned)


def test_the_package_list_has_each_name_once() -> None:
    names = packages(ROOT)
    assert len(names) == len(set(names))
    assert os.access(ROOT / "scripts" / "setup", os.X_OK)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
