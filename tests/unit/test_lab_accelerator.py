"""The choice between KVM and TCG: what a host says of itself, and how long a result holds."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from vhdtool.errors import LabError
from vhdtool.lab.hosts.agent import is_emulated, why_no_kvm
from vhdtool.lab.hosts.connection import Host, HostConfig
from vhdtool.lab.hypervisors.accelerator import choose, refuse_emulation_inside_emulation

DAY = 24 * 3600.0
KVM = {"qemu": "7.2", "kernel": "6.1", "boot_id": "one", "no_kvm": "", "emulated": False}


class CachingHost(Host):
    """A host whose agent has a clock and a cache directory, and nothing else."""

    def __init__(self) -> None:
        self.name = "kvm1"
        self.config = HostConfig(
            *("kvm1", "kvm1", "192.0.2.1", "python3"),
            *("/lib", "/private", "/cache"),
        )
        self.now = 1000.0
        self.files: dict[str, bytes] = {}

    def call(self, op: str, timeout: float = 0, **arguments: Any) -> Any:
        if op == "write":
            self.files[arguments["path"]] = base64.b64decode(arguments["data"])
        return {"clock": self.now, "digest": "abc", "write": None}[op]

    def read(self, path: str, limit: int = 0) -> bytes:
        return self.files.get(path, b"")


class Probe:
    """Boots a guest, or does not; `lines` is what the user was shown."""

    def __init__(self, host: CachingHost) -> None:
        self.host = host
        self.works = False
        self.tries = 0
        self.lines: list[str] = []

    def boots(self, host: Host) -> bool:
        self.tries += 1
        return self.works

    def choose(self, asked: str = "auto", **facts: Any) -> str:
        return choose(asked, self.host, {**KVM, **facts}, "/k", self.boots, self.lines.append)


@pytest.fixture
def probe() -> Probe:
    return Probe(CachingHost())


def test_a_kvm_that_works_is_asked_once(probe: Probe) -> None:
    probe.works = True
    assert [probe.choose(), probe.choose(boot_id="two")] == ["kvm", "kvm"]
    assert probe.tries == 1
    assert probe.lines == []


def test_a_kvm_that_does_not_work_is_asked_again_after_a_day(probe: Probe) -> None:
    assert [probe.choose(), probe.choose()] == ["tcg", "tcg"]
    assert probe.tries == 1
    assert probe.lines[0].startswith("kvm1: KVM is there, but no guest boots on it within 20 s")
    probe.works = True
    probe.host.now += DAY + 1
    assert probe.choose() == "kvm"


def test_a_kvm_that_does_not_work_is_asked_again_after_a_reboot(probe: Probe) -> None:
    assert probe.choose() == "tcg"
    probe.works = True
    assert probe.choose(boot_id="two") == "kvm"


@pytest.mark.parametrize("text", [b'"tcg"', b"{", b"{}", b"[]"])
def test_a_cache_without_a_date_is_not_believed(probe: Probe, text: bytes) -> None:
    assert probe.choose() == "tcg"
    (path,) = probe.host.files
    probe.host.files[path] = text
    probe.works = True
    assert probe.choose() == "kvm"
    assert json.loads(probe.host.files[path]) == "kvm"


def test_kvm_where_there_is_none_is_refused_with_the_reason(probe: Probe) -> None:
    with pytest.raises(LabError, match=r"^kvm1: no usable KVM: the CPU has neither$"):
        probe.choose("kvm", no_kvm="the CPU has neither")
    assert probe.choose("tcg", no_kvm="the CPU has neither") == "tcg"
    assert probe.tries == 0


def test_emulation_inside_emulation_is_refused_with_a_reason(probe: Probe) -> None:
    facts = {**KVM, "emulated": True, "no_kvm": "there is no /dev/kvm; try modprobe kvm_amd"}
    with pytest.raises(LabError, match="does not boot in time; there is no /dev/kvm; try modpr"):
        refuse_emulation_inside_emulation("tcg", probe.host, facts)
    refuse_emulation_inside_emulation("kvm", probe.host, facts)
    refuse_emulation_inside_emulation("tcg", probe.host, KVM)


def test_a_host_says_why_it_has_no_kvm(tmp_path: Path) -> None:
    missing = str(tmp_path / "kvm")
    assert why_no_kvm("flags : fpu sse") == "the CPU has neither vmx nor svm"
    assert "without nested virtualization" in why_no_kvm("flags : fpu hypervisor")
    assert why_no_kvm("flags : svm", missing) == f"there is no {missing}; try modprobe kvm_amd"
    assert why_no_kvm("flags : vmx", missing) == f"there is no {missing}; try modprobe kvm_intel"
    Path(missing).touch()
    assert why_no_kvm("flags : vmx", missing) == ""


@pytest.mark.parametrize(
    ("cpu", "said", "emulated"),
    [
        ("model name : QEMU TCG CPU version 2.5+", None, True),
        ("model name : AMD EPYC\nflags : svm hypervisor", "qemu", True),
        ("model name : AMD EPYC\nflags : svm hypervisor", "kvm", False),
        ("model name : AMD EPYC\nflags : svm hypervisor", None, False),
        ("model name : AMD EPYC\nflags : svm", "qemu", False),
    ],
)
def test_an_emulated_host_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: str, said: str | None, emulated: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if said is not None:
        program = tmp_path / "systemd-detect-virt"
        program.write_text(f"#!/bin/sh\necho {said}\n")
        program.chmod(0o755)
    assert is_emulated(cpu) is emulated
