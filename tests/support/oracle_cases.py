"""Makes records of cases without a lab: real bytes of a small VHD, two tiny shims, a guest.

The shims are as naive as the backend whose bug the project is about: each trusts the metadata
that it read last. A hand-over in the wrong order therefore damages the image by itself, exactly
as it does in the lab, and no test has to paint the damage on.
"""

import json
import struct
from pathlib import Path
from typing import Any
from uuid import UUID

from vhdtool.image.create.empty import create_dynamic
from vhdtool.image.metadata.dump import dump_metadata
from vhdtool.oracle.evidence.case import POINTS
from vhdtool.oracle.evidence.depth import (
    DISCARD,
    SLOTS,
    WRITE,
    ZERO,
    DeepContent,
    Depth,
    deep_blocks,
)
from vhdtool.oracle.evidence.holdings import KINDS
from vhdtool.oracle.evidence.schedule import SECTOR, Schedule
from vhdtool.storage import MemoryStorage

DISK = 128 << 20
BLOCK = 1 << 20
IMAGE = "image.vhd"
STRIDE = (4096 + BLOCK) // SECTOR


class NaiveShim:
    """Writes blocks as blktap does: bitmap at the end of a page before the data."""

    def __init__(self, lab: "Lab", host: str, pid: int, mode: str = "plain") -> None:
        self.lab, self.host, self.pid, self.mode = lab, host, pid, mode
        self.read_epoch: int | None = None
        self.served = self.wrote = False
        self.last_write: float | None = None
        self.bat: list[int] = []
        self.bitmaps: dict[int, bytearray] = {}

    def event(self, name: str, epoch: int | None = None, **extra: Any) -> None:
        self.lab.event(name, self.host, self.pid, epoch, **extra)

    def attach(self) -> None:
        if not self.lab.events:
            self.lab.look("before")
        self.event("attached", path="/srv/image.vhd", size=DISK)

    def read(self, name: str = "activated", **extra: Any) -> None:
        """Reads footer, header and BAT: `opened`, `activated` or `unpaused`."""
        disk = self.lab.disk
        entries = DISK // BLOCK
        self.bat = list(struct.unpack(f">{entries}I", disk.pread(1536, entries * 4)))
        self.bitmaps = {}
        self.read_epoch = self.lab.next_epoch()
        self.served = self.wrote = False
        self.last_write = None
        more: dict[str, Any] = {"lease": self.lab.guard}
        if name == "opened":
            more = {"mode": self.mode}
        self.event(name, self.read_epoch, read_mono=self.lab.now(), **{**more, **extra})

    def _end(self) -> int:
        """First free sector: behind the highest block of *this shim's* table."""
        used = [entry for entry in self.bat if entry != 0xFFFFFFFF]
        if used:
            return max(used) + 1 + BLOCK // SECTOR
        return (self.lab.disk.size() - SECTOR) // SECTOR

    def request(self, kind: str = "write") -> None:
        if not self.served:
            self.served = True
            self.event("first-request", self.read_epoch, request=kind)

    def write(self, sector: int, data: bytes) -> None:
        self.request()
        if not self.wrote:
            self.wrote = True
            self.event("first-write", self.read_epoch)
        block, inside = divmod(sector, BLOCK // SECTOR)
        disk = self.lab.disk
        if self.bat[block] == 0xFFFFFFFF:
            at = (self._end() + 7) // 8 * 8 + 7
            self.bat[block] = at
            disk.zero(at * SECTOR, STRIDE * SECTOR)
            # As blktap: a whole sector of the table goes out, from this shim's memory.
            first = block // 128 * 128
            table = struct.pack(">128I", *self.bat[first : first + 128])
            disk.pwrite(1536 + first * 4, table)
            self.event("allocated", self.read_epoch, block=block, sector=at)
        at = self.bat[block] * SECTOR
        if block not in self.bitmaps:
            self.bitmaps[block] = bytearray(disk.pread(at, SECTOR))
        disk.pwrite(at + SECTOR + inside * SECTOR, data)
        bits = self.bitmaps[block]
        for bit in range(inside, inside + len(data) // SECTOR):
            bits[bit // 8] |= 0x80 >> bit % 8
        disk.pwrite(at, bytes(bits))
        self.last_write = self.lab.now()

    def release(self, name: str = "deactivated") -> None:
        """Writes a footer at this shim's end of data and cuts the file there."""
        footer = self.lab.disk.pread(0, SECTOR)
        end = self._end() * SECTOR
        self.lab.disk.pwrite(end, footer)
        self.lab.disk.truncate(end + SECTOR)
        self.last_write = self.lab.now()
        ended, self.read_epoch = self.read_epoch, None
        self.event(
            name, self.lab.next_epoch(), ended=ended, last_metadata_mono=self.last_write,
            wrote_footer=True, truncated_to=end + SECTOR,
        )  # fmt: skip

    def close(self) -> None:
        """Ends a read on which nothing was written, and detaches."""
        ended, self.read_epoch = self.read_epoch, None
        self.event("closed", self.lab.next_epoch(), ended=ended, wrote_footer=False)
        self.event("detached")


class Lab:
    """Collects what the lab's controller would, and writes the case directory."""

    def __init__(
        self, strategy: str = "activate", guard: bool = False, seed: int = 7, deep: bool = False
    ) -> None:
        self.strategy, self.guard, self.seed = strategy, guard, seed
        self.disk = MemoryStorage()
        create_dynamic(self.disk, DISK, BLOCK, uuid=UUID(int=seed), timestamp=1)
        self.reserved = deep_blocks(DISK // BLOCK) if deep else 0
        self.load = Schedule(seed, DISK // SECTOR, BLOCK // SECTOR, self.reserved)
        first = DISK // BLOCK - self.reserved
        self.depth = Depth(first, self.reserved, BLOCK // SECTOR)
        self.rounds = 0
        self.leg, self.clock, self.epoch = 1, 100.0, 0
        self.source, self.destination = "alpha", "beta"
        self.events: list[dict[str, Any]] = []
        self.metadata: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, bytes] = {}
        self.chunks: list[dict[str, Any]] = []
        self.written: list[int] = []
        self.issued = 0
        self.expected = "consistent"
        self.legs = 1
        self.points: dict[str, list[str]] | None = None
        self.schema = 2
        self.held: dict[str, dict[str, Any]] = {}

    # the controller

    def now(self) -> float:
        self.clock += 0.001
        return round(self.clock, 6)

    def next_epoch(self) -> int:
        self.epoch += 1
        return self.epoch

    def event(
        self, name: str, host: str = "controller", pid: int | None = None,
        epoch: int | None = None, **extra: Any,
    ) -> None:  # fmt: skip
        side = {self.source: "source", self.destination: "destination"}.get(host, "controller")
        self.events.append(
            {"seq": len(self.events) + 1, "event": name, "leg": self.leg, "host": host,
             "side": side, "pid": pid, "epoch": epoch, "mono": self.now(), "wall": self.clock,
             **extra}
        )  # fmt: skip

    def drop(self, place: int) -> None:
        """One event gone without a gap, as a forger would do it."""
        del self.events[place]
        for seq, event in enumerate(self.events, 1):
            event["seq"] = seq
        for taken in self.metadata.values():
            taken["seq"] -= taken["seq"] > place
        for held in self.held.values():
            held["seq"] -= held["seq"] > place

    def place(self, name: str) -> int:
        """Where the first event of that name stands."""
        return next(n for n, event in enumerate(self.events) if event["event"] == name)

    def point(self, name: str) -> None:
        meta = json.loads(json.dumps(dump_metadata(self.disk)))
        self.metadata[f"{self.leg}-{name}"] = {**meta, "seq": len(self.events), "point": name}

    def look(self, point: str, shim: NaiveShim | None = None) -> None:
        """What each host holds; a shim, where one runs, on its own host."""
        for host in (self.source, self.destination):
            things: dict[str, list[str]] = {kind: [] for kind in KINDS}
            things["files"] = [IMAGE] if point == "before" else [IMAGE, f"{IMAGE}.lease"]
            if shim is not None and shim.host == host:
                things["processes"] = [f"pid {shim.pid}: shim"]
                things["sockets"] = ["/run/disk.nbd (bound)"]
                locks = ["300 to 301"] if self.guard else []
                things["locks"] = [f"pid {shim.pid}: write lock on bytes {n}" for n in locks]
            if shim is not None and self.guard:
                things["lease"] = [f"{shim.host}: pid {shim.pid}, epoch {self.epoch}"]
            self.held[f"{host}-{point}"] = {
                "schema": 1, "host": host, "point": point, "seq": len(self.events),
                "image": f"/srv/{IMAGE}", "epoch": self.epoch, "held": things,
            }  # fmt: skip

    # the guest

    def say(self, host: str, text: str, cut: int | None = None, other: str = "") -> None:
        """A line on a host's console; cut after some bytes, the rest goes to the other host."""
        line = text.encode() + b"\r\n"
        for part, at in ((line[:cut], host), (line[cut:] if cut else b"", other)):
            if part:
                log = self.logs.get(at, b"")
                self.chunks.append({"host": at, "offset": len(log), "mono": self.now()})
                self.logs[at] = log + part

    def begin(self, host: str = "alpha") -> None:
        self.say(host, "ready")
        self.say(host, f"start {self.seed}")

    def write(self, shim: NaiveShim, count: int) -> None:
        """The guest writes `count` times through a shim, each acknowledged."""
        for _ in range(count):
            sector, _ = self.load.extent(self.issued)
            shim.write(sector, self.load.content(self.issued))
            self.say(shim.host, f"acked {self.issued}")
            self.written.append(self.issued)
            self.issued += 1

    def round(self, shim: NaiveShim) -> None:
        """Every slot of the deep half has one more operation acknowledged."""
        if not self.rounds:
            self.say(shim.host, f"deep start {SLOTS}")
        for slot in range(SLOTS):
            kind, sector, length = self.depth.operation(slot, self.rounds)
            if kind == WRITE:
                number = self.depth.number(slot, self.rounds)
                sectors = range(sector, sector + length)
                data = b"".join(self.load.sector_content(number, at) for at in sectors)
                shim.write(sector, data)
            elif kind in (ZERO, DISCARD):
                shim.write(sector, bytes(length * SECTOR))
        told = " ".join(f"{slot}:{self.rounds}" for slot in range(SLOTS))
        self.say(shim.host, f"deep {told}")
        self.rounds += 1

    def stop(self, shim: NaiveShim) -> None:
        """The guest stops and reads back through the shim that it has."""
        self.say(shim.host, f"stopped {self.issued}")
        last: dict[int, int] = {}
        for n in self.written:
            sector, length = self.load.extent(n)
            last.update(dict.fromkeys(range(sector, sector + length), n))
        last.update(DeepContent(self.depth, dict.fromkeys(range(SLOTS), self.rounds), True).last)
        bad = [
            (n, sector)
            for sector, n in sorted(last.items())
            if self._read(shim, sector) != self.load.sector_content(n, sector)
        ]
        for n, sector in bad[:20]:
            self.say(shim.host, f"readback bad {n} {sector}")
        self.say(shim.host, f"readback done {len(last)} {len(bad)}")

    def _read(self, shim: NaiveShim, sector: int) -> bytes:
        block, inside = divmod(sector, BLOCK // SECTOR)
        if shim.bat[block] == 0xFFFFFFFF:
            return bytes(SECTOR)
        return self.disk.pread((shim.bat[block] + 1 + inside) * SECTOR, SECTOR)

    # the directory

    def case(self) -> dict[str, Any]:
        case: dict[str, Any] = {
            "schema": self.schema, "strategy": self.strategy, "guard": self.guard,
            "seed": self.seed, "expected": self.expected, "direction": "alpha->beta", "attempts": 1,
            "load": {"profile": "paced", "pace_us": 4000}, "image_bytes": DISK,
            "block_bytes": BLOCK, "image": "image.vhd", "storage": "local", "hypervisor": "kvm",
            "accelerator": "tcg", "legs": self.legs, "hosts": ["alpha", "beta"], "error": None,
        }  # fmt: skip
        if self.reserved:
            case["schema"] = 3
            case["load"] |= {"deep_blocks": self.reserved, "frees": True}
        if self.points:
            case["points"] = self.points
        return case

    def save(self, folder: Path) -> Path:
        """Writes the record; the image sparse, as the lab fetches it."""
        (folder / "metadata").mkdir(parents=True)
        (folder / "case.json").write_text(json.dumps(self.case()))
        lines = "".join(json.dumps(event) + "\n" for event in self.events)
        (folder / "events.jsonl").write_text(lines)
        (folder / "console.jsonl").write_text("".join(json.dumps(c) + "\n" for c in self.chunks))
        for host, log in self.logs.items():
            (folder / f"console-{host}.log").write_bytes(log)
        for name, meta in self.metadata.items():
            (folder / "metadata" / f"{name}.json").write_text(json.dumps(meta))
        if self.schema > 1:
            (folder / "held").mkdir()
            for name, held in self.held.items():
                (folder / "held" / f"{name}.json").write_text(json.dumps(held))
        write_sparse(folder / "image.vhd", self.disk)
        return folder


def write_sparse(path: Path, disk: MemoryStorage) -> None:
    page = bytes(65536)
    with open(path, "wb") as out:
        for offset in range(0, disk.size(), len(page)):
            data = disk.pread(offset, len(page))
            if data != page[: len(data)]:
                out.seek(offset)
                out.write(data)
        out.truncate(disk.size())


def _leg(
    lab: Lab, source: NaiveShim, destination: NaiveShim, early: bool = False,
    during: int = 40, after: int = 40,
) -> None:  # fmt: skip
    """One migration; `early`: the destination opens before and the source closes after."""
    lab.source, lab.destination = source.host, destination.host
    lab.event("migrate-started")
    destination.attach()
    if early:
        destination.read("opened")
        lab.point("destination-opened")
    lab.write(source, during)
    lab.event("suspended", stop_mono=lab.now())
    lab.point("source-quiesced")
    if not early:
        source.release()
        lab.point("source-closed")
        destination.read("activated")
        lab.point("destination-opened")
    lab.event("resumed", completed_mono=lab.now())
    lab.write(destination, after)
    lab.point("destination-wrote")
    if early:
        source.release()
        lab.point("source-closed")
    source.event("detached")
    lab.event("migrated")
    lab.look(f"leg-{lab.leg}", destination)


def _finish(lab: Lab, shim: NaiveShim, last: int = 20) -> Lab:
    lab.write(shim, last)
    lab.stop(shim)
    shim.release()
    shim.event("detached")
    lab.point("all-closed")
    lab.look("after")
    return lab


def activate(
    seed: int = 7, first: int = 60, during: int = 40, after: int = 40, last: int = 20
) -> Lab:
    """Order A: safe. The numbers are the writes of each part."""
    lab = Lab("activate", seed=seed)
    source, destination = NaiveShim(lab, "alpha", 11), NaiveShim(lab, "beta", 22)
    source.attach()
    source.read()
    lab.begin()
    lab.write(source, first)
    _leg(lab, source, destination, during=during, after=after)
    return _finish(lab, destination, last)


def overlap(seed: int = 7) -> Lab:
    """The report: the destination opens early, the source closes late."""
    lab = Lab("overlap", seed=seed)
    lab.expected = "corrupt"
    source, destination = NaiveShim(lab, "alpha", 11), NaiveShim(lab, "beta", 22)
    source.attach()
    source.read()
    lab.begin()
    lab.write(source, 60)
    _leg(lab, source, destination, early=True)
    return _finish(lab, destination)


def back(seed: int = 7) -> Lab:
    """There and back, order A."""
    lab = Lab("activate-back", seed=seed)
    lab.legs = 2
    first, second = NaiveShim(lab, "alpha", 11), NaiveShim(lab, "beta", 22)
    first.attach()
    first.read()
    lab.begin()
    lab.write(first, 40)
    _leg(lab, first, second)
    lab.leg = 2
    third = NaiveShim(lab, "alpha", 33)
    _leg(lab, second, third)
    return _finish(lab, third)


def refused(seed: int = 7) -> Lab:
    """Overlap with the guard on: the destination is a standby, and says so when asked."""
    lab = Lab("overlap", guard=True, seed=seed)
    lab.expected = "refused"
    lab.points = {"1": ["destination-opened", "source-quiesced", "all-closed"]}
    source, destination = NaiveShim(lab, "alpha", 11), NaiveShim(lab, "beta", 22)
    source.attach()
    source.read()
    lab.begin()
    lab.write(source, 60)
    lab.event("migrate-started")
    destination.attach()
    destination.read("opened")
    lab.point("destination-opened")
    lab.write(source, 40)
    lab.event("suspended", stop_mono=lab.now())
    lab.point("source-quiesced")
    destination.event("refused", op="may-serve", reason="the lease is held by alpha (pid 11)")
    lab.event("cancelled", reason="refused")
    destination.close()
    lab.look("leg-1", source)
    return _finish_refused(lab, source)


def _finish_refused(lab: Lab, source: NaiveShim) -> Lab:
    lab.write(source, 40)
    return _finish(lab, source)


def retry(seed: int = 7) -> Lab:
    """Failed after the source closed, the source activates again, the second attempt succeeds."""
    lab = Lab("activate-retry", seed=seed)
    lab.legs = 2
    lab.points = {"1": ["source-quiesced", "source-closed"], "2": list(POINTS)}
    source, lost = NaiveShim(lab, "alpha", 11), NaiveShim(lab, "beta", 22)
    source.attach()
    source.read()
    lab.begin()
    lab.write(source, 60)
    lab.event("migrate-started")
    lost.attach()
    lab.event("suspended", stop_mono=lab.now())
    lab.point("source-quiesced")
    source.release()
    lab.point("source-closed")
    lost.read("activated")
    lab.point("destination-opened")
    lab.event("fault-injected", fault="destination-qemu-killed")
    lost.release()
    source.read()
    lab.event("cancelled", reason="destination-qemu-killed")
    lost.event("detached")
    lab.write(source, 30)
    lab.look("leg-1", source)
    lab.leg = 2
    second = NaiveShim(lab, "beta", 33)
    _leg(lab, source, second)
    return _finish(lab, second)


SAFE = {"activate": activate, "activate-back": back, "activate-retry": retry}


def deep(seed: int = 7, again: bool = True) -> Lab:
    """Order A with the deep half of the load. Unless `again` its slots are silent afterwards."""
    lab = Lab("activate", seed=seed, deep=True)
    source, destination = NaiveShim(lab, "alpha", 11), NaiveShim(lab, "beta", 22)
    source.attach()
    source.read()
    lab.begin()
    for _ in range(4):
        lab.write(source, 15)
        lab.round(source)
    _leg(lab, source, destination)
    for _ in range(2 if again else 0):
        lab.round(destination)
    lab.say("beta", "deep checked 80 0")
    return _finish(lab, destination)
