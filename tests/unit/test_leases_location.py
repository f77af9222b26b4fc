"""Which file is the epoch record, and what stands in its place by mistake or malice."""

import errno
import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.holders import served
from tests.support.image_tools import clean
from tests.support.shims import owner
from vhdtool.cli.main import run
from vhdtool.errors import StateError, UsageError, VhdtoolError
from vhdtool.image.create.empty import create_dynamic
from vhdtool.leases import owner as owners
from vhdtool.leases import shared_file
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.lease import EpochLease, Lease, ReaderLease
from vhdtool.leases.location import existing_record, record_of
from vhdtool.storage import StorageError
from vhdtool.storage.image_lock import ImageInUse
from vhdtool.tapdisk.access import ImageOpener, Settings
from vhdtool.tapdisk.disk import TapDisk

SIZE = 4 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    create_dynamic(tmp_path / "disk.vhd", SIZE)
    return tmp_path / "disk.vhd"


def beside(image: Path) -> Path:
    return Path(f"{image}.lease")


def put(image: Path, what: str) -> None:
    """Something that is no record, where the record should be."""
    place = beside(image)
    if what == "pipe":
        os.mkfifo(place)
    elif what == "directory":
        place.mkdir()
    elif what == "endless":
        place.symlink_to("/dev/zero")
    elif what == "nowhere":
        place.symlink_to("/nonexistent/record")
    elif what == "image":
        os.link(image, place)
    elif what == "huge":
        with place.open("wb") as file:
            file.truncate(1 << 40)
    elif what == "nested":
        place.write_bytes(b"[" * 5000)
    else:
        place.write_text(json.dumps({"record": json.loads(what)}) + "\n")


@pytest.mark.parametrize(
    "what",
    [
        "pipe",
        "directory",
        "endless",
        "nowhere",
        "image",
        "huge",
        "nested",
        '"a\\u0000b"',
        '"relative"',
        '""',
        "7",
        "null",
        '"/dev/null/x"',
    ],
)
def test_what_is_no_record_is_one_line_and_changes_nothing(
    image: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(image, what)
    before = image.read_bytes(), sorted(os.listdir(image.parent))
    assert run(["fill", str(image)]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert str(image) in said or "/dev/null/x: cannot open the epoch record" in said
    with pytest.raises(VhdtoolError), served(image):
        pass
    assert run(["check", str(image)]) == 0
    assert (image.read_bytes(), sorted(os.listdir(image.parent))) == before
    clean(image)


def test_the_image_is_not_its_own_record(tmp_path: Path) -> None:
    """It begins with zeros, as a new record may."""
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(SIZE))
    with pytest.raises(UsageError, match="the image itself"):
        record_of(raw, raw)
    beside(raw).write_text(json.dumps({"record": str(raw)}))
    with pytest.raises(UsageError, match="the image itself"):
        existing_record(raw)


def test_another_disk_is_not_taken_for_a_new_record(tmp_path: Path) -> None:
    raw = tmp_path / "other.raw"
    raw.write_bytes(bytes(SIZE))
    with pytest.raises(VhdtoolError, match="is no epoch record"):
        EpochRecord(raw).read()
    vhd = tmp_path / "other.vhd"
    create_dynamic(vhd, SIZE)
    with pytest.raises(VhdtoolError, match="if it is nothing else"):
        EpochRecord(vhd).read()


def test_a_name_that_leaves_no_room_for_a_record_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 251}.vhd"
    create_dynamic(path, SIZE)
    assert existing_record(path) is None
    assert run(["fill", str(path)]) == 0
    with pytest.raises(StorageError, match="File name too long"), served(path):
        pass


def test_a_pipe_is_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "disk.vhd")
    for command in ("info", "check", "fill"):
        assert run([command, str(tmp_path / "disk.vhd")]) == 1
        assert "neither a file nor a block device" in capsys.readouterr().err


def test_a_refusal_on_a_full_file_system_leaves_no_record(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, length: int) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shared_file, "preallocate", full)
        with pytest.raises(StorageError, match="No space"), served(image):
            pass
    assert os.listdir(image.parent) == ["disk.vhd"]
    # One that was there stays, with all that it says.
    with served(image):
        pass
    known = beside(image).read_bytes()
    monkeypatch.setattr(shared_file, "preallocate", full)
    with pytest.raises(StorageError, match="No space"), served(image):
        pass
    assert beside(image).read_bytes() == known


def test_who_waits_for_a_record_that_goes_makes_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = EpochLease(EpochRecord(tmp_path / "r.lease"), owner("a"))
    second = EpochLease(EpochRecord(tmp_path / "r.lease"), owner("b"))

    def full(fd: int, length: int) -> bool:
        second.record.try_lock(0)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shared_file, "preallocate", full)
        with pytest.raises(StorageError):
            first.acquire()
    assert os.listdir(tmp_path) == []
    assert second.acquire() == 1
    with pytest.raises(VhdtoolError, match="held by b"):
        first.acquire()
    first.close()
    second.close()


def test_a_link_that_moved_is_not_opened_under_the_old_lease(image: Path, tmp_path: Path) -> None:
    other, link = tmp_path / "other.vhd", tmp_path / "link.vhd"
    create_dynamic(other, SIZE)
    with closing(EpochLease(EpochRecord(beside(other)), owner("far"))) as lease:
        lease.acquire()
    link.symlink_to(image)
    with served(link) as disk:
        disk.pause()
        link.unlink()
        link.symlink_to(other)
        with pytest.raises(StateError, match="another file than when it was attached"):
            disk.unpause()
        link.unlink()
        link.symlink_to(image)
        disk.unpause()


def attached(image: Path, record: Path | None, read_only: bool = False) -> TapDisk:
    def lease(path: Path) -> Lease:
        return ReaderLease() if read_only else EpochLease(EpochRecord(path), owner("beta"))

    disk = TapDisk(Settings(True, ImageOpener(), lease, lambda *_, **__: None, read_only))
    disk.attach(image, SIZE, record=record)
    return disk


def test_a_record_elsewhere_is_remembered_by_who_is_let_in(image: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    one, two = (attached(image, tmp_path / "r" / name) for name in "xy")
    reader = attached(image, tmp_path / "r" / "z", read_only=True)
    reader.activate()
    with pytest.raises(ImageInUse):
        one.activate()
    reader.detach()
    assert not beside(image).exists()
    two.activate()
    assert existing_record(image) == tmp_path / "r" / "y"
    two.deactivate()
    with pytest.raises(UsageError, match=r"its epoch record is .*/y"):
        one.activate()
    one.detach()
    two.detach()
    assert os.listdir(tmp_path / "r") == ["y"]


def test_a_holder_is_named_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(pid: int) -> int | None:
        raise FileNotFoundError(f"/proc/{pid}/stat")

    monkeypatch.setattr(owners, "process_start", none)
    assert owners.Owner.here("alpha").start == 0
