"""qemu-nbd as a child process: it opens a qcow2 image, and serves it to this process alone.

Its socket lies in a private directory, which is removed once the socket is open. It never outlives
this process: after a kill it must not write what it has in memory, as another host may have the
image then.
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

from vhdtool.errors import UnsupportedImage, UsageError, VhdtoolError
from vhdtool.nbd.client import NbdStorage
from vhdtool.storage import Storage, StorageError

START_TIMEOUT = 20.0
STOP_TIMEOUT = 60.0
EXIT_TIMEOUT = 5.0
_POLL_INTERVAL = 0.002
# A child gets its death signal when the thread that started it ends: this one never does.
_starter = ThreadPoolExecutor(1, thread_name_prefix="qemu-nbd")


class QemuNbd:
    """One image, open until `stop` or `kill`."""

    def __init__(self, file: Storage, *, locked: bool) -> None:
        """`file` may be closed afterwards: qemu-nbd opens it by its descriptor, not by its path.

        `locked`: takes QEMU's own lock on the file as well, against a QEMU without a lease.

        Raises UsageError for a storage without a descriptor, and VhdtoolError with the message of
        qemu-nbd when it cannot open the image.
        """
        self.path = file.name
        fd = file.fileno()
        if fd is None:
            raise UsageError(f"{file.name}: a qcow2 image must be a file or a block device")
        self._file = fd
        self._mode = [f"--cache={'none' if file.direct else 'writeback'}"]
        self._mode += [] if file.writable else ["--read-only"]
        self._socket_fd = -1
        self._child: subprocess.Popen[bytes] | None = None
        self._storage: NbdStorage | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="vhdtool-"))
        self._errors = open(self.folder / "errors", "w+b")  # noqa: SIM115 - closed by kill
        socket_path = self.folder / "nbd"
        try:
            self._child = child = _starter.submit(self._start, socket_path, locked).result()
            self._wait(child, socket_path)
            # Reached by its descriptor from now on, so that a kill leaves no directory behind.
            self._socket_fd = os.open(socket_path, os.O_PATH | os.O_CLOEXEC)
            shutil.rmtree(self.folder, ignore_errors=True)
            path_of_fd = Path(f"/proc/self/fd/{self._socket_fd}")
            self._storage = self._connected(child, path_of_fd)
        except BaseException:
            self.kill()
            raise

    @property
    def storage(self) -> NbdStorage:
        """The disk inside the image."""
        assert self._storage is not None
        return self._storage

    def _start(self, socket_path: Path, locked: bool) -> subprocess.Popen[bytes]:
        file = {"driver": "file", "filename": self._file_path()}
        file["locking"] = "auto" if locked else "off"
        options = json.dumps({"driver": "qcow2", "file": file})
        command = ["setpriv", "--pdeathsig", "KILL", "--", "qemu-nbd", f"--socket={socket_path}"]
        command += ["--persistent", "--shared=0", *self._mode]
        command += ["--discard=unmap", f"json:{options}"]
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[self._file],
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise UnsupportedImage(
                f"{self.path}: {error.filename} is not installed, and qcow2 is served by it "
                f"(Debian: qemu-utils, util-linux)"
            ) from None

    def _wait(self, child: subprocess.Popen[bytes], socket_path: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(socket_path))
                return
            if child.poll() is not None:
                raise self._refused(child)
            time.sleep(_POLL_INTERVAL)
        raise StorageError(self.path, "start qemu-nbd", errno.ETIMEDOUT)

    def _connected(self, child: subprocess.Popen[bytes], socket_path: Path) -> NbdStorage:
        """Connect; qemu-nbd listens before it opens the image, and exits when it cannot."""
        try:
            return NbdStorage(socket_path, self.path)
        except StorageError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(EXIT_TIMEOUT)
                raise self._refused(child) from None
            raise

    def _refused(self, child: subprocess.Popen[bytes]) -> VhdtoolError:
        return VhdtoolError(f"{self.path}: qemu-nbd cannot open it: {self._message(child)}")

    def _message(self, child: subprocess.Popen[bytes]) -> str:
        """The end of what qemu-nbd wrote to stderr, or its exit code."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        text = " ".join(lines[-2:]) or f"it ended with {child.returncode}"
        text = re.sub(r"Failed to blk_new_open '.*?': ", "", text.removeprefix("qemu-nbd: "))
        return text.replace(self._file_path(), self.path)

    def _file_path(self) -> str:
        """The path by which the child opens the file that it inherits."""
        return f"/proc/self/fd/{self._file}"

    def stop(self) -> None:
        """End it cleanly, so that it writes what it has in memory. Raises StorageError."""
        child = self._child
        assert child is not None
        self.storage.close()
        child.terminate()
        try:
            code = child.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise StorageError(self.path, "have qemu-nbd close it", errno.ETIMEDOUT) from None
        if code:
            raise VhdtoolError(f"{self.path}: qemu-nbd did not close it: {self._message(child)}")

    def kill(self) -> None:
        """End it at once, whatever it still had to write. Does nothing when it has ended."""
        child = self._child
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()
        if self._storage is not None:
            self._storage.close()
        self._clear()

    def _clear(self) -> None:
        self._errors.close()
        fd, self._socket_fd = self._socket_fd, -1
        if fd >= 0:
            os.close(fd)
        shutil.rmtree(self.folder, ignore_errors=True)
