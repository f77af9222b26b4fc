"""After a case: nothing of it is left on the hosts but the image."""

from typing import Any

import pytest
from conftest import pids
from testinfra.host import Host

pytestmark = pytest.mark.after


@pytest.mark.parametrize("program", ["qemu-system-", "vhdtool.tapdisk"])
def test_no_process_is_left(host: Host, told: dict[str, Any], program: str) -> None:
    assert pids(host, program, told) == []


def test_no_socket_is_left(host: Host, told: dict[str, Any]) -> None:
    left = host.check_output("find %s -type s", told["private_dir"])
    assert not left, f"sockets left: {left}"


def test_the_private_directory_is_private(host: Host, told: dict[str, Any]) -> None:
    assert host.file(told["private_dir"]).mode == 0o700


def test_the_image_is_still_shared(case: dict[str, Any], hosts: dict[str, Host]) -> None:
    sizes = {name: host.file(case["image"]).size for name, host in hosts.items()}
    assert len(set(sizes.values())) == 1, f"the hosts see different files: {sizes}"


def test_no_lease_is_held(lease_holder: str | None) -> None:
    assert lease_holder is None
