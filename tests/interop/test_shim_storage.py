"""What storage does to an image: no room, unreadable, read-only, hung, gone; clocks that jump.

Real file systems in mount namespaces of their own; tests/unit has the same through the seam.
"""

import errno
import glob
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from tests.support.kernel_mount import Mount, mounted
from tests.support.nbd_raw import Client
from tests.support.shim_process import MIB, ROOT, Served, run, serving
from vhdtool.cli.vhd_util.main import run as vhd_util
from vhdtool.image.chain.open import open_chain
from vhdtool.image.check.image import check
from vhdtool.image.create.empty import create_dynamic
from vhdtool.nbd import protocol as wire
from vhdtool.storage import FileStorage
from vhdtool.tapdisk.claim import LEASE_CHECK

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
SIZE = 64 * MIB
FLUSH = (wire.CMD_FLUSH, 0, 0)


def piece(number: int) -> bytes:
    return bytes([number + 1]) * MIB


def write(client: Client, *numbers: int, flags: int = 0) -> list[int]:
    """Writes the pieces of a MiB, each at its place; the errno of each."""
    return [client.write(number * MIB, piece(number), flags) for number in numbers]


def verdict(image: Path) -> int:
    with FileStorage(image) as storage:
        return check(storage).exit_code


def holds(image: Path, numbers: list[int]) -> None:
    """Every piece is in the image."""
    with open_chain(image) as reader:
        lost = [number for number in numbers if reader.read(number * MIB, MIB) != piece(number)]
    assert lost == []


class Place:
    """A shared directory on a file system that a test can hurt, and a server of an image there."""

    def __init__(self, mount: Mount, folder: Path) -> None:
        self.mount, self.folder = mount, folder
        self.image = mount.where / "d.vhd"
        self.seen = mount.seen / "d.vhd"
        create_dynamic(self.seen, SIZE)

    def serving(self, *options: str, status: int = 0) -> AbstractContextManager["Served"]:
        where = ("--socket", str(self.folder / "s"), *options)
        return serving(
            self.image,
            *where,
            prefix=self.mount.words(),
            errors=self.folder / "err",
            status=status,
        )

    def client(self) -> "closing[Client]":
        return closing(Client(self.folder / "s", structured=True))


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Place]:
    with mounted(tmp_path / "m", "-t", "tmpfs", "-o", "size=24m", "none") as mount:
        yield Place(mount, tmp_path)


@contextmanager
def ext4(folder: Path, megabytes: int, backing: str = "100%", sector: int = 512) -> Iterator[Place]:
    """An ext4 of that size in a sparse file on a tmpfs of the size `backing`: thin storage.

    Then without a journal: one that cannot be written turns it read-only, which is another test.
    Only to be seen to fail: Linux' loop driver calls a write done of which half found no room, so
    of thin storage under direct I/O nothing can be proven here.
    """
    with mounted(folder / "back", "-t", "tmpfs", "-o", f"size={backing}", "none") as mount:
        file, where = folder / "back/fs", folder / "m"
        where.mkdir()
        mount.run("truncate", "-s", f"{megabytes}M", str(file))
        lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
        journal = "has_journal" if backing == "100%" else "^has_journal"
        words = ("-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", journal, "-E", lazy)
        mount.run("mke2fs", *words, str(file))
        loop = ("losetup", "--find", "--show", "--sector-size", str(sector), str(file))
        name = mount.run(*loop).strip()
        try:
            mount.run("mount", name, str(where))
        finally:
            # It goes when it is mounted no more.
            mount.run("losetup", "--detach", name)
            Path(f"{name}.lease").unlink(missing_ok=True)
        mount.where = where
        yield Place(mount, folder)


