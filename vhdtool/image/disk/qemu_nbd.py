"""qemu-nbd as a child: it opens a qcow2 image, and serves it to us alone.

Its socket is in a directory that only we can enter, and that goes once we know the socket. It
never outlives us: what it has not written when we are killed it must not write later, for another
host may have the image then.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vhdtool.errors import UnsupportedImage, VhdtoolError
from vhdtool.nbd.client import NbdStorage
from vhdtool.storage import FileStorage, StorageError

START_PATIENCE = 20.0
STOP_PATIENCE = 60.0
END_PATIENCE = 5.0
_PAUSE = 0.002
# A child's death signal follows the thread that started it: this one lives as long as we do.
_starter = ThreadPoolExecutor(1, thread_name_prefix="qemu-nbd")


class QemuNbd:
    """One image, open from here on until `stop` or `kill`. `storage` is the disk inside it."""

    def __init__(self, file: FileStorage, *, locked: bool) -> None:
        """`file` may be closed afterwards: qemu-nbd opens what it is, whatever its name leads to.

        `locked`: QEMU's own lock on the file as well, against a QEMU that knows of no lease.

        Raises VhdtoolError with what qemu-nbd says when it cannot open the image.
        """
        self.path = path = file.path
        self._file = file.fileno()
        self._mode = [f"--cache={'none' if file.direct else 'writeback'}"]
        self._mode += [] if file.writable else ["--read-only"]
        self._place = -1
        self.folder = Path(tempfile.mkdtemp(prefix="vhdtool-"))
        self._errors = open(self.folder / "errors", "w+b")  # noqa: SIM115 - closed by kill
        place = self.folder / "nbd"
        try:
            self._child = _starter.submit(self._start, place, locked).result()
            self._wait(place)
            # From here on it is reached by the descriptor: a kill leaves no directory behind.
            self._place = os.open(place, os.O_PATH | os.O_CLOEXEC)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.storage = self._connected(Path(f"/proc/self/fd/{self._place}"))
        except FileNotFoundError as error:
            self._clear()
            raise UnsupportedImage(
                f"{path}: {error.filename} is not installed, and qcow2 is served by it "
                f"(Debian: qemu-utils, util-linux)"
            ) from None
        except BaseException:
            self.kill()
            raise

    def _start(self, place: Path, locked: bool) -> subprocess.Popen[bytes]:
        file = {"driver": "file", "filename": self._handed_on()}
        file["locking"] = "auto" if locked else "off"
        options = json.dumps({"driver": "qcow2", "file": file})
        words = ["setpriv", "--pdeathsig", "KILL", "--", "qemu-nbd", f"--socket={place}"]
        words += ["--persistent", "--shared=0", *self._mode]
        words += ["--discard=unmap", f"json:{options}"]
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=[self._file],
            start_new_session=True,
        )

    def _wait(self, place: Path) -> None:
        deadline = time.monotonic() + START_PATIENCE
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(place))
                return
            if self._child.poll() is not None:
                raise self._refused()
            time.sleep(_PAUSE)
        raise StorageError(self.path, "start qemu-nbd", errno.ETIMEDOUT)

    def _connected(self, place: Path) -> NbdStorage:
        """It listens before it opens the image, and ends when it cannot."""
        try:
            return NbdStorage(place, self.path)
        except StorageError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(END_PATIENCE)
                raise self._refused() from None
            raise

    def _refused(self) -> VhdtoolError:
        return VhdtoolError(f"{self.path}: qemu-nbd cannot open it: {self._said()}")

    def _said(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        said = " ".join(lines[-2:]) or f"it ended with {self._child.returncode}"
        said = re.sub(r"Failed to blk_new_open '.*?': ", "", said.removeprefix("qemu-nbd: "))
        return said.replace(self._handed_on(), self.path)

    def _handed_on(self) -> str:
        """The file as the child has it."""
        return f"/proc/self/fd/{self._file}"

    def stop(self) -> None:
        """Ends it cleanly: it writes what it has in memory. Raises StorageError if it did not."""
        self.storage.close()
        self._child.terminate()
        try:
            code = self._child.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            raise StorageError(self.path, "have qemu-nbd close it", errno.ETIMEDOUT) from None
        if code:
            raise VhdtoolError(f"{self.path}: qemu-nbd did not close it: {self._said()}")

    def kill(self) -> None:
        """Ends it at once, whatever it still had to write. Does nothing when it has ended."""
        child = getattr(self, "_child", None)
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()
        if storage := getattr(self, "storage", None):
            storage.close()
        self._clear()

    def _clear(self) -> None:
        self._errors.close()
        place, self._place = self._place, -1
        if place >= 0:
            os.close(place)
        shutil.rmtree(self.folder, ignore_errors=True)
