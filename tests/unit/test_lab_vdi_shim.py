"""A shim that is driven by VDI operations: what the agent is asked, and what its errors mean."""

from types import SimpleNamespace
from typing import Any

import pytest

from vhdtool.errors import ActivationRefused, LabError, VhdtoolError
from vhdtool.lab.hosts.agent_vdi import operate_vdi
from vhdtool.lab.hosts.connection import RemoteError
from vhdtool.lab.hosts.vdi_shim import VdiShim

PLACE = {
    "host": "alpha",
    "folder": "/private/run",
    "control": "/private/run/disk0.ctl",
    "image": "/srv/disk.vhd",
}


class FakeHost:
    """A host whose agent does nothing, or fails."""

    name = "alpha"
    config = SimpleNamespace(private_dir="/private", python="python3", lib="/lib")

    def __init__(self) -> None:
        self.on_exit: dict[int, object] = {}
        self.asked: list[dict[str, Any]] = []
        self.failure: RemoteError | None = None

    def call(self, op: str, timeout: float = 0, **arguments: Any) -> Any:
        if op == "vdi":
            self.asked.append(arguments)
            if self.failure is not None:
                raise self.failure
        return 7


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def shim(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> VdiShim:
    made = VdiShim(host, "disk0", True, lambda *_: None)  # type: ignore[arg-type]
    direct = lambda self, op, **arguments: {"state": f"after {op}"}  # noqa: E731
    monkeypatch.setattr("vhdtool.lab.hosts.shim.Shim.call", direct)
    return made


def test_four_operations_go_to_the_agent_and_no_other(host: FakeHost, shim: VdiShim) -> None:
    shim.call("export", size=512)
    shim.call("attach", path="/srv/disk.vhd", size=512, format="vhd", record="/srv/disk.vhd.lease")
    for operation in ("may-serve", "activate", "pause", "status", "detach"):
        shim.call(operation)
    assert shim.call("deactivate", queue=True) == {"state": "after status"}
    assert host.asked == [
        {"operation": "attach", **PLACE, "size": 512, "kind": "vhd"},
        {"operation": "activate", **PLACE},
        {"operation": "detach", **PLACE},
        {"operation": "deactivate", **PLACE, "queue": True},
    ]


@pytest.mark.parametrize(
    ("kind", "error"), [("ActivationRefused", ActivationRefused), ("BackendError", LabError)]
)
def test_a_refusal_on_the_host_is_one_here(
    host: FakeHost, shim: VdiShim, kind: str, error: type[VhdtoolError]
) -> None:
    shim.call("attach", path="/srv/disk.vhd", size=512, format="vhd", record="-")
    host.failure = RemoteError("alpha: /srv/disk.vhd: is active (RW) on beta", kind)
    with pytest.raises(error, match=r"^alpha: vdi activate: /srv/disk.vhd: is active \(RW\) on"):
        shim.call("activate")


def test_the_agent_has_four_operations(tmp_path: Any) -> None:
    with pytest.raises(VhdtoolError, match="no VDI operation 'clear'"):
        operate_vdi("clear", str(tmp_path / "d.vhd"), "alpha", str(tmp_path), "/none")
