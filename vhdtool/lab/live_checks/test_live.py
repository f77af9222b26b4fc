"""While a case is live: the guest runs at the destination, the source is not closed yet."""

import json

import pytest
from testinfra.host import Host

from vhdtool.lab.live_checks.plugin import Description, guests, pids

pytestmark = pytest.mark.live

ASK_STATUS = (
    "import json, socket, sys\n"
    "s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1])\n"
    's.sendall(b\'{"id": 1, "op": "status"}\\n\')\n'
    "print(s.makefile().readline())\n"
)


def test_the_shim_runs_where_it_should(host: Host, expected: Description) -> None:
    shim = expected["shim"]
    assert pids(host, expected, "vhdtool.tapdisk") == ([] if shim is None else [shim["pid"]])


def test_the_guest_runs_where_it_should(
    host: Host, case: Description, expected: Description
) -> None:
    guest = expected["guest"]
    if case["hypervisor"] == "xen" and expected["role"] == "source":
        guest = None
    assert guests(host, case, expected) == ([] if guest is None else [guest["id"]])


def test_the_guest_runs_at_the_destination(case: Description) -> None:
    (destination,) = [h for h in case["hosts"].values() if h["role"] == "destination"]
    assert destination["guest"] is not None


def test_sockets_are_private_and_listening(host: Host, expected: Description) -> None:
    shim, guest = expected["shim"] or {}, expected["guest"] or {}
    named = [shim.get("socket"), shim.get("control"), guest.get("qmp"), guest.get("console")]
    sockets = [path for path in named if path]
    assert sockets or expected["shim"] is None, "live.json names no socket"
    for path in sockets:
        assert host.socket(f"unix://{path}").is_listening, f"nobody listens on {path}"
        mode = host.file(path).mode
        assert mode == 0o600, f"{path} has mode {mode:o}"
        directory = host.file(path.rpartition("/")[0])
        assert directory.mode == 0o700, f"{directory.path} has mode {directory.mode:o}"


def test_the_shared_directory_is_mounted_for_writing(host: Host, case: Description) -> None:
    mount = host.mount_point(host.check_output("stat --format=%%m %s", case["shared_dir"]))
    assert mount.exists
    assert "rw" in mount.options, f"{mount.path} is mounted with {','.join(mount.options)}"


def test_the_image_is_the_same_file_on_both_hosts(case: Description, hosts: list[Host]) -> None:
    sizes = {host.backend.get_hostname(): host.file(case["image"]).size for host in hosts}
    assert min(sizes.values()) > 0
    first, second = hosts
    token = first.check_output("mktemp -p %s .live-XXXXXX", case["shared_dir"])
    try:
        assert second.file(token).exists, f"{token} is seen by one host only: not shared"
    finally:
        first.check_output("rm -f %s", token)


def test_the_shim_has_the_state_that_was_recorded(host: Host, expected: Description) -> None:
    shim = expected["shim"]
    if shim is None:
        pytest.skip("no shim on this host in this phase")
    told = host.check_output("%s -c %s %s", expected["python"], ASK_STATUS, shim["control"])
    assert json.loads(told)["ok"]["state"] == shim["state"]


def test_one_host_is_active_where_it_is_promised(case: Description) -> None:
    states = {name: (h["shim"] or {}).get("state") for name, h in case["hosts"].items()}
    active = [name for name, state in states.items() if state == "active"]
    if case["expected"] == "corrupt":
        assert active, "nobody has the disk open: the case shows nothing"
    else:
        assert active == [case["active"]], f"the states are {states}"


def test_the_lease_names_the_active_host(case: Description, lease_holder: str | None) -> None:
    if case["guard"]:
        assert lease_holder == case["active"]
    else:
        assert lease_holder is None, "a backend without the guard takes no lease"