def fill_until_full(place: Place, more: Callable[[], None], *options: str) -> None:
    """Writes until there is no room, makes some, writes the rest: all of it has to be there."""
    with place.serving(*options) as served, place.client() as client:
        told = write(client, *range(48))
        assert set(told) == {0, errno.ENOSPC}
        assert "No space left" in client.message
        acked = [number for number, error in enumerate(told) if not error]
        assert client.ask(*FLUSH)[0] == 0
        assert all(client.read(number * MIB, MIB) == piece(number) for number in acked)
        assert served.process.poll() is None
        more()
        assert set(write(client, *range(48))) == {0}
        assert client.ask(*FLUSH)[0] == 0
    assert verdict(place.seen) == 0
    holds(place.seen, list(range(48)))


def test_a_full_tmpfs_is_told_and_made_larger_goes_on(tmpfs: Place) -> None:
    enlarge = ("mount", "-o", "remount,size=100m", str(tmpfs.mount.where))
    enlarged: list[object] = []
    fill_until_full(tmpfs, lambda: enlarged.append(tmpfs.mount.run(*enlarge)))


def test_a_full_ext4_goes_on_when_space_is_freed(tmp_path: Path) -> None:
    with ext4(tmp_path, 100) as place:
        other = place.mount.seen / "other"
        other.write_bytes(bytes(60 * MIB))
        fill_until_full(place, other.unlink)


def test_a_device_of_4k_sectors_is_served_by_the_page_cache(tmp_path: Path) -> None:
    """Image and epoch record: neither keeps to 4096 bytes."""
    with ext4(tmp_path, 100, sector=4096) as place:
        with place.serving(), place.client() as client:
            assert set(write(client, 0, 3, 30)) == {0}
            assert client.write(3 * MIB + 512, piece(3)[:512]) == 0
            assert client.read(30 * MIB + 512, 1024) == piece(30)[:1024]
        assert verdict(place.seen) == 0
        holds(place.seen, [0, 3, 30])


def test_data_that_the_page_cache_lost_is_never_called_durable(tmp_path: Path) -> None:
    """The kernel tells once that it could not write data back, and then forgets it: the flush of
    a second client would be granted over data that no disk has."""
    with ext4(tmp_path, 200, backing="20m") as place:
        with (
            place.serving("--cached", status=1) as served,
            place.client() as one,
            place.client() as two,
        ):
            assert set(write(one, *range(0, 48, 2))) == {0}
            assert set(write(two, *range(1, 48, 2))) == {0}
            said = [one.ask(*FLUSH)[0]]
            place.mount.run("mount", "-o", "remount,size=200m", str(tmp_path / "back"))
            said += [client.ask(*FLUSH)[0] for client in (two, one)]
            assert said == [errno.ENOSPC] * 3
        # It is not closed as if all were well: who opens it next has to look.
        assert "an earlier flush lost data" in served.log()[-1]


def test_a_file_system_that_turns_read_only(tmp_path: Path) -> None:
    with ext4(tmp_path, 100) as place:
        with place.serving(status=1) as served:
            with place.client() as client:
                assert set(write(client, *range(12), flags=wire.FLAG_FUA)) == {0}
                # What ext4 does by itself when its journal cannot be written.
                place.mount.run("mount", "-o", "remount,abort", str(place.mount.where))
                assert set(write(client, 8, 20, 30)) == {errno.EIO}
                assert "Read-only file system" in client.message
                assert client.ask(*FLUSH)[0] == errno.EIO
                assert client.read(3 * MIB, MIB) == piece(3)
            assert served.process.poll() is None
        assert "Read-only file system" in served.log()[-1]
        place.mount.run("umount", str(place.mount.where))
        place.mount.run("mount", "-o", "loop", str(tmp_path / "back/fs"), str(place.mount.where))
        assert verdict(place.seen) in (0, 3)
        # The holder has gone without giving the lease up, on this host: that is proof enough.
        with place.serving() as served, place.client() as client:
            assert set(write(client, 20, 30)) == {0}
        assert verdict(place.seen) == 0
        holds(place.seen, [*range(12), 20, 30])


@contextmanager
def device(backing: Path, size: int) -> Iterator[str]:
    """A block device whose data is in a file. What is cut off from that cannot be read (EIO)."""
    backing.touch()
    os.truncate(backing, size)
    name = run("losetup", "--find", "--show", str(backing)).strip()
    try:
        yield name
    finally:
        run("losetup", "--detach", name)
        Path(f"{name}.lease").unlink(missing_ok=True)


