"""VDI operations with real shims: two hosts, one image, and whatever dies in between."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vhdtool
from tests.support.shims import owner
from tests.support.vdi_host import ROOT, VdiHost
from tests.support.waiting import wait_for
from vhdtool.errors import ActivationRefused, StateError, VhdtoolError
from vhdtool.image.check.image import check
from vhdtool.image.create.differencing import snapshot
from vhdtool.image.create.empty import create_dynamic
from vhdtool.leases import shared_file
from vhdtool.leases.lease import open_lease
from vhdtool.storage import FileStorage
from vhdtool.vdi.keys import Keys, key_file
from vhdtool.vdi.shim import ShimConnection

MIB = 1 << 20
MakeHost = Callable[..., VdiHost]


@pytest.fixture
def make_host() -> Iterator[MakeHost]:
    """Hosts whose run directory has a short path, for sockets; their shims end with the test."""
    made: list[VdiHost] = []
    with tempfile.TemporaryDirectory(prefix="vdi") as name:

        def make(image: Path, host: str, patience: float = 30) -> VdiHost:
            made.append(VdiHost(image, host, Path(name), patience))
            return made[-1]

        yield make
        for one in made:
            one.end()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.vhd"
    create_dynamic(path, 64 * MIB)
    return path


@pytest.fixture
def alpha(image: Path, make_host: MakeHost) -> VdiHost:
    return make_host(image, "alpha")


@pytest.fixture
def beta(image: Path, make_host: MakeHost) -> VdiHost:
    return make_host(image, "beta")


def activate(host: VdiHost, read_only: bool = False) -> None:
    host.vdi.attach(read_only=read_only)
    host.vdi.activate()


def plant(image: Path, change: Callable[[Keys], None]) -> None:
    """Changes the keys as another host would."""
    with key_file(image) as file, file.change() as keys:
        change(keys)


def verdict(image: Path) -> int:
    with FileStorage(image) as storage:
        return check(storage).exit_code


def test_two_hosts_hand_an_image_over_by_four_operations(
    image: Path, alpha: VdiHost, beta: VdiHost
) -> None:
    for host in (alpha, beta):
        done = host.command("attach")
        assert done.stdout.startswith("nbd+unix:///?socket="), done.stderr
    assert alpha.command("activate").returncode == 0
    with alpha.client() as disk:
        disk.pwrite(5 * MIB, b"alpha" * 1024)
    refused = beta.command("activate")
    assert refused.returncode == 1
    pid = alpha.status()["pid"]
    assert refused.stderr == (
        f"vhdtool: {image}: is active (RW) on alpha (pid {pid}); deactivate it there\n"
    )
    assert alpha.command("deactivate").returncode == 0
    assert beta.command("activate").returncode == 0
    with beta.client() as disk:
        assert disk.pread(5 * MIB, 5120) == b"alpha" * 1024
    assert alpha.command("detach").returncode == 0
    assert beta.status()["keys"][0]["name"] == "host_beta"
    assert beta.command("deactivate").returncode == 0
    assert beta.command("detach").returncode == 0
    assert verdict(image) == 0
    assert sorted(path.name for path in image.parent.iterdir()) == [
        "disk.vhd", "disk.vhd.keys", "disk.vhd.lease",
    ]  # fmt: skip
    assert [path.name for path in alpha.vdi.folder.iterdir()] == ["lock"]


def test_what_is_done_already_succeeds_again(alpha: VdiHost) -> None:
    operations = (alpha.vdi.attach, alpha.vdi.activate, alpha.vdi.deactivate, alpha.vdi.detach)
    for operation in operations:
        first = operation()
        keys = alpha.keys()
        assert operation()["state"] == first["state"]
        assert alpha.keys() == keys


@pytest.mark.parametrize("operation", ["activate", "pause", "unpause"])
def test_an_image_that_is_not_attached_here_is_refused(alpha: VdiHost, operation: str) -> None:
    done = alpha.command(operation)
    assert done.returncode == 1
    assert done.stderr == f"vhdtool: {alpha.image}: is not attached on alpha; attach it first\n"
    assert [path.name for path in alpha.image.parent.iterdir()] == ["disk.vhd"]


@pytest.mark.parametrize("operation", ["attach", "activate", "deactivate", "detach", "clear"])
def test_an_image_that_does_not_exist_is_one_line(
    alpha: VdiHost, operation: str, tmp_path: Path
) -> None:
    alpha.image.unlink()
    done = alpha.command(operation)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "No such file" in line
    assert list(tmp_path.iterdir()) == []


def test_an_active_image_is_not_detached(alpha: VdiHost) -> None:
    activate(alpha)
    with pytest.raises(StateError, match="is active here; `vhdtool vdi deactivate` it first"):
        alpha.vdi.detach()
    assert alpha.state == "active"


# readers and writers


def test_readers_share_an_image_and_keep_a_writer_out(
    image: Path, alpha: VdiHost, beta: VdiHost, make_host: MakeHost
) -> None:
    for host in (alpha, beta):
        activate(host, read_only=True)
    writer = make_host(image, "gamma")
    writer.vdi.attach()
    with pytest.raises(ActivationRefused, match=r"is active \(RO\) on alpha"):
        writer.vdi.activate()
    alpha.vdi.deactivate()
    with pytest.raises(ActivationRefused, match=r"is active \(RO\) on beta"):
        writer.vdi.activate()
    beta.vdi.deactivate()
    writer.vdi.activate()
    with pytest.raises(ActivationRefused, match=r"is active \(RW\) on gamma"):
        beta.vdi.activate()


def test_another_mode_needs_another_attach(alpha: VdiHost) -> None:
    alpha.vdi.attach(read_only=True)
    with pytest.raises(StateError, match="is attached here for RO; detach it first"):
        alpha.vdi.attach()


# waits


def in_the_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_an_activation_waits_while_the_image_is_paused(
    image: Path, alpha: VdiHost, beta: VdiHost, make_host: MakeHost
) -> None:
    activate(alpha, read_only=True)
    alpha.vdi.pause()
    beta.vdi.attach(read_only=True)
    with pytest.raises(ActivationRefused, match=r"is paused on alpha .*still after 0.2 s"):
        make_host(image, "beta", 0.2).vdi.activate()
    waiting = in_the_background(beta.vdi.activate)
    alpha.vdi.unpause()
    waiting.join()
    assert beta.state == "active"
    assert beta.keys() == {"host_alpha": "living", "host_beta": "living"}


def test_a_deactivation_waits_while_the_image_is_paused(
    image: Path, alpha: VdiHost, make_host: MakeHost
) -> None:
    activate(alpha)
    alpha.vdi.pause()
    with pytest.raises(ActivationRefused, match="vdi unpause"):
        make_host(image, "alpha", 0.2).vdi.deactivate()
    assert alpha.state == "paused"
    waiting = in_the_background(alpha.vdi.deactivate)
    alpha.vdi.unpause()
    waiting.join()
    assert (alpha.state, alpha.keys()) == ("attached", {})


def test_a_reader_waits_while_another_is_being_activated(
    image: Path, alpha: VdiHost, make_host: MakeHost
) -> None:
    plant(image, lambda keys: keys.add("activating", owner("beta")))
    alpha.vdi.attach(read_only=True)
    with pytest.raises(ActivationRefused, match="is being activated on beta"):
        make_host(image, "alpha", 0.2).vdi.activate()
    waiting = in_the_background(alpha.vdi.activate)
    plant(image, lambda keys: keys.clear())
    waiting.join()
    assert alpha.state == "active"


def test_an_active_reader_leaves_anothers_activating_alone(image: Path, alpha: VdiHost) -> None:
    activate(alpha, read_only=True)
    plant(image, lambda keys: keys.add("activating", owner("beta")))
    alpha.vdi.activate()
    assert alpha.keys() == {"host_alpha": "living", "activating": "unknown"}


def test_requests_wait_while_the_parent_gets_another_path(
    image: Path, tmp_path: Path, make_host: MakeHost
) -> None:
    child, moved = tmp_path / "child.vhd", tmp_path / "moved.vhd"
    snapshot(image, child)
    host = make_host(child, "alpha")
    activate(host)
    with host.client() as disk:
        disk.pwrite(0, b"mine" * 128)
        image.rename(moved)
        done = host.command("relink", str(moved))
        assert done.returncode == 0, done.stderr
        assert disk.pread(0, 512) == b"mine" * 128
    assert host.keys() == {"host_alpha": "living"}
    host.vdi.deactivate()
    with vhdtool.open(child) as opened:
        assert opened.read(0, 512) == b"mine" * 128


def test_a_relink_that_is_killed_can_be_repeated(
    image: Path, tmp_path: Path, make_host: MakeHost
) -> None:
    child = tmp_path / "child.vhd"
    snapshot(image, child)
    host = make_host(child, "alpha")
    activate(host)
    assert host.command("relink", str(image), failpoint="vdi-relinking").returncode == -9
    assert host.keys() == {"host_alpha": "living", "relinking": "gone", "paused": "living"}
    host.vdi.relink(str(image))
    assert (host.state, host.keys()) == ("active", {"host_alpha": "living"})


def test_a_parent_that_cannot_be_set_leaves_the_image_served(
    image: Path, tmp_path: Path, make_host: MakeHost
) -> None:
    child = tmp_path / "child.vhd"
    snapshot(image, child)
    host = make_host(child, "alpha")
    activate(host)
    with pytest.raises(VhdtoolError, match="No such file"):
        host.vdi.relink(str(tmp_path / "none.vhd"))
    assert (host.state, host.keys()) == ("active", {"host_alpha": "living"})


# whatever dies


@pytest.mark.parametrize(
    ("operation", "point", "left"),
    [
        ("activate", "vdi-activating", {"activating": "gone", "host_alpha": "living"}),
        ("activate", "vdi-activated", {"activating": "gone", "host_alpha": "living"}),
        ("deactivate", "vdi-closed", {"host_alpha": "living"}),
        ("pause", "vdi-paused", {"paused": "living", "host_alpha": "living"}),
        ("unpause", "vdi-unpaused", {"paused": "living", "host_alpha": "living"}),
    ],
)
def test_an_operation_that_is_killed_can_be_repeated(
    alpha: VdiHost, beta: VdiHost, operation: str, point: str, left: dict[str, str]
) -> None:
    beta.vdi.attach()
    alpha.vdi.attach()
    before = {"activate": (), "unpause": ("activate", "pause")}.get(operation, ("activate",))
    for one in before:
        getattr(alpha.vdi, one)()
    assert alpha.command(operation, failpoint=point).returncode == -9
    assert alpha.keys() == left
    with pytest.raises(ActivationRefused, match=r"is active \(RW\) on alpha"):
        beta.vdi.activate()
    done = alpha.command(operation)
    assert done.returncode == 0, done.stderr
    if operation == "pause":
        alpha.vdi.unpause()
    alpha.vdi.deactivate()
    assert alpha.keys() == {}
    beta.vdi.activate()
    beta.vdi.deactivate()
    assert verdict(alpha.image) == 0


def test_a_shim_that_was_killed_is_recovered_by_deactivate(alpha: VdiHost, beta: VdiHost) -> None:
    activate(alpha)
    with alpha.client() as disk:
        disk.pwrite(3 * MIB, b"safe" * 1024)
        disk.flush()
    alpha.kill_shim()
    with pytest.raises(StateError, match=r"has died while it was active"):
        alpha.vdi.detach()
    assert alpha.vdi.deactivate()["state"] == "attached"
    assert "has died; recovering" in alpha.notes[0]
    assert verdict(alpha.image) == 0
    activate(beta)
    with beta.client() as disk:
        assert disk.pread(3 * MIB, 4096) == b"safe" * 1024


def test_a_shim_that_was_killed_can_be_started_again(alpha: VdiHost) -> None:
    activate(alpha)
    alpha.kill_shim()
    activate(alpha)
    assert alpha.keys() == {"host_alpha": "living"}
    assert "removed a stale key, its owner is gone: host_alpha (RW)" in alpha.notes[0]


def test_a_stale_activating_key_is_found_and_cleared(alpha: VdiHost) -> None:
    alpha.vdi.attach()
    alpha.command("activate", failpoint="vdi-activating")
    alpha.kill_shim()
    assert alpha.keys() == {"activating": "gone", "host_alpha": "gone"}
    shown = alpha.command("status").stdout
    assert "stale: its owner is gone" in shown
    done = alpha.command("clear")
    assert done.returncode == 0
    assert done.stderr.count("removed a stale key, its owner is gone: ") == 2
    assert alpha.keys() == {}


def test_keys_of_a_host_that_is_assumed_dead_need_its_number(image: Path, alpha: VdiHost) -> None:
    dead = owner("beta", 77)

    def die(keys: Keys) -> None:
        keys.add("activating", dead)
        keys.add("host_beta", dead, "RW")

    plant(image, die)
    refused = alpha.command("clear")
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        f"vhdtool: {image}: is being activated on beta (pid 77); wait for the end of `vhdtool vdi "
        "activate` there; if that host is certainly dead, --force 1",
        f"vhdtool: {image}: is active (RW) on beta (pid 77); deactivate it there; "
        "if that host is certainly dead, --force 1",
    ]
    wrong = alpha.command("clear", "--force", "2")
    assert (wrong.returncode, "names another key" in wrong.stderr) == (1, True)
    assert alpha.keys() == {"activating": "unknown", "host_beta": "unknown"}
    assert alpha.command("clear", "--force", "1").returncode == 0
    assert alpha.keys() == {}


def test_force_takes_the_keys_and_the_lease_of_a_dead_host(image: Path, alpha: VdiHost) -> None:
    """The shim that beta had is a process of another boot, as the record and the key have it."""
    other = owner("beta", 77)
    lease = open_lease(Path(f"{image}.lease"), other)
    assert lease.acquire() == 1
    lease.close()
    plant(image, lambda keys: keys.add("host_beta", other, "RW"))
    alpha.vdi.attach()
    with pytest.raises(ActivationRefused, match="--force 1"):
        alpha.vdi.activate()
    assert alpha.vdi.activate(force=1)["epoch"] == 2
    assert alpha.keys() == {"host_alpha": "living"}


def test_force_never_takes_what_a_living_shim_has(
    image: Path, alpha: VdiHost, beta: VdiHost
) -> None:
    """beta's key names a process of another boot, but its image lock is held."""
    activate(beta)

    def disguise(keys: Keys) -> None:
        keys.clear()
        keys.add("host_beta", owner("beta", 77), "RW")

    plant(image, disguise)
    alpha.vdi.attach()
    number = alpha.status()["keys"][0]["number"]
    with pytest.raises(ActivationRefused, match=r"is in use by .* takes only what is free"):
        alpha.vdi.activate(force=number)
    assert beta.keys() == {"host_beta": "unknown"}


