"""Straight requests, served by fast_path.c: no Python between a client and what it may have.

A client's thread hands its connection over and gets it back with a reason: a request that needs
more than data moved to or from its place, one that failed and has to be tried again here (which
tells why), or a block that has no place yet. Where the library was not built, or with
VHDTOOL_STRAIGHT=off in the environment, Python serves all requests itself.
"""

import ctypes
import logging
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from vhdtool.nbd.backend import FastPathGate, Grant, NoFastPath
from vhdtool.nbd.memory_bound import SHARED
from vhdtool.nbd.metrics import BUCKETS

log = logging.getLogger("nbd")
GONE, SLOW, AGAIN, PLACE = range(4)
"""Why the library gave a connection back; see fast_path.c."""
_DIRECT, _WRITABLE, _ZEROS, _WHOLE, _STRUCTURED = 1, 2, 4, 8, 16


class GateWords(ctypes.Structure):
    """What the library and the gate share."""

    _fields_ = [
        ("mode", ctypes.c_int32),
        ("inside", ctypes.c_int32),
        ("generation", ctypes.c_uint32),
        ("unused", ctypes.c_int32),
        ("deadline", ctypes.c_int64),
    ]


class _Places(ctypes.Structure):
    _fields_ = [
        ("fd", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("bitmap_bytes", ctypes.c_uint32),
        ("size", ctypes.c_uint64),
        ("block_bytes", ctypes.c_uint64),
        ("bat", ctypes.c_void_p),
        ("full", ctypes.c_void_p),
        ("blocks", ctypes.c_uint64),
    ]


class _Engine(ctypes.Structure):
    _fields_ = [
        ("in_at", ctypes.c_uint32),
        ("in_end", ctypes.c_uint32),
        ("inflight", ctypes.c_uint32),
        ("again_length", ctypes.c_uint32),
        ("again_cookie", ctypes.c_uint64),
        ("again_offset", ctypes.c_uint64),
        ("again_command", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("again_data", ctypes.c_void_p),
        ("place", ctypes.c_uint64),
        ("moved", ctypes.c_void_p),
        ("seconds_ns", ctypes.c_uint64),
        ("counts", ctypes.c_uint64 * (len(BUCKETS) + 1)),
    ]


_BOUNDS = (ctypes.c_uint64 * len(BUCKETS))(*(int(bound * 1e9) for bound in BUCKETS))


def _load() -> ctypes.CDLL | None:
    if os.environ.get("VHDTOOL_STRAIGHT") == "off":
        return None
    for path in sorted(Path(__file__).parent.glob("_fast_path*.so")):
        try:
            library = ctypes.CDLL(str(path))
            gate, engine = ctypes.POINTER(GateWords), ctypes.POINTER(_Engine)
            places = ctypes.POINTER(_Places)
            library.straight_open.restype = engine
            library.straight_open.argtypes = [
                ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p,
                ctypes.c_void_p,
            ]  # fmt: skip
            for name in ("straight_serve", "straight_drain"):
                getattr(library, name).argtypes = [engine, gate, places]
            for name in ("straight_answered", "straight_close"):
                getattr(library, name).argtypes = [engine]
                getattr(library, name).restype = None
            library.straight_memory.argtypes = [ctypes.c_int64]
            library.straight_memory.restype = None
            library.straight_memory(SHARED)
            library.straight_gate_set.argtypes = [gate, ctypes.c_int32]
            library.straight_gate_set.restype = None
            library.straight_gate_inside.argtypes = [gate]
            library.straight_gate_deadline.argtypes = [gate, ctypes.c_int64]
            library.straight_gate_deadline.restype = None
        except (OSError, AttributeError) as error:
            log.warning("%s: cannot be used (%s); Python serves all requests", path.name, error)
            return None
        return library
    return None


_library = _load()


def available() -> bool:
    """Whether the library is there."""
    return _library is not None


class SharedGate:
    """The gate's words, as the library reads them; all methods are cheap without it."""

    def __init__(self) -> None:
        self.words = GateWords(mode=1)

    @property
    def generation(self) -> int:
        return int(self.words.generation)

    def set(self, serves: bool) -> None:
        """From when it returns the library lets no request in, or lets them in."""
        if _library is not None:
            _library.straight_gate_set(self.words, 0 if serves else 1)

    def inside(self) -> int:
        """Requests of the library that are under way."""
        return _library.straight_gate_inside(self.words) if _library is not None else 0

    def extend(self, seconds: float) -> None:
        """As of FastPathGate."""
        if _library is not None:
            deadline = int((monotonic() + seconds) * 1e9)
            _library.straight_gate_deadline(self.words, deadline)


def new_gate() -> FastPathGate:
    """A disk's gate in the fast path, where there is one."""
    return SharedGate() if available() else NoFastPath()


class Straight:
    """The library's half of one connection. Raises OSError where there is none."""

    def __init__(
        self, sock: int, inbox: mmap.mmap, moved: Any, gate: SharedGate, structured: bool
    ) -> None:
        if _library is None:
            raise OSError("no library")
        self._library = _library
        self._gate = gate
        # Outside the engine: others look at it, also after the end.
        self._since = (ctypes.c_int64 * 2)()
        start = (ctypes.c_char * len(inbox)).from_buffer(inbox)
        counts = (ctypes.c_uint64 * len(moved)).from_buffer(moved)
        self._keep = inbox, counts
        engine = _library.straight_open(
            sock, ctypes.addressof(start), len(inbox), ctypes.addressof(counts), _BOUNDS,
            ctypes.addressof(self._since),
        )  # fmt: skip
        if not engine:
            raise MemoryError
        self._engine = engine
        self._structured = structured
        self._places = _Places()
        self._grant: Grant | None = None
        self._held: tuple[Any, ...] = ()

    def serve(self, grant: Grant, at: int, end: int) -> tuple[int, int, int]:
        """Serves until something else is to be done: (why, and the inbox' new bounds)."""
        if grant != self._grant:
            self._use(grant)
        engine = self._engine.contents
        engine.in_at, engine.in_end = at, end
        why = self._library.straight_serve(self._engine, self._gate.words, self._places)
        return why, engine.in_at, engine.in_end

    def _use(self, grant: Grant) -> None:
        where, places = grant.layout, self._places
        flags = (_DIRECT if where.direct else 0) | (_WRITABLE if grant.writable else 0)
        flags |= (_ZEROS if where.zeros else 0) | (_WHOLE if where.whole else 0)
        places.flags = flags | (_STRUCTURED if self._structured else 0)
        places.fd, places.size, places.generation = where.fd, where.size, grant.generation
        places.block_bytes, places.bitmap_bytes = where.block_bytes, where.bitmap_bytes
        if where.block_bytes:
            table = (ctypes.c_char * (4 * len(where.bat))).from_buffer(where.bat)
            full = (ctypes.c_char * len(where.full)).from_buffer(where.full)
            places.bat, places.full = ctypes.addressof(table), ctypes.addressof(full)
            places.blocks = where.size // where.block_bytes
            # As long as the library may look there, nobody can shrink them.
            self._held = table, full
        self._grant = grant

    @property
    def idle_since(self) -> float:
        """time.monotonic() since when the client asks for nothing, and 0 while it does."""
        return self._since[0] / 1e9

    @property
    def stalled_since(self) -> float:
        """Since when it sends no more of a request, or takes no more of a reply; or 0."""
        return self._since[1] / 1e9

    @property
    def under_way(self) -> bool:
        """Requests are with the kernel: the gate counts us as inside, so the image stays."""
        return bool(self._engine.contents.inflight)

    @property
    def place(self) -> int:
        """The block that PLACE is about."""
        return int(self._engine.contents.place)

    def again(self) -> tuple[int, int, int, int, memoryview]:
        """(command, cookie, offset, length, data) of the request that AGAIN is about."""
        engine = self._engine.contents
        length = engine.again_length
        data = memoryview((ctypes.c_char * length).from_address(engine.again_data)).cast("B")
        return engine.again_command, engine.again_cookie, engine.again_offset, length, data

    def answered(self) -> None:
        """That request has its answer; its data is gone."""
        self._library.straight_answered(self._engine)

    def drain(self) -> int:
        """Everything under way ends and is answered; returns why as `serve`."""
        return int(self._library.straight_drain(self._engine, self._gate.words, self._places))

    def latencies(self, add: Callable[[list[int], float], None]) -> None:
        """Hands over what was measured since the last call."""
        engine = self._engine.contents
        if engine.seconds_ns:
            add(list(engine.counts), engine.seconds_ns / 1e9)
            engine.seconds_ns = 0
            ctypes.memset(engine.counts, 0, ctypes.sizeof(engine.counts))

    def close(self) -> None:
        """Ends what is under way; the library forgets the connection."""
        if self.under_way:
            self.drain()
        self._library.straight_close(self._engine)
        self._held = ()
