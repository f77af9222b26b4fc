"""The record of a case, as it is written: the only thing that the oracles see."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vhdtool.errors import LabError
from vhdtool.lab.case.console import Consoles, LoadControl
from vhdtool.lab.hosts.connection import Host

Event = dict[str, Any]


class Record:
    """Writer of a case directory. Events get their numbers here, and nowhere else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "metadata").mkdir(parents=True)
        self.consoles = Consoles(folder)
        self.load = LoadControl(self.consoles)
        self.events: list[Event] = []
        self.leg = 1
        self.sides: dict[str, str] = {}
        """The role of each host in this leg."""
        self._file = open(folder / "events.jsonl", "w")  # noqa: SIM115
        self._changed = threading.Condition()

    def assign_roles(self, source: Host, destination: Host) -> None:
        self.sides = {source.name: "source", destination.name: "destination"}

    def from_shim(self, host: Host, event: Event) -> None:
        """Add an event of a shim, with its times on the controller's clock."""
        fields = dict(event)
        for key in ("mono", "began_mono", "read_mono", "last_metadata_mono"):
            if fields.get(key) is not None:
                fields[key] = fields[key] + host.clock_offset
        fields.pop("host", None)
        self._add(host.name, self.sides.get(host.name, "source"), fields)

    def note(self, event: str, host: str = "controller", **fields: Any) -> Event:
        """Add an event of the controller itself."""
        side = self.sides.get(host, "controller")
        stamp = {"event": event, "pid": None, "epoch": None}
        times = {"mono": time.monotonic(), "wall": time.time()}
        return self._add(host, side, {**stamp, **times, **fields})

    def _add(self, host: str, side: str, fields: Event) -> Event:
        with self._changed:
            head = {"seq": len(self.events) + 1, "event": fields.pop("event"), "leg": self.leg}
            stamp = {key: fields.pop(key, None) for key in ("pid", "epoch", "mono", "wall")}
            event = {**head, "host": host, "side": side, **stamp, **fields}
            self.events.append(event)
            if not self._file.closed:
                self._file.write(json.dumps(event) + "\n")
            self._changed.notify_all()
        return event

    def count(self, wanted: Callable[[Event], bool]) -> int:
        """The number of events so far that fit."""
        with self._changed:
            return sum(1 for event in self.events if wanted(event))

    def wait(self, what: str, wanted: Callable[[Event], bool], timeout: float) -> None:
        """Wait until an event fits. Raises LabError on a timeout."""
        with self._changed:
            if not self._changed.wait_for(lambda: any(map(wanted, self.events)), timeout):
                raise LabError(f"no {what} within {timeout:.0f} s")

    def seq(self) -> int:
        """The number of the newest event."""
        return len(self.events)

    def write_snapshot(self, leg: int, point: str, seq: int, snapshot: dict[str, Any]) -> None:
        """Write a snapshot; `seq` is the number of the last event before it was requested."""
        path = self.folder / "metadata" / f"{leg}-{point}.json"
        path.write_text(json.dumps({**snapshot, "seq": seq, "point": point}))

    def write_holdings(self, host: str, point: str, seq: int, image: str, found: Event) -> None:
        """Write what a host holds of the case; `seq` as for a snapshot, `image` its path there."""
        folder = self.folder / "held"
        folder.mkdir(exist_ok=True)
        head = {"schema": 1, "host": host, "point": point, "seq": seq, "image": image}
        path = folder / f"{host}-{point}.json"
        path.write_text(json.dumps({**head, **found}, indent=1) + "\n")

    def write_check(self, report: dict[str, Any]) -> None:
        """Write the report of qemu-img about the closed image."""
        (self.folder / "check.json").write_text(json.dumps(report, indent=1) + "\n")

    def write_case(self, value: dict[str, Any]) -> None:
        (self.folder / "case.json").write_text(json.dumps(value, indent=1) + "\n")

    def close(self) -> None:
        self.consoles.close()
        with self._changed:
            self._file.close()
