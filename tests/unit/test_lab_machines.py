"""Emulated machines: their command lines, seeds, and what is refused before anything is built."""

import os
import tarfile
import threading
from pathlib import Path

import pytest

from vhdtool.errors import LabError
from vhdtool.lab.localhosts.control import Status
from vhdtool.lab.machines import base_image, control
from vhdtool.lab.machines.cache import building, locked
from vhdtool.lab.machines.layout import EXPORT, MACHINES, MANAGEMENT, STORAGE, Machine, qemu_command
from vhdtool.lab.machines.seed import write_seed


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    for name in ("authorized_keys", *(f"host_{machine.name}" for machine in MACHINES)):
        (tmp_path / name).write_text(f"{name}\n")
    return tmp_path


def test_no_two_machines_share_an_address_or_a_card() -> None:
    words = [
        word for m in MACHINES for word in qemu_command(m, Path("/base"), "kvm", incoming=False)
    ]
    macs = [word.partition("mac=")[2].split(",")[0] for word in words if "mac=" in word]
    assert len(macs) == len(set(macs)) == 2 * len(MACHINES)
    taps = {m.tap(bridge) for m in MACHINES for bridge in (MANAGEMENT, STORAGE)}
    assert len(taps) == len(macs)
    assert max(map(len, taps)) <= 15, "the name of a network device has at most 15 characters"
    addresses = [a for m in MACHINES for a in (m.address, m.storage_address)]
    assert len(set(addresses)) == len(addresses)


def test_only_a_machine_with_a_snapshot_waits_for_memory() -> None:
    machine = MACHINES[0]
    assert "-incoming" not in qemu_command(machine, Path("/base"), "kvm", incoming=False)
    assert qemu_command(machine, Path("/base"), "kvm", incoming=True)[-3:] == [
        "-incoming",
        "defer",
        "-S",
    ]


def test_a_xen_host_boots_xen_with_linux_as_its_module() -> None:
    words = qemu_command(MACHINES[0], Path("/a,b"), "xen", incoming=False)
    assert words[words.index("-kernel") + 1] == "/a,b/xen"
    kernel, initrd = words[words.index("-initrd") + 1].replace(",,", "\0").split(",")
    assert kernel.replace("\0", ",").startswith("/a,b/vmlinuz root=/dev/vda ")
    assert initrd.replace("\0", ",") == "/a,b/initrd.img"


def test_the_nfs_server_of_xen_hosts_boots_linux() -> None:
    (store,) = (machine for machine in MACHINES if machine.serves)
    words = qemu_command(store, Path("/base"), "xen", incoming=False)
    assert words == qemu_command(store, Path("/base"), "kvm", incoming=False)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_a_seed_has_the_machines_own_key_and_no_other(
    machine: Machine, keys: Path, tmp_path: Path
) -> None:
    out = tmp_path / "seed.tar"
    write_seed(machine, keys, out)
    assert out.stat().st_mode & 0o077 == 0
    with tarfile.open(out) as archive:
        files = {}
        for entry in archive:
            content = archive.extractfile(entry)
            assert content is not None
            files[entry.name] = (content.read().decode(), entry.mode)
    assert files["etc/ssh/ssh_host_ed25519_key"] == (f"host_{machine.name}\n", 0o600)
    assert files["root/.ssh/authorized_keys"] == ("authorized_keys\n", 0o600)
    start = files["etc/vhdlab/start"][0]
    assert machine.address in start
    assert (EXPORT in start) == machine.serves


def test_the_key_of_the_image_changes_with_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = base_image.key()
    assert base_image.key() == before
    monkeypatch.setattr(base_image, "PACKAGES", (*base_image.PACKAGES, "sanlock"))
    assert base_image.key() != before


def test_too_little_space_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(LabError, match=r"MiB free, .* needed; make room"),
        building(tmp_path / "base", 1 << 62),
    ):
        raise AssertionError("it was built")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with building(tmp_path / "base", 1) as scratch:
            (scratch / "made" / "disk.img").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"No space left on device$"), locked(tmp_path, print):
        raise OSError(28, "No space left on device")


def test_what_a_killed_builder_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "building-x" / "rootfs").mkdir(parents=True)
    (tmp_path / "base-1").mkdir()
    with locked(tmp_path, print):
        assert [path.name for path in tmp_path.iterdir()] == ["base-1"]


def test_two_labs_build_one_after_the_other(tmp_path: Path) -> None:
    order: list[str] = []
    waits = threading.Event()

    def second() -> None:
        with locked(tmp_path, lambda line: waits.set()):
            order.append("second")

    other = threading.Thread(target=second)
    with locked(tmp_path, print):
        other.start()
        assert waits.wait(10)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]


def test_another_user_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="the machines need root"):
        control.Machines(tmp_path / "state", tmp_path / "cache", print).up()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> control.Machines:
    """They are root's, and have a base image and a snapshot; nothing is started."""
    made = control.Machines(tmp_path / "state", tmp_path / "cache", print)
    monkeypatch.setattr(made.hosts, "need_root_and_tools", lambda: None)
    monkeypatch.setattr(control, "base_image", lambda cache, progress: cache / "base")
    monkeypatch.setattr(control, "run_command", lambda words: "QEMU 7.2\n")
    monkeypatch.setattr(made, "_boot", lambda base, saved, *_: saved.mkdir())
    return made


def test_too_little_memory_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, machines: control.Machines, tmp_path: Path
) -> None:
    monkeypatch.setattr(control, "memory_needed", lambda: 1 << 50)
    with pytest.raises(LabError, match=r"the machines need .* MiB of memory"):
        machines.up()
    assert list(tmp_path.iterdir()) == []


def test_machines_that_run_need_no_more_memory(
    monkeypatch: pytest.MonkeyPatch, machines: control.Machines
) -> None:
    monkeypatch.setattr(control, "memory_needed", lambda: 1 << 50)
    monkeypatch.setattr(machines.hosts, "status", lambda: Status("running", 1, "all answer"))
    monkeypatch.setattr(machines.hosts, "up", lambda *_: False)
    assert machines.up() is False


def test_a_snapshot_that_cannot_be_read_is_removed(
    monkeypatch: pytest.MonkeyPatch, machines: control.Machines, tmp_path: Path
) -> None:
    def torn(*_: object) -> None:
        raise LabError("alpha: the memory of a machine: unexpected end")

    ended: list[bool] = []
    monkeypatch.setattr(control, "memory_needed", lambda: 0)
    monkeypatch.setattr(machines.hosts, "up", lambda *_: True)
    monkeypatch.setattr(machines.hosts, "down", lambda holder, force: ended.append(force))
    monkeypatch.setattr(control, "restore", torn)
    with pytest.raises(LabError, match="unexpected end; the snapshot is removed"):
        machines.up()
    assert ended == [True]
    assert list((tmp_path / "cache").iterdir()) == []