def test_a_device_with_unreadable_sectors(tmp_path: Path) -> None:
    image, backing, where = tmp_path / "d.vhd", tmp_path / "back", tmp_path / "s"
    with device(backing, 80 * MIB) as name:
        image.symlink_to(name)
        assert vhd_util(["create", "-n", name, "-s", "64"]) == 0
        with serving(image, "--socket", str(where)) as served:
            with closing(Client(where, structured=True)) as client:
                assert set(write(client, *range(0, 32, 2))) == {0}
                assert client.ask(*FLUSH)[0] == 0
                rest = backing.read_bytes()[20 * MIB :]
                os.truncate(backing, 20 * MIB)
                told = {n: client.ask(wire.CMD_READ, n * MIB, MIB) for n in range(0, 32, 2)}
                good = [n for n, (error, data) in told.items() if data == piece(n)]
                bad = [n for n, (error, _) in told.items() if error == errno.EIO]
                assert (len(good) >= 8, len(bad) >= 4) == (True, True)
                assert len(good) + len(bad) == len(told)
                assert "Input/output error" in client.message
                assert served.process.poll() is None
                with backing.open("ab") as file:
                    file.write(rest)
                assert client.read(bad[0] * MIB, MIB) == piece(bad[0])
                assert write(client, 40) == [0]
            assert len(served.log()) == len(bad)
        assert verdict(image) == 0
        holds(image, [*range(0, 32, 2), 40])


def test_hung_storage_holds_up_only_who_writes(tmp_path: Path) -> None:
    with ext4(tmp_path, 100) as place:
        with place.serving() as served, place.client() as client, place.client() as other:
            assert set(write(client, 1, 2, flags=wire.FLAG_FUA)) == {0}
            place.mount.run("fsfreeze", "--freeze", str(place.mount.where))
            done = threading.Event()
            writer = threading.Thread(target=lambda: write(client, 3) and done.set())
            try:
                writer.start()
                assert other.read(MIB, MIB) == piece(1)
                assert not done.wait(0.5)
                assert served.process.poll() is None
            finally:
                place.mount.run("fsfreeze", "--unfreeze", str(place.mount.where))
            writer.join(20)
            assert done.is_set()
        assert verdict(place.seen) == 0
        holds(place.seen, [1, 2, 3])


@pytest.mark.parametrize("how", ["umount", "rename"])
def test_a_shared_directory_that_vanishes_fences(tmpfs: Place, how: str) -> None:
    inner = tmpfs.mount.seen / "inner"
    inner.mkdir()
    image = tmpfs.mount.where / "inner/d.vhd"
    create_dynamic(inner / "d.vhd", SIZE)
    kept = ("bash", "-c", f"cd {tmpfs.mount.where}/inner && exec sleep 1000")
    keeper = subprocess.Popen(tmpfs.mount.words(*kept))
    where = ("--socket", str(tmpfs.folder / "s"))
    prefix, errors = tmpfs.mount.words(), tmpfs.folder / "err"
    try:
        with (
            serving(image, *where, status=1, prefix=prefix, errors=errors) as served,
            tmpfs.client() as client,
        ):
            assert set(write(client, 1, 2, flags=wire.FLAG_FUA)) == {0}
            if how == "umount":
                tmpfs.mount.run("umount", "--lazy", str(tmpfs.mount.where))
            else:
                inner.rename(inner.with_name("away"))
            time.sleep(2 * LEASE_CHECK)  # The check before is out of date then.
            assert write(client, 3) == [errno.EIO]
            assert client.ask(wire.CMD_READ, MIB, 512)[0] == errno.EIO
            assert served.process.poll() is None
            assert any("fenced" in line for line in served.log())
        # Nothing was written after that, and what was acknowledged is there.
        found = Path(f"/proc/{keeper.pid}/cwd/d.vhd")
        assert verdict(found) in (0, 3)
        holds(found, [1, 2])
    finally:
        keeper.kill()
        keeper.wait()


