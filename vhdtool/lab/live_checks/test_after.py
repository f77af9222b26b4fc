"""After a case: nothing of it is left on the hosts but the image."""

import pytest
from testinfra.host import Host

from vhdtool.lab.live_checks.plugin import Description, guests, pids

pytestmark = pytest.mark.after


def test_no_guest_is_left(host: Host, case: Description, expected: Description) -> None:
    assert guests(host, case, expected) == []


@pytest.mark.parametrize("program", ["vhdtool.tapdisk", "nbd-client"])
def test_no_process_is_left(host: Host, expected: Description, program: str) -> None:
    assert pids(host, expected, program) == []


def test_no_socket_is_left(host: Host, expected: Description) -> None:
    left = host.check_output("find %s -type s", expected["private_dir"])
    assert not left, f"sockets left: {left}"


def test_the_private_directory_is_private(host: Host, expected: Description) -> None:
    assert host.file(expected["private_dir"]).mode == 0o700


def test_the_image_is_still_shared(case: Description, hosts: list[Host]) -> None:
    sizes = {host.backend.get_hostname(): host.file(case["image"]).size for host in hosts}
    assert len(set(sizes.values())) == 1, f"the hosts see different files: {sizes}"


def test_no_lease_is_held(lease_holder: str | None) -> None:
    assert lease_holder is None
