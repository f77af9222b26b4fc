"""sanlock as a lease backend: its daemon holds the lease for this process, on shared storage.

The daemon frees the lease when this process ends, and gives it to another host only when that
host's daemon has proven, by missed renewals, that this host is dead. When it cannot renew it sends
us TERM, and the image is closed in time. This module uses the daemon's socket and not its library,
which has no timeout: a stopped daemon would hang every request.
Source: sanlock(8); sanlock.h, sanlock_sock.h and client.c of sanlock 3.8.
"""

import errno
import os
import re
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from vhdtool.errors import ActivationRefused, LeaseLost, UsageError
from vhdtool.leases.external import HeldByAnother
from vhdtool.leases.owner import Owner

_MAGIC, _VERSION = 0x04282010, 1
_HEADER = struct.Struct("=8I")
"""magic, version, command, flags, length, seq, data, data2"""
_RESOURCE = struct.Struct("=48s48sQQIIII")
"""lockspace, name, lver, data64, data32, unused, flags, number of disks"""
_DISK = struct.Struct("=1024sQII")
_OPTIONS = struct.Struct("=48sII")
_REGISTER, _ACQUIRE, _RELEASE, _INQUIRE = 1, 7, 8, 9
_SELF = 0xFFFFFFFF
_HELD = (-errno.EEXIST, -243, -244, -245, -247)
"""Another process of this host has it, or another host that is not proven dead."""
_NOT_JOINED = (-errno.ENOSPC, -241)
_NOT_MADE = (-errno.ENOENT, -223)
TIMEOUT = 10.0
"""Seconds for a reply without disk I/O; far less than a host needs to count as dead."""
ACQUIRE_TIMEOUT = 200.0
"""Seconds for a lease: the daemon may wait for proof that its last holder is dead (140)."""
NAME = 48
"""Bytes of a lockspace's or a resource's name."""
_OFFSET = re.compile("[0-9]{1,18}")


@dataclass(frozen=True)
class Resource:
    """One lease of sanlock, at `offset` in bytes of `path` on the shared storage."""

    lockspace: str
    name: str
    path: str
    offset: int = 0

    @classmethod
    def parse(cls, text: str) -> "Resource":
        """Parses a RESOURCE of sanlock(8): `LOCKSPACE:NAME:FILE[:OFFSET]`. Raises UsageError."""
        parts = text.split(":")
        names = [part for part in parts[:2] if 0 < len(os.fsencode(part)) <= NAME]
        offset = parts[3] if len(parts) == 4 else "0"
        if len(parts) not in (3, 4) or len(names) != 2 or not _OFFSET.fullmatch(offset):
            raise UsageError(
                f"sanlock:{text}: write sanlock:LOCKSPACE:NAME:FILE[:OFFSET], for example "
                "sanlock:lab:disk1:/srv/leases/disk1"
            )
        path = os.path.abspath(parts[2])
        if " " in text or not parts[2] or len(os.fsencode(path)) >= 1024:
            raise UsageError(f"sanlock:{text}: sanlock cannot use such a file name")
        return cls(parts[0], parts[1], path, int(offset))

    def __str__(self) -> str:
        return f"{self.lockspace}:{self.name}:{self.path}:{self.offset}"

    def packed(self) -> bytes:
        """Returns struct sanlk_resource, without its disk."""
        names = os.fsencode(self.lockspace), os.fsencode(self.name)
        return _RESOURCE.pack(*names, 0, 0, 0, 0, 0, 1)

    def disk(self) -> bytes:
        """Returns struct sanlk_disk."""
        return _DISK.pack(os.fsencode(self.path), self.offset, 0, 0)


