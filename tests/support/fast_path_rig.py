"""A disk on a real file, its server, and a client with many requests under way."""

import errno
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.nbd_raw import Client
from tests.support.shims import in_thread, owner, plain_bytes, verdict
from vhdtool.image.create.empty import create_dynamic
from vhdtool.leases.epoch_record import EpochRecord
from vhdtool.leases.lease import EpochLease, UnguardedLease
from vhdtool.nbd import fast_path
from vhdtool.nbd import protocol as wire
from vhdtool.nbd.server import NbdServer
from vhdtool.storage import MemoryStorage
from vhdtool.tapdisk.access import ImageOpener, Settings
from vhdtool.tapdisk.disk import TapDisk

BLOCK = 512 << 10
SIZE = 16 * BLOCK + 4096
"""The last block does not lie wholly within the disk."""


class Rig:
    """A disk on a real file, served; its events."""

    def __init__(self, folder: Path, direct: bool, guard: bool = True) -> None:
        self.path, self.direct, self.guard = folder / "disk.vhd", direct, guard
        self.events: list[dict[str, Any]] = []
        create_dynamic(self.path, SIZE, block_bytes=BLOCK)
        self.disk = self.another("alpha")
        self.server = NbdServer(self.disk.router, folder / "s.nbd")

    def another(self, host: str) -> TapDisk:
        def emit(event: str, **fields: Any) -> None:
            self.events.append({"event": event, **fields})

        kind = EpochLease if self.guard else UnguardedLease
        disk = TapDisk(
            Settings(
                guard=self.guard,
                open_storage=ImageOpener(self.direct),
                open_lease=lambda path: kind(EpochRecord(path), owner(host)),
                emit=emit,
                fast_path_gate=fast_path.new_gate,
            )
        )
        disk.attach(self.path, SIZE)
        return disk

    def thief(self) -> EpochLease:
        """The lease of a host that takes it by force, where no lock on the image keeps it out."""
        return EpochLease(EpochRecord(Path(f"{self.path}.lease")), owner("beta"))

    def client(self, structured: bool = False) -> Client:
        place = self.server.address
        assert isinstance(place, Path)
        return Client(place, structured)

    def content(self) -> bytes:
        """What the closed image holds; it must be consistent."""
        self.disk.detach(self.server.stop)
        image = MemoryStorage(self.path.read_bytes())
        assert verdict(image).exit_code == 0
        return plain_bytes(image)


class Pipe:
    """Many requests of one client under way; answers may come in any order."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.answers: dict[int, tuple[int, bytes]] = {}
        self._lengths: dict[int, int] = {}
        self._changed = threading.Condition()
        self._cookie = 0
        self.thread, self.outcome = in_thread(self._receive)

    def _receive(self) -> None:
        while True:
            cookie, error, data = self._answer()
            with self._changed:
                self.answers[cookie] = error, data
                self._changed.notify_all()

    def _answer(self) -> tuple[int, int, bytes]:
        take = self.client.take
        if not self.client.structured:
            _, error, cookie = wire.REPLY.unpack(take(16))
            return cookie, error, take(0 if error else self._lengths[cookie])
        data = b""
        while True:
            _, flags, kind, cookie, size = wire.CHUNK.unpack(take(20))
            body = take(size)
            if kind == wire.CHUNK_ERROR:
                return cookie, int.from_bytes(body[:4], "big"), body[6:]
            data += body[8:]
            if flags == wire.CHUNK_DONE:
                return cookie, 0, data

    def ask(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"") -> int:
        self._cookie += 1
        self._lengths[self._cookie] = length if command == wire.CMD_READ else 0
        raw = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, self._cookie, offset, length)
        self.client.socket.sendall(raw + data)
        return self._cookie

    def wait(self, cookie: int) -> tuple[int, bytes]:
        with self._changed:
            assert self._changed.wait_for(lambda: cookie in self.answers or self.outcome, 20), (
                f"no answer to request {cookie}"
            )
            return self.answers.pop(cookie)

    def close(self) -> None:
        self.client.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.client.socket.close()


class Model:
    """What the disk holds, and which sectors have a request under way."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.data = bytearray(SIZE)
        self.busy: set[int] = set()

    def free(self, longest: int = 4000) -> tuple[int, int] | None:
        """(offset, length) in bytes of a range without requests."""
        sectors = self.dice.choice((1, 7, 8, 8, 8, 64, 512, 1025, longest))
        first = self.dice.randrange(SIZE // 512 - sectors)
        span = range(first, first + sectors)
        if not self.busy.isdisjoint(span):
            return None
        self.busy |= set(span)
        return first * 512, sectors * 512

    def done(self, offset: int, length: int) -> None:
        self.busy -= set(range(offset // 512, (offset + length) // 512))


def play(pipe: Pipe, model: Model, rounds: int) -> None:
    """Requests of all kinds, up to 24 under way."""
    dice = model.dice
    waiting: list[Callable[[], None]] = []

    def finish(cookie: int, place: tuple[int, int], expected: bytes | None) -> None:
        error, data = pipe.wait(cookie)
        assert error == 0
        if expected is not None:
            assert data == expected
        model.done(*place)

    for _ in range(rounds):
        kind = dice.choice(("write", "write", "read", "zero", "flush", "wrong", "past"))
        place = model.free() if kind in ("write", "read", "zero") else (0, 0)
        if place is None:
            continue
        offset, length = place
        at = slice(offset, offset + length)
        expected = None
        if kind == "write":
            model.data[at] = dice.randbytes(length)
            cookie = pipe.ask(wire.CMD_WRITE, offset, length, bytes(model.data[at]))
        elif kind == "read":
            expected = bytes(model.data[at])
            cookie = pipe.ask(wire.CMD_READ, offset, length)
        elif kind == "zero":
            model.data[at] = bytes(length)
            cookie = pipe.ask(wire.CMD_WRITE_ZEROES, offset, length)
        elif kind == "flush":
            cookie = pipe.ask(wire.CMD_FLUSH)
        else:
            wrong = pipe.ask(wire.CMD_READ, *((512, 100) if kind == "wrong" else (SIZE, 512)))
            assert pipe.wait(wrong)[0] == errno.EINVAL
            continue
        waiting.append(lambda c=cookie, p=place, e=expected: finish(c, p, e))
        while len(waiting) > dice.randrange(1, 24):
            waiting.pop(0)()
    for one in waiting:
        one()
