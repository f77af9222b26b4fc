"""SCSI commands to a LUN over iSCSI, through the system's libiscsi and without the kernel.

A process has one session with a LUN: the target grants a persistent reservation to a session (an
I_T nexus), so lease and data must use the same one. A lost session stays lost, as a new one would
have another identity.
Source of the commands: SPC-3 and SBC-3; of the calls: libiscsi's iscsi.h and scsi-lowlevel.h.
"""

import ctypes
import errno
import os
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from vhdtool.errors import UsageError
from vhdtool.storage.base import StorageError

TIMEOUT = 10
"""Seconds for a command, after which the session counts as lost."""
_LIBRARIES = ("libiscsi.so.7", "libiscsi.so.8", "libiscsi.so.9", "libiscsi.so.10", "libiscsi.so")
_GOOD, _CHECK_CONDITION, _CONFLICT = 0, 2, 0x18
_UNIT_ATTENTION = 6
_RESERVATIONS_CHANGED = (0x2A03, 0x2A04, 0x2A05)
_SENSE = struct.Struct("=ii")
_SENSE_AT = 52
"""Offset of key and code within struct scsi_task; the status is at its start."""
_NONE, _READ, _WRITE = 0, 1, 2
_NORMAL_SESSION = 2
_URL = re.compile(
    r"iscsi:/{1,2}(?:(?P<user>[^/@%]+)%(?P<secret>[^/@]*)@)?"
    r"(?P<portal>(?:\[[0-9A-Fa-f:]+\]|[^/\[\]@:]+)(?::(?P<port>\d+))?)/(?P<target>[^/]+)/(?P<lun>\d{1,5})"
)


@dataclass(frozen=True)
class Lun:
    """The address of a LUN. `portal` is HOST or HOST:PORT."""

    portal: str
    target: str
    number: int
    login: tuple[str, str] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> "Lun":
        """Parse `iscsi://[USER%SECRET@]HOST[:PORT]/TARGET/LUN`, or the same with one slash.

        Raises UsageError.
        """
        found = _URL.fullmatch(text)
        if found is not None and not re.fullmatch("[!-~]+", found["portal"] + found["target"]):
            found = None
        if found is None or not 0 < int(found["port"] or 3260) < 1 << 16:
            shown = re.sub("%[^@]*@", "%...@", text) or "iSCSI"
            raise UsageError(
                f"{shown}: write iscsi://HOST[:PORT]/TARGET/LUN, for example "
                "iscsi://10.0.0.1/iqn.2026-01.org.example:disks/1"
            )
        login = (found["user"], found["secret"]) if found["user"] else None
        # The default port is left out, since two spellings would be two sessions.
        portal = found["portal"].removesuffix(":3260")
        return cls(portal, found["target"], int(found["lun"]), login)

    def __str__(self) -> str:
        return f"iscsi://{self.portal}/{self.target}/{self.number}"


class ScsiError(StorageError):
    """A command failed. `conflict`: another initiator has the LUN reserved."""

    def __init__(self, name: str, doing: str, why: str, conflict: bool = False) -> None:
        super().__init__(name, doing, errno.EBUSY if conflict else errno.EIO, why)
        self.conflict = conflict


class _Data(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("data", ctypes.c_void_p))