class SanlockBackend:
    """One resource, held through the daemon whose socket is in `run_dir`."""

    kind, forcible = "sanlock", False

    def __init__(self, resource: Resource, run_dir: Path | None = None) -> None:
        self.resource = resource
        folder = run_dir or Path(os.environ.get("SANLOCK_RUN_DIR", "/run/sanlock"))
        self._path = folder / "sanlock.sock"
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._state = ""
        """Our lease as the daemon lists it, with its version at the end."""

    def acquire(self, force: bool, gone: Owner | None) -> None:
        del gone  # sanlock needs a proof of its own
        if force:
            raise ActivationRefused(
                "sanlock takes no --force: by itself it frees the lease of a process that has "
                "ended, and that of a host that is dead as soon as that is proven, after some 140 s"
            )
        with self._lock:
            self._connect()
            body = self.resource.packed() + self.resource.disk() + _OPTIONS.pack(b"vhdtool", 0, 0)
            try:
                result, _ = self._request(_ACQUIRE, body, 1, ACQUIRE_TIMEOUT)
                if result == 0:
                    self._state = self._listed()
                    return
            except OSError as error:
                self._drop()
                raise ActivationRefused(f"{self._path}: {_why(error)}") from None
            self._drop()
        if result in _HELD:
            lease = f"sanlock's lease {self.resource}"
            raise HeldByAnother(f"{lease} is held by another process or host; deactivate it there")
        raise ActivationRefused(self._refusal(result))

    def _refusal(self, result: int) -> str:
        lease, space = f"sanlock's lease {self.resource}", self.resource.lockspace
        if result in _NOT_JOINED:
            return (
                f"{lease}: this host has not joined the lockspace; "
                f"`sanlock client add_lockspace -s {space}:HOST_ID:FILE:0` does"
            )
        if result in _NOT_MADE:
            return f"{lease} is not there; `sanlock client init -r {self.resource}` makes it"
        return f"{lease}: sanlock refused it with {result}; see `sanlock client log_dump`"

    def check(self) -> None:
        with self._lock:
            if self._socket is None:
                raise LeaseLost("we do not hold sanlock's lease")
            try:
                now = self._listed()
            except OSError as error:
                self._drop()
                raise LeaseLost(f"{self._path}: {_why(error)}, so the lease is lost") from None
            if not now or now != self._state:
                self._drop()
                raise LeaseLost(f"sanlock has given our lease {self.resource} away or up")

    def _listed(self) -> str:
        """Returns our lease as the daemon lists it, `RESOURCE:LVER`; "" for none."""
        result, text = self._request(_INQUIRE, b"", 0, TIMEOUT)
        if result < 0:
            raise OSError(-result, f"sanlock replied {result}")
        leases = os.fsdecode(text.rstrip(b"\0")).split(" ")
        return next((one for one in leases if one.startswith(f"{self.resource}:")), "")

    def release(self) -> None:
        with self._lock:
            if self._socket is None:
                return
            try:
                self._request(_RELEASE, self.resource.packed(), 1, TIMEOUT)
            except OSError:
                pass  # the end of the connection releases it too
            self._drop()

    def close(self) -> None:
        with self._lock:
            self._drop()

    # The daemon's socket: its end releases every lease taken through it.

    def _connect(self) -> None:
        self._drop()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(TIMEOUT)
            connection.connect(str(self._path))
            connection.sendall(_message(_REGISTER, b"", 0, 0))
        except OSError as error:
            connection.close()
            raise ActivationRefused(
                f"{self._path}: {error.strerror or error}; is sanlock's daemon running?"
            ) from None
        self._socket = connection

    def _drop(self) -> None:
        connection, self._socket, self._state = self._socket, None, ""
        if connection is not None:
            connection.close()

    def _request(self, command: int, body: bytes, count: int, timeout: float) -> tuple[int, bytes]:
        """Returns (result, data behind the header). After an OSError the connection is unusable."""
        assert self._socket is not None
        self._socket.settimeout(timeout)
        self._socket.sendall(_message(command, body, count, _SELF))
        _, _, _, _, length, _, result, _ = _HEADER.unpack(self._receive(_HEADER.size))
        rest = self._receive(min(length - _HEADER.size, 1 << 20)) if length > _HEADER.size else b""
        return result - (1 << 32) if result >> 31 else result, rest

    def _receive(self, length: int) -> bytes:
        assert self._socket is not None
        data = b""
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise ConnectionResetError
            data += part
        return data


def _message(command: int, body: bytes, count: int, process: int) -> bytes:
    length = _HEADER.size + len(body)
    return _HEADER.pack(_MAGIC, _VERSION, command, 0, length, 0, count, process) + body


def _why(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "sanlock's daemon does not answer"
    if isinstance(error, ConnectionError):
        return "sanlock's daemon has ended"
    return error.strerror or str(error)
