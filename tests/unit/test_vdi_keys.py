"""The key file: changes happen wholly or not at all, and a damaged file is a clear refusal."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lease_suite import gone_owner
from tests.support.shims import owner
from vhdtool.errors import ActivationRefused, UsageError, VhdtoolError
from vhdtool.leases import owner as owners
from vhdtool.leases import shared_file
from vhdtool.leases.owner import Owner
from vhdtool.leases.shared_file import MUTEX
from vhdtool.storage import StorageError
from vhdtool.vdi.keys import SLOT, Key, KeyFile, KeyFileError, host_key, key_file, key_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.vhd.keys"


def add(path: Path, name: str, mode: str = "") -> None:
    file = KeyFile(path)
    with file.change() as keys:
        keys.add(name, owner("a"), mode)
    file.close()


def interrupted(path: Path) -> None:
    file = KeyFile(path)
    try:
        with file.change() as keys:
            keys.add("paused", owner("a"))
            raise KeyboardInterrupt
    finally:
        file.close()


def names(path: Path) -> list[str]:
    file = KeyFile(path)
    try:
        return list(file.read())
    finally:
        file.close()


def test_a_key_is_read_as_another_process_wrote_it(path: Path) -> None:
    add(path, "host_a", "RW")
    file = KeyFile(path)
    key = file.read()["host_a"]
    assert (key.mode, key.number, key.owner) == ("RW", 1, owner("a"))
    assert str(key) == "host_a (RW) of a (pid 1), key 1"
    file.close()


def test_without_a_file_there_are_no_keys_and_none_is_made(path: Path) -> None:
    assert names(path) == []
    assert not path.exists()


def test_a_change_that_fails_changes_nothing_and_leaves_no_file(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert not path.exists()


def test_a_look_for_keys_leaves_no_file(path: Path) -> None:
    file = KeyFile(path)
    with file.change() as keys:
        assert keys == {}
    file.close()
    assert not path.exists()


def test_numbers_rise_also_when_the_last_key_was_removed(path: Path) -> None:
    add(path, "host_a", "RW")
    file = KeyFile(path)
    with file.change() as keys:
        keys.drop(*keys.values())
    with file.change() as keys:
        keys.add("host_b", owner("b"), "RO")
    assert [key.number for key in file.read().values()] == [3]
    file.close()


def test_a_torn_change_has_not_happened(path: Path) -> None:
    for name in ("host_a", "paused", "relinking"):
        add(path, name)
    data = bytearray(path.read_bytes())
    # The third change is in the second slot.
    data[SLOT + 40 : SLOT + 60] = bytes(20)
    path.write_bytes(data)
    assert names(path) == ["host_a", "paused"]
    add(path, "activating")
    assert names(path) == ["host_a", "paused", "activating"]


@pytest.mark.parametrize("text", [b"garbage", b'{"keys": {}}', b"00000000 {}", b"\xff" * 9000])
def test_a_file_that_has_no_keys_is_refused_and_left_alone(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    file = KeyFile(path)
    with pytest.raises(KeyFileError, match="no key file, or a damaged one"):
        file.read()
    with pytest.raises(KeyFileError, match="then remove the file"), file.change():
        pass
    file.close()
    assert path.read_bytes() == text


def make_link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, make_link])
def test_what_is_no_file_is_refused(path: Path, make: Callable[[Path], object]) -> None:
    make(path)
    file = KeyFile(path)
    with pytest.raises(StorageError, match="key file"):
        file.read()
    file.close()


def test_without_space_there_is_no_key_and_no_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, end: int) -> bool:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(shared_file, "preallocate", full)
    with pytest.raises(StorageError, match="No space left on device"):
        add(path, "host_a", "RW")
    assert not path.exists()


def test_keys_that_are_there_can_be_removed_without_space(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both slots are allocated when the first key is written."""
    add(path, "host_a", "RW")
    assert os.stat(path).st_blocks * 512 >= 2 * SLOT


def test_a_process_that_keeps_the_file_locked_is_a_refusal_in_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_file, "MUTEX_PATIENCE", 0.05)
    stopped, file = KeyFile(path), KeyFile(path)
    assert stopped.try_lock(MUTEX)
    with pytest.raises(ActivationRefused, match="lock of this key file"), file.change():
        pass
    stopped.close()
    file.close()


def test_only_a_proof_makes_an_owner_gone(path: Path) -> None:
    file = KeyFile(path)
    with file.change() as keys:
        keys.add("host_a", gone_owner(), "RW")
        keys.add("host_b", Owner.here("b"), "RW")
        keys.add("host_c", owner("c"), "RW")
    keys = file.read()
    assert {name: key.state for name, key in keys.items()} == {
        "host_a": "gone",
        "host_b": "living",
        "host_c": "unknown",
    }
    assert [key.name for key in keys.gone()] == ["host_a"]
    file.close()


def test_a_key_of_this_machines_earlier_boot_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "machine_id", lambda: "machine")
    before = Owner("a", 1, 1, "boot/1", os.uname().nodename, "machine", since=1.0)
    assert Key("host_a", 1, before, "RW").state == "gone"
    later = Owner("a", 1, 1, "boot/1", os.uname().nodename, "machine", since=time.time())
    assert Key("host_a", 1, later, "RW").state == "unknown"


def test_more_keys_than_a_pool_has_hosts_are_refused(path: Path) -> None:
    file = KeyFile(path)
    with file.change() as keys:
        for number in range(64):
            keys.add(f"host_{number}", Owner.here(f"a-long-name-of-a-host-{number}"), "RO")
    more = {
        f"host_{number}": Key(f"host_{number}", 1, Owner.here("a"), "RO") for number in range(300)
    }
    with pytest.raises(VhdtoolError, match="too many keys"), file.change() as keys:
        keys.update(more)
    assert len(file.read()) == 64
    file.close()


def test_every_path_to_an_image_leads_to_the_same_keys(tmp_path: Path) -> None:
    (tmp_path / "link.vhd").symlink_to("disk.vhd")
    assert key_path(tmp_path / "link.vhd") == key_path(tmp_path / "disk.vhd")
    with pytest.raises(StorageError, match="key file"), key_file(tmp_path / "none/disk.vhd"):
        pass


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a\n", "x" * 65, "\udc80"])
def test_a_name_that_no_host_has_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="host's name"):
        host_key(name)
