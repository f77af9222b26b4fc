"""The wheel and the source distribution, installed and tried in an empty directory."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
WITHOUT_COMPILER = {**CLEAN, "CC": "/bin/false", "CXX": "/bin/false"}


def run(*words: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        words, cwd=cwd, env=env or CLEAN, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the checkout that git knows, so that nothing built before goes along."""
    folder = tmp_path_factory.mktemp("sources")
    names = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and name.startswith(
            ("vhdtool/", "pyproject", "setup.py", "README", "LIC")
        ):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def sdist(sources: Path) -> Path:
    """The source distribution."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", cwd=sources)
    return next((sources / "dist").glob("*.tar.gz"))


@pytest.fixture(scope="module", params=["with a compiler", "without a compiler"])
def installed(
    request: pytest.FixtureRequest, sdist: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """bin/ of a virtual environment with a wheel built from the sdist, and no checkout in sight."""
    folder = tmp_path_factory.mktemp("wheel")
    env = CLEAN if request.param == "with a compiler" else WITHOUT_COMPILER
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, sdist,
        cwd=folder, env=env)  # fmt: skip
    wheel = next(folder.glob("*.whl"))
    home = folder / "venv"
    venv.create(home, symlinks=True)
    purelib = home / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    # click and rich come from the environment of the tests: no network is needed.
    (purelib / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(*pip, "--python", home / "bin" / "python", "install", "-q", "--no-deps", "--no-index",
        "--ignore-installed", wheel, cwd=folder)  # fmt: skip
    assert "-cp311-abi3-" in wheel.name
    assert (home / "share/man/man1/vhdtool-convert.1").is_file()
    built = sorted(path.name for path in (purelib / "vhdtool").rglob("_*.so"))
    assert built == (["_bat_sort.abi3.so", "_fast_path.abi3.so"] if env is CLEAN else [])
    program = "from vhdtool.nbd import fast_path; print(fast_path.available)"
    found = run(home / "bin" / "python", "-c", program, cwd=folder).strip()
    assert found == str(env is CLEAN)
    where = run(
        home / "bin" / "python", "-c", "import vhdtool; print(vhdtool.__file__)", cwd=folder
    )
    assert where.startswith(str(purelib))
    return home / "bin"


def test_an_installed_wheel_makes_and_checks_images(installed: Path, tmp_path: Path) -> None:
    run(installed / "vhdtool", "create", "disk.vhd", "64M", cwd=tmp_path)
    assert "consistent" in run(installed / "vhdtool", "check", "disk.vhd", cwd=tmp_path)
    assert run(installed / "vhd-util", "query", "-n", "disk.vhd", "-v", cwd=tmp_path) == "64\n"
    assert run(installed / "vhdtool", "--version", cwd=tmp_path).startswith("vhdtool ")


def test_an_installed_wheel_serves_an_image(installed: Path, tmp_path: Path) -> None:
    run(installed / "vhdtool", "create", "disk.vhd", "64M", cwd=tmp_path)
    socket = tmp_path / "nbd.sock"
    with subprocess.Popen(
        [installed / "vhdtool", "serve", "disk.vhd", "--socket", socket], cwd=tmp_path, env=CLEAN
    ) as server:
        try:
            wait_for(socket.exists, 20, process=server)
            uri = f"nbd+unix:///?socket={socket}"
            assert "67108864" in run("nbdinfo", "--size", uri, cwd=tmp_path)
            run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", uri, cwd=tmp_path)
        finally:
            server.terminate()
            assert server.wait(20) == 0
    assert "consistent" in run(installed / "vhdtool", "check", "disk.vhd", cwd=tmp_path)
