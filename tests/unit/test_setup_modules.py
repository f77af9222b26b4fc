"""The modules of the collection, as functions on this machine."""

import errno
import fcntl
import importlib.util
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
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
packages = module("packages.py")
export = module("export.py")
leftovers = module("leftovers.py")
kvm = module("kvm.py")


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


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a shell script before all programs of that name; its calls are in the file returned."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def put(name: str, script: str) -> Path:
        path, calls = tmp_path / "bin" / name, tmp_path / f"{name}.calls"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "$*" >>{calls}\n{script}\n')
        path.chmod(0o755)
        return calls

    return put


def test_packages_that_are_there_are_not_missing(program: Callable[[str, str], Path]) -> None:
    program("dpkg-query", "echo 'tgt installed'; echo 'ntp config-files'; exit 1")
    assert packages.missing(["tgt", "ntp", "nfs-common"]) == ["ntp", "nfs-common"]


def test_packages_are_installed_without_asking_for_news_first(
    program: Callable[[str, str], Path],
) -> None:
    calls = program("apt-get", "")
    assert packages.install(["tgt"]) is None
    (call,) = calls.read_text().splitlines()
    assert call.endswith("install --yes --no-install-recommends tgt")


def test_a_host_without_package_sources_says_what_it_lacks(
    program: Callable[[str, str], Path],
) -> None:
    calls = program(
        "apt-get",
        'case "$*" in *update) echo "E: no network" >&2; exit 100;; esac\n'
        'echo "E: Unable to locate package tgt" >&2; exit 100',
    )
    told = packages.install(["tgt"])
    assert told == "E: Unable to locate package tgt; apt-get update: E: no network"
    assert len(calls.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 0", None),
        (
            "echo 'mount.nfs: access denied by server while mounting s:/e' >&2; exit 32",
            "s:/e: mount.nfs: access denied by server while mounting s:/e; name this host's",
        ),
        ("echo 'mount: bad option; for several filesystems' >&2; exit 32", "is nfs-common"),
        (
            "exec sleep 60",
            "s:/e: no answer within 0.2 s; is the server up, and TCP port 2049 open?",
        ),
    ],
)
def test_an_export_is_tried_once_and_explained(
    program: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    told: str | None,
) -> None:
    monkeypatch.setattr(export, "SECONDS", 0.2 if "sleep" in script else 60)
    calls = program("mount", script)
    program("umount", "")
    found = export.problem("s:/e", "vers=4.2")
    assert found == told if told is None else told in found
    words = calls.read_text().split()
    assert words[:5] == ["-t", "nfs", "-o", "vers=4.2,retry=0", "s:/e"]
    assert not Path(words[5]).exists()


def test_an_export_that_root_may_not_write_names_the_option(tmp_path: Path) -> None:
    assert export.write_problem("s:/e", str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []
    for number, name in ((errno.EACCES, "no_root_squash"), (errno.EROFS, "with rw")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export.tempfile, "mkstemp", refusing(number))
            assert name in export.write_problem("s:/e", str(tmp_path))


def refusing(number: int) -> Callable[..., None]:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_mounted_export_is_known_by_its_source() -> None:
    with open("/proc/self/mountinfo") as lines:
        before, _, after = next(line for line in lines if " - proc " in line).partition(" - ")
    assert export.is_mounted(after.split()[1], before.split()[4])
    assert not export.is_mounted("server:/export", before.split()[4])


def test_only_processes_of_a_run_count_as_left(tmp_path: Path) -> None:
    """A guest of somebody else names the directory too, and has another environment."""
    private = str(tmp_path / "private")
    left = {**os.environ, "PYTHONPATH": f"{private}/lib"}
    words = ["sleep", "60", f"{private}/run/disk"]
    with (
        subprocess.Popen(["sh", "-c", "exec sleep 60"], env=left) as ours,
        subprocess.Popen(["sh", "-c", "exec sleep 60", *words]) as others,
    ):
        try:
            assert [pid for pid, _ in leftovers.processes(private)] == [ours.pid]
            # Of a process that has ended, its parent, this one, has not heard yet.
            leftovers.end([ours.pid])
            assert ours.wait() == -signal.SIGTERM
            assert others.poll() is None
        finally:
            ours.kill()
            others.kill()


def test_a_run_that_holds_a_host_is_under_way(tmp_path: Path) -> None:
    assert not leftovers.run_under_way(str(tmp_path))
    with open(tmp_path / "run.lock", "w") as held:
        assert not leftovers.run_under_way(str(tmp_path))
        fcntl.flock(held, fcntl.LOCK_EX)
        assert leftovers.run_under_way(str(tmp_path))


def test_nbd_devices_of_the_private_directory_are_found(tmp_path: Path) -> None:
    for name, pid, path in (("nbd0", "7", "/var/lib/vhdlab/run/a"), ("nbd1", "8", "/srv/other")):
        (tmp_path / "sys/block" / name).mkdir(parents=True)
        (tmp_path / "sys/block" / name / "pid").write_text(f"{pid}\n")
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "cmdline").write_text(f"nbd-client\0-unix\0{path}\0")
    (tmp_path / "sys/block/nbd2").mkdir()
    found = leftovers.devices("/var/lib/vhdlab", tmp_path / "sys", tmp_path / "proc")
    assert found == ["nbd0"]


def test_the_kernel_module_of_kvm_follows_the_cpu() -> None:
    assert kvm.wanted("flags : fpu vmx sse") == "kvm_intel"
    assert kvm.wanted("flags : fpu svm sse") == "kvm_amd"
    assert kvm.wanted("flags : fpu sse") is None
