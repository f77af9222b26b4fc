"""A SCSI-3 persistent reservation of a LUN as a lease backend.

Type 3, exclusive access: until the holder releases it, the target refuses every read and write of
another session, also from hosts that know no leases. It outlives a broken session and a dead
process. Then it is preempted with a proof that the holder is gone, or with --force. Source: SPC-3,
5.6.
"""

import contextlib
import os
import secrets
import struct
import zlib

from vhdtool.errors import ActivationRefused, LeaseLost, VhdtoolError
from vhdtool.leases.external import HeldByAnother
from vhdtool.leases.owner import Owner
from vhdtool.storage.scsi import Lun, ScsiError, Session

_IN, _OUT = 0x5E, 0x5F
_READ_KEYS, _READ_RESERVATION = 0, 1
_MOST_KEYS = 64
_REGISTER, _RESERVE, _RELEASE, _PREEMPT, _PREEMPT_AND_ABORT, _REGISTER_ANEW = 0, 1, 2, 4, 5, 6
_TYPED = (_RESERVE, _RELEASE, _PREEMPT, _PREEMPT_AND_ABORT)
EXCLUSIVE_ACCESS = 3


class ReservationBackend:
    """The reservation of one LUN, with a new key each time that it is acquired.

    The key begins with a mark of the process, so that a proof that one process is gone preempts no
    other: the epoch record may be old, or one that only this host sees.
    """

    kind, forcible = "scsi", True

    def __init__(self, lun: Lun, owner: Owner) -> None:
        self.lun = lun
        self._mark = mark_of(owner)
        self._session: Session | None = None
        self._key = 0
        self._left: int | None = None
        """The key of a reservation of ours whose release failed."""

    def acquire(self, force: bool, gone: Owner | None) -> None:
        self.close()
        try:
            self._session = Session.of(self.lun)
        except ScsiError as error:
            raise ActivationRefused(str(error)) from None
        self._key = self._mark << 32 | secrets.randbits(32)
        try:
            self._out("register", _REGISTER_ANEW, 0, self._key)
            self._reserve(force, None if gone is None else mark_of(gone))
        except BaseException as error:
            with contextlib.suppress(VhdtoolError):
                self._out("unregister", _REGISTER, self._key, 0)
            self.close()
            if isinstance(error, ScsiError):
                raise ActivationRefused(str(error)) from None
            raise

    def _reserve(self, force: bool, gone: int | None) -> None:
        try:
            self._out("reserve it", _RESERVE, self._key, 0)
            return
        except ScsiError as error:
            if not error.conflict:
                raise
        other = self._reservation()
        if other is None or not (force or other[0] >> 32 == gone or other[0] == self._left):
            raise HeldByAnother(
                f"{self.lun} is reserved by another initiator"
                + (f" (key {other[0]:#x}, type {other[1]})" if other is not None else "")
            )
        try:
            # Aborted: a write that the other sent must not be made after we have read.
            self._out("preempt the reservation", _PREEMPT_AND_ABORT, self._key, other[0])
        except ScsiError as error:
            if error.conflict:
                raise
            # tgtd, for one, does not support it.
            self._out("preempt the reservation", _PREEMPT, self._key, other[0])

    def check(self) -> None:
        if self._session is None:
            raise LeaseLost(f"{self.lun}: we have not reserved it")
        try:
            now = self._reservation()
        except ScsiError as error:
            raise LeaseLost(str(error)) from None
        if now != (self._key, EXCLUSIVE_ACCESS):
            who = "nobody" if now is None else f"key {now[0]:#x}"
            raise LeaseLost(f"{self.lun}: we had it reserved, now {who} has")

    def release(self) -> None:
        """Releases the LUN, and logs out unless this process uses the session elsewhere."""
        if self._session is None:
            return
        try:
            self._out("release it", _RELEASE, self._key, 0)
            self._out("unregister", _REGISTER, self._key, 0)
        except ScsiError:
            self._left = self._key
            raise
        finally:
            self.close()

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _reservation(self) -> tuple[int, int] | None:
        assert self._session is not None
        return _reservation(self._session)

    def _out(self, doing: str, action: int, key: int, new_key: int) -> None:
        assert self._session is not None
        kind = EXCLUSIVE_ACCESS if action in _TYPED else 0
        cdb = struct.pack(">BBBxxxxHx", _OUT, action, kind, 24)
        self._session.command(doing, cdb, send=struct.pack(">QQ8x", key, new_key))


def _reservation(session: Session) -> tuple[int, int] | None:
    """Returns (key, type) of the reservation, or None."""
    cdb = struct.pack(">BBxxxxxHx", _IN, _READ_RESERVATION, 24)
    raw = session.command("read its reservation", cdb, receive=24)
    length, key, kind = struct.unpack(">4xIQ5xB2x", raw)
    return (key, kind & 0xF) if length >= 16 else None


def registrations(url: str) -> list[str]:
    """Describes the keys that are registered at a LUN, and its reservation, a line each.

    Raises ScsiError when the target does not answer.
    """
    session = Session.of(Lun.parse(url))
    try:
        size = 8 + 8 * _MOST_KEYS
        cdb = struct.pack(">BBxxxxxHx", _IN, _READ_KEYS, size)
        raw = session.command("read its keys", cdb, receive=size)
        (length,) = struct.unpack_from(">4xI", raw)
        keys = struct.unpack_from(f">{min(length // 8, _MOST_KEYS)}Q", raw, 8)
        now = _reservation(session)
    finally:
        session.close()
    lines = [f"key {key:#x} is registered" for key in keys]
    return lines if now is None else [*lines, f"reserved by key {now[0]:#x}, type {now[1]}"]


def mark_of(owner: Owner) -> int:
    """Returns 32 bits, not zero, by which a reservation's key identifies its process."""
    text = f"{owner.boot} {owner.pid} {owner.start} {owner.host}"
    return zlib.crc32(os.fsencode(text)) or 1