def test_a_fenced_image_is_deactivated_and_attached_again(alpha: VdiHost, image: Path) -> None:
    activate(alpha)
    Path(f"{image}.lease").unlink()
    with alpha.client() as disk, pytest.raises(VhdtoolError):
        disk.pwrite(9 * MIB, b"late" * 128)
    assert alpha.state == "fenced"
    with pytest.raises(StateError, match="is fenced here; deactivate it first"):
        alpha.vdi.activate()
    alpha.vdi.deactivate()
    assert (alpha.state, alpha.keys()) == ("attached", {})


def test_a_refusal_of_the_shim_takes_the_keys_back(image: Path, alpha: VdiHost) -> None:
    with vhdtool.open(image, writable=True):
        alpha.vdi.attach()
        with pytest.raises(ActivationRefused, match="is in use by"):
            alpha.vdi.activate()
    assert (alpha.state, alpha.keys()) == ("attached", {})
    alpha.vdi.activate()


def test_a_full_file_system_refuses_before_anything_is_opened(
    image: Path, alpha: VdiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, end: int) -> bool:
        raise OSError(errno.ENOSPC, "full")

    alpha.vdi.attach()
    monkeypatch.setattr(shared_file, "preallocate", full)
    with pytest.raises(VhdtoolError, match="No space left"):
        alpha.vdi.activate()
    assert alpha.state == "attached"
    assert [path.name for path in image.parent.iterdir()] == ["disk.vhd"]


