"""The location of a case's image; a LUN that lets everybody in does not count as exclusive."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vhdtool.errors import LabError, VhdtoolError
from vhdtool.image.check.image import check
from vhdtool.lab.case.image_location import ImageLocation
from vhdtool.lab.commands import run_command
from vhdtool.lab.hosts.agent_images import ImageOperations
from vhdtool.lab.hosts.connection import RemoteError
from vhdtool.lab.strategies import STRATEGIES
from vhdtool.storage import FileStorage

MIB = 1 << 20
BESIDES = {"size": 512, "format": "vhd", "record": "/srv/i.vhd.lease"}
URL = "iscsi://198.18.0.11:3261/iqn.x:d/1"


def location(lun: bool = True, guard: bool = True) -> ImageLocation:
    strategy = STRATEGIES["login" if lun else "activate"]
    image: Any = {"image": "/srv/i.vhd", "kind": "vhd", "image_bytes": 512}
    plan: Any = SimpleNamespace(strategy=strategy, guard=guard, **image)
    target: Any = SimpleNamespace(url=URL, host="alpha")
    return ImageLocation(plan, target if lun else None)


class Host:
    """A destination whose reads end as told."""

    def __init__(self, error: LabError | None) -> None:
        self.error, self.asked = error, 0

    def call(self, op: str, **arguments: Any) -> int:
        assert (op, arguments) == ("peek", {"path": URL})
        self.asked += 1
        if self.error is not None:
            raise self.error
        return 512


def test_a_file_is_attached_by_its_path_and_read_on_any_host() -> None:
    plain = location(lun=False)
    assert plain.attach_arguments() == {"path": "/srv/i.vhd", **BESIDES}
    assert plain.lease is None
    beta: Any = "beta"
    assert str(plain.direct_host(beta)) == "beta"


def test_a_lun_is_attached_by_its_url_and_read_at_its_target() -> None:
    lun = location()
    assert lun.attach_arguments() == {"path": URL, **BESIDES}
    assert lun.lease == f"scsi:{URL}"
    beta: Any = "beta"
    assert str(lun.direct_host(beta)) == "alpha"
    assert location(guard=False).lease is None


def test_a_lun_open_to_both_hosts_is_a_lab_error() -> None:
    open_to_all: Any = Host(None)
    with pytest.raises(LabError, match="let the destination in"):
        location().check_reservation(open_to_all)
    broken: Any = Host(RemoteError("beta: peek: Connection refused", "ScsiError"))
    with pytest.raises(RemoteError):
        location().check_reservation(broken)
    shut: Any = Host(RemoteError("another initiator has it reserved", "ScsiError"))
    assert "has it reserved" in str(location().check_reservation(shut))
    assert shut.asked == 1


def test_without_a_reservation_no_host_is_asked() -> None:
    never: Any = Host(None)
    location(lun=False).check_reservation(never)
    location(guard=False).check_reservation(never)
    assert never.asked == 0


def test_the_agent_lays_an_image_out_as_on_a_device(tmp_path: Path) -> None:
    agent, path = ImageOperations(), tmp_path / "lun"
    agent.create(str(path), 64 * MIB, 2 * MIB, lun=True)
    size = path.stat().st_size
    assert size > 64 * MIB + 33 * 4096
    assert size % 512 == 0
    raw = path.read_bytes()
    assert raw[:512] == raw[-512:]
    assert raw[:8] == b"conectix"
    with FileStorage(path) as storage:
        assert {one.code for one in check(storage).findings} <= {"leaked-tail"}
    assert agent.peek(str(path)) == 512


def test_the_agent_tells_why_a_command_failed() -> None:
    run_command(["true"])
    with pytest.raises(VhdtoolError, match="sh: no such thing"):
        run_command(["sh", "-c", "echo first >&2; echo no such thing >&2; exit 3"])
    with pytest.raises(FileNotFoundError):
        run_command(["/nonexistent"])
