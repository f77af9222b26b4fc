"""While a case is live: the guest runs at the destination, the source is not closed yet."""

import json
from typing import Any

import pytest
from conftest import pids
from testinfra.host import Host

pytestmark = pytest.mark.live

ASK = (
    "import json, socket, sys\n"
    "s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1])\n"
    's.sendall(b\'{"id": 1, "op": "status"}\\n\')\n'
    "print(s.makefile().readline())\n"
)


def test_the_shim_runs_where_it_should(host: Host, told: dict[str, Any]) -> None:
    expected = [] if told["shim"] is None else [told["shim"]["pid"]]
    assert pids(host, "vhdtool.tapdisk", told) == expected


def test_qemu_runs_where_it_should(host: Host, told: dict[str, Any]) -> None:
    expected = [] if told["qemu"] is None else [told["qemu"]["pid"]]
    assert pids(host, "qemu-system-", told) == expected


def test_the_guest_runs_at_the_destination(case: dict[str, Any]) -> None:
    (destination,) = [h for h in case["hosts"].values() if h["role"] == "destination"]
    assert destination["qemu"] is not None


def test_sockets_are_private(host: Host, told: dict[str, Any]) -> None:
    sockets = socket_paths(told)
    assert sockets or told["shim"] is None, "live.json names no socket"
    for path in sockets:
        found = host.file(path)
        assert found.is_socket, f"{path} is no socket"
        assert found.mode == 0o600, f"{path} has mode {found.mode:o}"
        directory = host.file(path.rpartition("/")[0])
        assert directory.mode == 0o700, f"{directory.path} has mode {directory.mode:o}"


def test_the_image_is_the_same_file_on_both_hosts(
    case: dict[str, Any], hosts: dict[str, Host]
) -> None:
    sizes = {name: host.file(case["image"]).size for name, host in hosts.items()}
    assert min(sizes.values()) > 0
    first, second = hosts.values()
    token = first.check_output("mktemp -p %s .live-XXXXXX", case["shared_dir"])
    try:
        assert second.file(token).exists, f"{token} is seen by one host only: not shared"
    finally:
        first.check_output("rm -f %s", token)


def test_the_shim_says_the_state_that_the_runner_recorded(host: Host, told: dict[str, Any]) -> None:
    if told["shim"] is None:
        pytest.skip("no shim on this host in this phase")
    answer = json.loads(host.check_output("python3 -c %s %s", ASK, told["shim"]["control"]))
    assert answer["ok"]["state"] == told["shim"]["state"]


def test_one_host_is_active_where_the_order_promises_it(case: dict[str, Any]) -> None:
    states = {name: (h["shim"] or {}).get("state") for name, h in case["hosts"].items()}
    active = [name for name, state in states.items() if state == "active"]
    if case["expected"] == "corrupt":
        assert active, "nobody has the disk open: the case shows nothing"
    else:
        assert active == [case["active"]], f"the states are {states}"


def test_the_lease_names_the_active_host(case: dict[str, Any], lease_holder: str | None) -> None:
    if case["guard"]:
        assert lease_holder == case["active"]
    else:
        assert lease_holder is None, "a backend without the guard takes no lease"


def socket_paths(told: dict[str, Any]) -> list[str]:
    shim, qemu = told["shim"] or {}, told["qemu"] or {}
    found = [shim.get("socket"), shim.get("control"), qemu.get("qmp"), qemu.get("console")]
    return [path for path in found if path]
