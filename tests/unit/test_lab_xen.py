"""The Xen driver on a host that only answers: which commands it gives, and what it concludes."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from vhdtool.errors import LabError
from vhdtool.lab.hypervisors.driver import Disk, Outcome, Watch
from vhdtool.lab.hypervisors.xen import XenDriver
from vhdtool.lab.hypervisors.xen_disk import DEVICES, XenDisk
from vhdtool.lab.hypervisors.xen_transfer import XenTransfer
from vhdtool.lab.hypervisors.xl import destroy, domains, runs

LIST = """\
Name                                        ID   Mem VCPUs	State	Time(s)
Domain-0                                     0   768     1     r-----     834.1
vhdlab-guest0                                7   128     1     -b----      20.6
vhdlab-guest0--incoming                      8   128     1     --p---       0.0
old guest                                    9   128     1     ---s--       1.0
"""


class AnsweringHost:
    """A host whose answers are set by the test; `calls` has what it was asked for."""

    def __init__(self, name: str = "alpha", answer: Callable[..., Any] | None = None) -> None:
        self.name = name
        self.clock_offset = 100.0
        self.config = SimpleNamespace(
            private_dir="/var/lib/vhdlab", lib="/lib", python="python3", address="192.0.2.1"
        )
        self.on_exit: dict[int, Callable[[int], None]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.sent: list[bytes] = []
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.answer = answer or (lambda op, **_: LIST if op == "output" else 1)

    def call(self, op: str, timeout: float = 0, **arguments: Any) -> Any:
        self.calls.append((op, arguments.get("argv", arguments)))
        return self.answer(op, **arguments)

    def connect(self, path: str, on_data: Callable[[bytes], None], timeout: float = 0) -> int:
        self.on_data = on_data
        return 5

    def send(self, stream: int, data: bytes) -> None:
        self.sent.append(data)

    def last_line(self, path: str) -> str:
        return "the log's last line"

    def commands(self) -> list[str]:
        return [" ".join(argv) for op, argv in self.calls if op in ("output", "run")]


def test_the_domains_of_a_host_are_read_from_xl_list() -> None:
    found = domains(AnsweringHost())  # type: ignore[arg-type]
    assert found[7] == ("vhdlab-guest0", "-b----")
    assert found[9] == ("old guest", "---s--")
    assert len(found) == 4


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, True), (7, True), (8, False), (9, False), (10, False), (None, False)],
)
def test_a_paused_or_stopped_domain_does_not_run(number: int | None, expected: bool) -> None:
    assert runs(AnsweringHost(), number) is expected  # type: ignore[arg-type]


def test_a_domain_that_is_gone_is_not_destroyed_twice() -> None:
    host = AnsweringHost()
    destroy(host, {"vhdlab-guest0", "vhdlab-guest1"})  # type: ignore[arg-type]
    assert host.commands() == ["xl list", "xl destroy vhdlab-guest0"]


def test_a_run_ends_the_domains_that_a_killed_one_left() -> None:
    host = AnsweringHost()
    XenDriver("k", "i", "auto").prepare([host], print)  # type: ignore[list-item]
    ended = {line for line in host.commands() if "destroy" in line}
    assert ended == {"xl destroy vhdlab-guest0", "xl destroy vhdlab-guest0--incoming"}


def test_a_host_without_xen_is_refused_in_one_line() -> None:
    def fails(op: str, **_: Any) -> Any:
        raise LabError("xl: No such file or directory")

    host = AnsweringHost(answer=fails)
    with pytest.raises(LabError, match=r"alpha: xl does not work .*; boot the host with Xen"):
        XenDriver("k", "i", "auto").prepare([host], print)  # type: ignore[list-item]


def test_the_first_nbd_device_that_nobody_uses_is_taken() -> None:
    def answer(op: str, **arguments: Any) -> Any:
        if op == "exists" and len(arguments["paths"]) == DEVICES:
            return [n < 3 for n in range(DEVICES)]
        return [True] if op == "exists" else 77

    host = AnsweringHost(answer=answer)
    disk = XenDisk(host, "/run/guest0", Disk(1 << 20, "/run/s"))  # type: ignore[arg-type]
    disk.connect("/run/disk")
    assert disk.device == "/dev/nbd3"
    assert "ln -sfn /dev/nbd3 /run/disk" in host.commands()
    disk.disconnect()
    assert "nbd-client -d /dev/nbd3" in host.commands()


def test_a_host_without_a_free_nbd_device_is_refused() -> None:
    host = AnsweringHost(answer=lambda op, **_: [True] * DEVICES)
    disk = XenDisk(host, "/run/guest0", Disk(1 << 20, "/run/s"))  # type: ignore[arg-type]
    with pytest.raises(LabError, match="all 16 nbd devices are in use"):
        disk.connect("/run/disk")


class Transfer:
    """A transfer of a guest between two such hosts, whose relay is the test."""

    def __init__(self) -> None:
        self.source, self.destination = AnsweringHost("alpha"), AnsweringHost("beta")
        driver = XenDriver("k", "i", "auto")
        disk, watch = Disk(1 << 20), Watch(lambda data: None)
        guests = [
            driver.guest(host, "guest0", disk, watch)  # type: ignore[arg-type]
            for host in (self.source, self.destination)
        ]
        guests[0].number = 7
        self.transfer = XenTransfer(guests[0], guests[1], 49160)

    def tell(self, **event: Any) -> None:
        data = json.dumps(event).encode() + b"\n"
        # In pieces, as a stream may bring them.
        self.source.on_data(data[:5])
        self.source.on_data(data[5:])


def test_suspended_is_when_the_domain_was_stopped() -> None:
    case = Transfer()
    case.tell(event="ready", stopped=5.0, mono=7.0)
    assert case.transfer.wait_suspended(1).stop_mono == 105.0


def test_an_xl_that_ends_early_is_reported_with_its_last_words() -> None:
    case = Transfer()
    case.source.on_exit[1](3)
    with pytest.raises(LabError, match="ended with 3 before ready: the log's last line"):
        case.transfer.wait_suspended(1)


def test_a_refusal_waits_for_the_end_of_xl() -> None:
    case = Transfer()
    case.source.on_exit[1](1)
    case.transfer.cancel(1)
    assert case.source.sent == [b"refuse\n"]


def test_a_source_that_does_not_go_on_is_an_error() -> None:
    case = Transfer()
    case.source.on_exit[1](1)
    case.source.answer = lambda op, **_: LIST.replace("-b----", "---s--")
    with pytest.raises(LabError, match="the guest did not go on after a refusal"):
        case.transfer.cancel(0.2)


def test_the_end_of_a_migration_that_was_let_go_refuses_nothing() -> None:
    case = Transfer()
    case.tell(event="ready", stopped=5.0, mono=7.0)
    case.transfer.wait_suspended(1)
    case.tell(event="unpaused", status=0, mono=8.0)
    case.destination.answer = lambda op, **_: "8"
    assert case.transfer.resume(1) == 107.0
    case.source.on_exit[1](0)
    case.transfer.end()
    assert case.source.sent == [b"go\n"]


def test_a_domain_that_is_not_unpaused_is_an_error() -> None:
    case = Transfer()
    case.tell(event="ready", stopped=5.0, mono=7.0)
    case.transfer.wait_suspended(1)
    case.destination.answer = lambda op, **_: "8"
    case.tell(event="unpaused", status=1, mono=8.0)
    with pytest.raises(LabError, match="beta: the domain could not be unpaused"):
        case.transfer.resume(1)


def test_the_outcome_is_asked_of_both_hosts() -> None:
    case = Transfer()
    assert case.transfer.outcome() is Outcome.SOURCE
    case.source.answer = lambda op, **_: LIST.replace("-b----", "---s--")
    assert case.transfer.outcome() is Outcome.NOWHERE