# races

RACER = """
import os, sys
from pathlib import Path
from vhdtool.errors import ActivationRefused
from vhdtool.vdi.operations import Vdi
image, host, run_dir, rounds = sys.argv[1:]
vdi, marker = Vdi(image, host, Path(run_dir)), image + ".marker"
vdi.attach()
won = refused = 0
while won < int(rounds) and refused < 20000:
    try:
        vdi.activate()
    except ActivationRefused as error:
        assert " is active (RW) on " in str(error), error
        refused += 1
        continue
    os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    won += 1
    os.unlink(marker)
    vdi.deactivate()
vdi.detach()
print(won)
"""


def race(image: Path, run_dir: Path, hosts: tuple[str, ...], rounds: int) -> list[int]:
    """How often each process was active; fails where two were so at once."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(image), host, str(run_dir), str(rounds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for host in hosts
    ]
    won = []
    for racer in racers:
        out, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors
        won.append(int(out))
    return won


def test_of_two_hosts_that_race_never_both_are_active(
    image: Path, alpha: VdiHost, beta: VdiHost
) -> None:
    assert race(image, alpha.run_dir, ("alpha", "beta"), 40) == [40, 40]
    assert alpha.keys() == {}
    assert verdict(image) == 0


def test_readers_that_come_at_once_are_all_activated(image: Path, make_host: MakeHost) -> None:
    hosts = [make_host(image, name) for name in ("alpha", "beta", "gamma", "delta")]
    for host in hosts:
        host.vdi.attach(read_only=True)
    for thread in [in_the_background(host.vdi.activate) for host in hosts]:
        thread.join()
    assert [host.state for host in hosts] == ["active"] * 4
    assert set(hosts[0].keys()) == {f"host_{host.name}" for host in hosts}


# a shim that does not answer, and an operator who does not wait


def test_a_shim_that_stands_still_is_shown_as_such(alpha: VdiHost) -> None:
    """Takes 3 s: so long a status waits for the answer."""
    alpha.vdi.attach()
    pid = alpha.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        shown = alpha.status()
        assert (shown["state"], shown["pid"]) == ("no answer", pid)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_an_interrupted_activation_leaves_nothing_active(
    alpha: VdiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes when the shim has opened the image, and before its answer is read."""
    real = ShimConnection.call

    def interrupted(self: ShimConnection, op: str, *more: Any, **arguments: Any) -> dict[str, Any]:
        answer = real(self, op, *more, **arguments)
        if op == "activate":
            raise KeyboardInterrupt
        return answer

    alpha.vdi.attach()
    with monkeypatch.context() as patch:
        patch.setattr(ShimConnection, "call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            alpha.vdi.activate()
    assert (alpha.state, alpha.keys()) == ("attached", {})
    alpha.vdi.activate()


# paths


@pytest.mark.parametrize(
    "name",
    ["a b.vhd", "a\nb.vhd", "%41?&#.vhd", "\udcff\udcfe.vhd", "é" * 100 + ".vhd", "-r.vhd"],
)
def test_an_image_may_have_any_name(tmp_path: Path, make_host: MakeHost, name: str) -> None:
    path = tmp_path / name
    create_dynamic(path, 64 * MIB)
    host = make_host(path, "alpha")
    for operation in ("attach", "activate", "deactivate", "detach"):
        done = host.command(operation)
        assert done.returncode == 0, done.stderr
    assert host.keys() == {}


def test_a_symbolic_link_is_the_same_vdi(
    image: Path, alpha: VdiHost, tmp_path: Path, make_host: MakeHost
) -> None:
    activate(alpha)
    (tmp_path / "link.vhd").symlink_to(image)
    linked = make_host(tmp_path / "link.vhd", "alpha")
    assert linked.state == "active"
    linked.vdi.deactivate()
    assert alpha.state == "attached"


def test_an_image_that_moved_can_still_be_detached(alpha: VdiHost, image: Path) -> None:
    alpha.vdi.attach()
    image.rename(image.with_name("moved.vhd"))
    assert alpha.command("detach").returncode == 0
    assert not alpha.vdi.sockets.control.exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--host", "a/b"], "--host 'a/b': write a host's name, without spaces and slashes"),
        (["--run-dir", "/tmp/" + "x" * 90], "too long for a socket's path; name another --run-dir"),
        (["--run-dir", "/dev/null"], "/dev/null/alpha: cannot make the directory: Not a directory"),
    ],
)
def test_a_wrong_option_is_one_line(alpha: VdiHost, options: list[str], line: str) -> None:
    done = alpha.command("attach", *options)
    assert done.returncode != 0
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in alpha.image.parent.iterdir()] == ["disk.vhd"]


def test_what_is_no_image_is_refused_and_starts_nothing(
    tmp_path: Path, make_host: MakeHost
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    host = make_host(text, "alpha")
    done = host.command("attach")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert host.state == "detached"
    wait_for(lambda: [path.name for path in host.vdi.folder.iterdir()] == ["lock"])