def replaced(lease: Path) -> None:
    copy = lease.with_name("copy")
    copy.write_bytes(lease.read_bytes())
    copy.rename(lease)


def of_another(lease: Path) -> None:
    raw = lease.read_bytes()
    record = json.loads(raw[:512].rstrip(b"\0 \n"))
    record["holder"]["host"] = "another"
    with lease.open("r+b") as file:
        file.write(json.dumps(record).encode().ljust(511) + b"\n")


def overwritten(lease: Path) -> None:
    with lease.open("r+b") as file:
        file.write(b"by hand")


def emptied(lease: Path) -> None:
    os.truncate(lease, 0)


@pytest.mark.parametrize("by_hand", [replaced, of_another, overwritten, emptied])
def test_a_lease_that_somebody_touches_fences(
    tmp_path: Path, by_hand: Callable[[Path], None]
) -> None:
    image, where = tmp_path / "d.vhd", tmp_path / "s"
    create_dynamic(image, SIZE)
    with serving(image, "--socket", str(where), status=1) as served:
        with closing(Client(where, structured=True)) as client:
            assert set(write(client, 1, 2, flags=wire.FLAG_FUA)) == {0}
            before = image.stat()
            by_hand(tmp_path / "d.vhd.lease")
            time.sleep(2 * LEASE_CHECK)  # The check before is out of date then.
            assert write(client, 1, 3) == [errno.EIO] * 2
            assert client.ask(wire.CMD_READ, MIB, 512)[0] == errno.EIO
            assert served.process.poll() is None
        after = image.stat()
        assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    assert sum("fenced" in line for line in served.log()) == 1
    assert verdict(image) == 3
    holds(image, [1, 2])


def test_the_wall_clock_may_jump(tmp_path: Path) -> None:
    """Ten years ahead and twenty back, while it serves, under a second shim's eyes."""
    (library,) = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    image, where, clock = tmp_path / "d.vhd", tmp_path / "s", tmp_path / "clock"
    create_dynamic(image, SIZE)
    clock.write_text("+0")
    fake = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    events = tmp_path / "events"
    words = ("--socket", str(where), "--events", str(events))
    with serving(image, *words, env=fake) as served:
        with closing(Client(where)) as client:
            for number, jump in enumerate(("+0", "+3650d", "-3650d", "+0")):
                clock.write_text(jump)
                time.sleep(1.5 * LEASE_CHECK)  # The next request checks the lease.
                # Backwards, for then each one needs a place, and tells when it got it.
                assert write(client, 6 - 2 * number, flags=wire.FLAG_FUA) == [0]
                other = subprocess.run(
                    [sys.executable, "-m", "vhdtool", "serve", str(image), "--socket", f"{where}2"],
                    capture_output=True, text=True, check=False,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )  # fmt: skip
                assert (other.returncode, "is held by" in other.stderr) == (1, True)
        assert served.log() == []
    stamps = [json.loads(line)["wall"] for line in events.read_text().splitlines()]
    # The clock did jump, both ways.
    assert max(stamps) - min(stamps) > 15 * 365 * 86400
    assert stamps != sorted(stamps)
    assert verdict(image) == 0
    holds(image, [0, 2, 4, 6])


def test_another_time_namespace_proves_nothing_about_the_holder(tmp_path: Path) -> None:
    """There every process seems to have started at another time, the living holder too."""
    image, where = tmp_path / "d.vhd", tmp_path / "s"
    create_dynamic(image, SIZE)
    with serving(image, "--socket", str(where)):
        words = ["unshare", "--time", "--boottime", "100000", "--monotonic", "100000"]
        out = run(
            "env", f"PYTHONPATH={ROOT}", *words, sys.executable, "-m", "vhdtool", "serve",
            str(image), "--socket", f"{where}2", check=False,
        )  # fmt: skip
        assert "the lease is held by" in out
