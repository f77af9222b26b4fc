"""Errors: Python's classes where they are of one, errno, and a way through a process pool."""

import errno
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import vhdtool
from vhdtool.errors import LeaseLost, StateError
from vhdtool.nbd import protocol as wire
from vhdtool.nbd.backend import Backend
from vhdtool.nbd.requests import RequestHandler
from vhdtool.storage import FileStorage, StorageError
from vhdtool.storage.image_lock import ImageInUse
from vhdtool.storage.scsi import ScsiError

NUMBERS = {
    vhdtool.NotAVhd: errno.EINVAL,
    vhdtool.CorruptImage: errno.EUCLEAN,
    vhdtool.UncleanImage: errno.EUCLEAN,
    vhdtool.UnsupportedImage: errno.ENOTSUP,
    vhdtool.ImageExists: errno.EEXIST,
    vhdtool.UsageError: errno.EINVAL,
    vhdtool.ClosedError: errno.EBADF,
    vhdtool.SplitBrain: errno.ESTALE,
    LeaseLost: errno.ESTALE,
    StateError: errno.EINVAL,
    ImageInUse: errno.EBUSY,
}


@pytest.mark.parametrize("kind", NUMBERS, ids=lambda kind: kind.__name__)
def test_an_error_has_a_number_and_pickles(kind: type[vhdtool.VhdtoolError]) -> None:
    error = kind("a.vhd: what is wrong")
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert (type(one), str(one), one.errno) == (kind, "a.vhd: what is wrong", NUMBERS[kind])


def test_a_group_of_errors_is_caught_by_its_base() -> None:
    assert issubclass(vhdtool.CorruptImage, vhdtool.DamageError)
    assert issubclass(vhdtool.UncleanImage, vhdtool.DamageError)
    assert issubclass(ImageInUse, vhdtool.LockedError)
    assert issubclass(vhdtool.ClosedError, ValueError)
    assert issubclass(vhdtool.ImageExists, FileExistsError)


PYTHONS = [
    (errno.ENOENT, FileNotFoundError),
    (errno.EACCES, PermissionError),
    (errno.EPERM, PermissionError),
    (errno.EISDIR, IsADirectoryError),
    (errno.ENOTDIR, NotADirectoryError),
]


@pytest.mark.parametrize(("number", "python"), PYTHONS)
def test_a_storage_error_is_of_pythons_class(number: int, python: type[OSError]) -> None:
    error = StorageError("a.vhd", "open it", number)
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(one, python)
        assert isinstance(one, StorageError)
        assert isinstance(one, vhdtool.VhdtoolError)
        assert (one.errno, one.filename) == (number, "a.vhd")
        assert str(one) == str(error)
        assert str(one).startswith("a.vhd: cannot open it: ")
        # Events of a disk have it.
        assert type(one).__name__ == "StorageError"


def test_other_numbers_are_plain_storage_errors() -> None:
    assert type(StorageError("a", "flush it", errno.EIO)) is StorageError
    full = StorageError("a", "write", errno.ENOSPC)
    assert not isinstance(full, FileNotFoundError | PermissionError)
    assert "No space left" in str(full)


def test_a_refused_scsi_command_says_why_also_pickled() -> None:
    error = ScsiError("lun", "read it", "RESERVATION CONFLICT", conflict=True)
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert (str(one), one.errno) == ("lun: cannot read it: RESERVATION CONFLICT", errno.EBUSY)


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        vhdtool.open(tmp_path / "none.vhd")
    assert isinstance(caught.value, vhdtool.StorageError)
    assert caught.value.filename == str(tmp_path / "none.vhd")
    with pytest.raises(FileNotFoundError):
        vhdtool.check(tmp_path / "none.vhd")
    with pytest.raises(NotADirectoryError):
        FileStorage(__file__ + "/inside")
    with pytest.raises(IsADirectoryError, match="neither a file nor a block device"):
        vhdtool.open(tmp_path)


def test_a_file_that_cannot_be_made_has_its_own_name(tmp_path: Path) -> None:
    """It is written under another name first, which is no help to the user."""
    text = r"none/a\.vhd: cannot create it: No such file or directory"
    base, target = tmp_path / "base.vhd", tmp_path / "none" / "a.vhd"
    vhdtool.create(base, 1 << 20)
    with pytest.raises(FileNotFoundError, match=text):
        vhdtool.create(target, 1 << 20)
    with pytest.raises(FileNotFoundError, match=text):
        vhdtool.convert(base, target)
    with pytest.raises(FileNotFoundError, match=text):
        vhdtool.snapshot(base, target)


def test_a_process_pool_passes_an_error_on(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(vhdtool.info, tmp_path / "none.vhd")
        with pytest.raises(FileNotFoundError, match=r"none\.vhd: cannot open it"):
            future.result()


def test_zeroing_reports_the_write_that_failed(tmp_path: Path) -> None:
    """A StorageError is an OSError: it is not taken for one of the system's, and reworded."""

    class Full(FileStorage):
        def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            raise StorageError(self.name, "write there", errno.ENOSPC)

    with (
        Full(tmp_path / "a", create=True) as storage,
        pytest.raises(StorageError, match="cannot write there"),
    ):
        storage.zero(0, 4096)


def test_a_client_gets_the_whole_message_of_an_error() -> None:
    replies = RequestHandler(Backend(), structured=True, block_status=False)
    request = wire.Request(wire.CMD_READ, 0, 7, 0, 512)
    reply = replies.failed(request, StorageError("a.vhd", "read 512 bytes at 0", errno.ENOSPC))
    assert b"a.vhd: cannot read 512 bytes at 0" in reply
    assert errno.ENOSPC.to_bytes(4, "big") in reply
    damaged = replies.failed(request, vhdtool.CorruptImage("a.vhd: block 3 overlaps"))
    assert errno.EIO.to_bytes(4, "big") in damaged