class Session:
    """One login to a LUN, from `Session.of` to as many `close` calls. Safe to share."""

    _open: "dict[Lun, Session]" = {}  # noqa: RUF012 - guarded by the lock below
    _opening = threading.Lock()

    @classmethod
    def of(cls, lun: Lun) -> "Session":
        """The process's session with that LUN. Raises ScsiError, UsageError without libiscsi."""
        with cls._opening:
            session = cls._open.get(lun)
            if session is None or session.lost:
                session = cls._open[lun] = cls(lun)
            session._users += 1
            return session

    def __init__(self, lun: Lun) -> None:
        self.lun = lun
        self.lost = ""
        """Why the session cannot be used any more, or empty."""
        self._users = 0
        self._lock = threading.Lock()
        self._library = _library()
        name = initiator_name().encode()
        self._context = ctypes.c_void_p(self._library.iscsi_create_context(name))
        self._login()

    def _login(self) -> None:
        lib, context = self._library, self._context
        lib.iscsi_set_targetname(context, self.lun.target.encode())
        lib.iscsi_set_session_type(context, _NORMAL_SESSION)
        lib.iscsi_set_noautoreconnect(context, 1)
        lib.iscsi_set_timeout(context, TIMEOUT)
        if self.lun.login is not None:
            lib.iscsi_set_initiator_username_pwd(context, *map(os.fsencode, self.lun.login))
        if lib.iscsi_full_connect_sync(context, self.lun.portal.encode(), self.lun.number):
            why = _unreachable(self.lun.portal) or self._error()
            self._break(why)
            raise ScsiError(str(self.lun), "log in", why)

    def _error(self) -> str:
        text = self._library.iscsi_get_error(self._context)
        return " ".join((text or b"no reason given").decode(errors="replace").split())

    def command(
        self,
        doing: str,
        cdb: bytes,
        receive: int = 0,
        send: bytes | bytearray | memoryview | None = None,
        writes: bool = False,
    ) -> bytes:
        """Run one command; return the data that it receives. Raises ScsiError.

        After a unit attention the command is sent again, except where it `writes` and reservations
        have changed meanwhile.
        """
        for _ in range(4):
            status, sense, code, data, text = self._run(doing, cdb, receive, send)
            if status == _GOOD:
                return data
            changed = sense == _UNIT_ATTENTION and code in _RESERVATIONS_CHANGED
            if status == _CONFLICT or (writes and changed):
                why = "another initiator has it reserved"
                raise ScsiError(str(self.lun), doing, why, conflict=True)
            if status != _CHECK_CONDITION or sense != _UNIT_ATTENTION:
                break
        raise ScsiError(str(self.lun), doing, text)

    def _run(
        self, doing: str, cdb: bytes, receive: int, send: bytes | bytearray | memoryview | None
    ) -> tuple[int, int, int, bytes, str]:
        """Return (status, sense key, sense code, data received, the library's message)."""
        lib = self._library
        length = receive if send is None else len(send)
        direction = _WRITE if send is not None else _READ if receive else _NONE
        inward = ctypes.create_string_buffer(receive) if receive else None
        outward = sent = None
        if send is not None:
            sent = ctypes.create_string_buffer(bytes(send), len(send))
            outward = _Data(len(send), ctypes.addressof(sent))
        with self._lock:
            if self.lost:
                raise ScsiError(str(self.lun), doing, self.lost)
            task = ctypes.c_void_p(lib.scsi_create_task(len(cdb), cdb, direction, length))
            if inward is not None:
                lib.scsi_task_add_data_in_buffer(task, receive, inward)
            started = monotonic()
            given = ctypes.byref(outward) if outward is not None else None
            done = lib.iscsi_scsi_command_sync(self._context, self.lun.number, task, given)
            status = ctypes.c_int.from_address(done).value if done else -1
            if status not in (_GOOD, _CHECK_CONDITION, _CONFLICT) and not 0 < status < 0x100:
                # The library may still use the buffers, so they must not be freed.
                self._leaked = (inward, outward, sent)
                silent = monotonic() - started >= TIMEOUT
                why = "does not answer" if silent else "has ended it"
                self._break(f"the session is lost: the target {why}")
                raise ScsiError(str(self.lun), doing, self.lost)
            key, code = _SENSE.unpack(ctypes.string_at(done + _SENSE_AT, _SENSE.size))
            text = self._error() if status else ""
            lib.scsi_free_scsi_task(task)
        return status, key, code, inward.raw if inward is not None else b"", text

    def _break(self, why: str) -> None:
        # The context is not destroyed: that would call back into a command that has returned.
        self.lost = why
        self._library.iscsi_disconnect(self._context)

    def close(self) -> None:
        """Release one use; the last one logs out."""
        with Session._opening:
            self._users -= 1
            if self._users:
                return
            if Session._open.get(self.lun) is self:
                del Session._open[self.lun]
            with self._lock:
                if not self.lost:
                    self.lost = "logged out"
                    self._library.iscsi_logout_sync(self._context)
                    self._library.iscsi_destroy_context(self._context)


def _unreachable(portal: str) -> str:
    """Why a connection fails; "" where it succeeds. The library gives no reason."""
    host, _, port = portal.rpartition(":") if re.search(r":\d+$", portal) else (portal, "", "3260")
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
    except (OSError, OverflowError) as error:
        return (isinstance(error, OSError) and error.strerror) or str(error)
    return ""


def _library() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        for call in ("iscsi_create_context", "scsi_create_task", "iscsi_scsi_command_sync"):
            getattr(library, call).restype = ctypes.c_void_p
        library.iscsi_get_error.restype = ctypes.c_char_p
        return library
    raise UsageError("iSCSI needs libiscsi, which is not installed (Debian: libiscsi7)")


def initiator_name(path: Path = Path("/etc/iscsi/initiatorname.iscsi")) -> str:
    """This host's name as an initiator: that of open-iscsi where it is configured."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith("InitiatorName="):
                return line.partition("=")[2].strip()
    except (OSError, UnicodeError):
        pass
    host = re.sub(r"[^a-z0-9.-]", "-", os.uname().nodename.lower())
    return f"iqn.2011-02.org.vhdtool:{host}"
