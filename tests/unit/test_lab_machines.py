"""Emulated machines: their command lines, seeds, and what is refused before anything is built."""

import os
import tarfile
from pathlib import Path

import pytest

from vhdtool.errors import LabError
from vhdtool.lab.machines import base_image, control
from vhdtool.lab.machines.layout import EXPORT, MACHINES, MANAGEMENT, STORAGE, Machine, qemu_command
from vhdtool.lab.machines.seed import write_seed


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    for name in ("authorized_keys", *(f"host_{machine.name}" for machine in MACHINES)):
        (tmp_path / name).write_text(f"{name}\n")
    return tmp_path


def test_no_two_machines_share_an_address_or_a_card() -> None:
    words = [word for m in MACHINES for word in qemu_command(m, Path("/base"), incoming=False)]
    macs = [word.partition("mac=")[2].split(",")[0] for word in words if "mac=" in word]
    assert len(macs) == len(set(macs)) == 2 * len(MACHINES)
    taps = {m.tap(bridge) for m in MACHINES for bridge in (MANAGEMENT, STORAGE)}
    assert len(taps) == len(macs)
    assert max(map(len, taps)) <= 15, "the name of a network device has at most 15 characters"
    addresses = [a for m in MACHINES for a in (m.address, m.storage_address)]
    assert len(set(addresses)) == len(addresses)


def test_only_a_machine_with_a_snapshot_waits_for_memory() -> None:
    machine = MACHINES[0]
    assert "-incoming" not in qemu_command(machine, Path("/base"), incoming=False)
    assert qemu_command(machine, Path("/base"), incoming=True)[-3:] == ["-incoming", "defer", "-S"]


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


def test_too_little_space_is_refused_before_building(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(base_image, "install_missing", lambda progress: None)
    monkeypatch.setattr(base_image, "FREE_NEEDED", 1 << 62)
    with pytest.raises(LabError, match="MiB free, building needs"):
        base_image.base_image(tmp_path / "cache", print)
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_user_is_refused_before_building(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root"):
        base_image.base_image(tmp_path / "cache", print)
    assert not (tmp_path / "cache").exists()


def test_too_little_memory_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(control, "memory_needed", lambda: 1 << 50)
    with pytest.raises(LabError, match=r"the machines need .* MiB of memory"):
        control.Machines(tmp_path / "state", tmp_path / "cache", print).up()
    assert list(tmp_path.iterdir()) == []
