"""A working copy of a record, one change of it, and the verdicts that are right for the change.

Text files are changed in memory and written. The image is patched in place and restored, because
copying it for every change would take most of the time.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Draft:
    """A working copy of one case. `restore` undoes every change."""

    def __init__(self, case: Path, folder: Path) -> None:
        self.original = case
        self.path = folder / case.name
        copy(case, self.path)
        self._before = {p: p.read_bytes() for p in self._texts()}
        self._patches: list[tuple[int, bytes]] = []
        self._copied = True
        """Whether the image is that of the original, except for the patches."""
        self._load()

    def _texts(self) -> list[Path]:
        files = [p for p in self.path.rglob("*") if p.is_file() and not p.name.startswith("image.")]
        return sorted(files)

    def _load(self) -> None:
        self.case: dict[str, Any] = self._json("case.json")
        self.events: list[Event] = self._lines("events.jsonl")
        self.chunks: list[Event] = self._lines("console.jsonl")
        self.metadata: dict[str, dict[str, Any]] = {
            path.stem: json.loads(path.read_text())
            for path in sorted((self.path / "metadata").glob("*.json"))
        }
        self.holdings: dict[str, dict[str, Any]] = {
            path.stem: json.loads(path.read_text())
            for path in sorted((self.path / "held").glob("*.json"))
        }
        self.logs = {
            path.name[8:-4]: path.read_bytes() for path in sorted(self.path.glob("console-*.log"))
        }

    def _json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def _lines(self, name: str) -> list[Event]:
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]

    @property
    def image(self) -> Path:
        return next(self.path.glob("image.*"))

    @property
    def kind(self) -> str:
        return self.image.suffix[1:]

    # changes

    def renumber(self, change: Callable[[list[Event]], None]) -> None:
        """Changes the list of events, and `seq` in events, snapshots and holdings accordingly.

        A snapshot or a host's holdings stay after the last event that was before them.
        """
        numbers = {id(event): event["seq"] for event in self.events}
        change(self.events)
        last = 0
        new: dict[int, int] = {}
        for seq, event in enumerate(self.events, 1):
            last = max(last, numbers.get(id(event), last))
            new[last] = seq
            event["seq"] = seq
        for taken in (*self.metadata.values(), *self.holdings.values()):
            before = [old for old in new if old <= taken["seq"]]
            taken["seq"] = new[max(before)] if before else 0

    def index(self, name: str, nth: int = 0, host: str | None = None) -> int:
        """Index of the nth event of that name (of that host). Raises LookupError."""
        found = [
            n
            for n, event in enumerate(self.events)
            if event["event"] == name and host in (None, event["host"])
        ]
        return found[nth]

    def operations(self) -> list[int]:
        """Indexes of the events that are not allocations."""
        return [n for n, event in enumerate(self.events) if event["event"] != "allocated"]

    def allocations(self) -> list[int]:
        return [n for n, event in enumerate(self.events) if event["event"] == "allocated"]

    def other(self, host: str) -> str:
        return str(next(name for name in self.case["hosts"] if name != host))

    def console_chunks(self) -> list[tuple[str, float, bytes]]:
        """The consoles as (host, mono, bytes) chunks."""
        ends: dict[str, int] = {host: len(log) for host, log in self.logs.items()}
        pieces = []
        for chunk in reversed(self.chunks):
            host, offset = chunk["host"], chunk["offset"]
            pieces.append((host, chunk["mono"], self.logs[host][offset : ends[host]]))
            ends[host] = offset
        return pieces[::-1]

    def write_console(self, chunks: list[tuple[str, float, bytes]]) -> None:
        """Replaces the consoles by these chunks."""
        logs = dict.fromkeys(self.logs, b"")
        self.chunks = []
        for host, mono, data in chunks:
            log = logs.setdefault(host, b"")
            self.chunks.append({"host": host, "offset": len(log), "mono": mono})
            logs[host] = log + data
        self.logs = logs

    def patch(self, offset: int, data: bytes) -> None:
        """Bytes of the image."""
        with open(self.image, "r+b") as file:
            file.seek(offset)
            self._patches.append((offset, file.read(len(data)).ljust(len(data), b"\0")))
            file.seek(offset)
            file.write(data)

    def read(self, offset: int, length: int) -> bytes:
        with open(self.image, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def truncate(self, size: int) -> None:
        os.truncate(self.image, size)
        self._copied = False

    def copy_again(self) -> None:
        """Restores the image by copying it: it was changed without `patch`."""
        self._copied = False

    # the directory on disk

    def save(self) -> None:
        """Writes all text files."""
        files = {
            "case.json": json.dumps(self.case).encode(),
            "events.jsonl": lines(self.events),
            "console.jsonl": lines(self.chunks),
            **{f"console-{host}.log": log for host, log in self.logs.items()},
            **{
                f"{folder}/{name}.json": json.dumps(value).encode()
                for folder, values in self._folders.items()
                for name, value in values.items()
            },
        }
        for name, data in files.items():
            (self.path / name).write_bytes(data)
        for folder, values in self._folders.items():
            for path in (self.path / folder).glob("*.json"):
                if path.stem not in values:
                    path.unlink()

    @property
    def _folders(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {"metadata": self.metadata, "held": self.holdings}

    def restore(self) -> None:
        """Undoes every change."""
        for offset, old in reversed(self._patches):
            with open(self.image, "r+b") as file:
                file.seek(offset)
                file.write(old)
        if not self._copied:
            copy(self.original / self.image.name, self.image)
            self._copied = True
        self._patches.clear()
        for path in list(self.path.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            if path not in self._before and (path.is_symlink() or path != self.image):
                path.unlink()
        ours = {path.parent for path in self._before}
        for folder in [p for p in self.path.iterdir() if p.is_dir() and p not in ours]:
            shutil.rmtree(folder)
        for folder in ours:
            folder.mkdir(exist_ok=True)
        for path, data in self._before.items():
            regular = path.is_file() and not path.is_symlink()
            if not regular or path.read_bytes() != data:
                path.unlink(missing_ok=True)
                path.write_bytes(data)
        self._load()


def copy(source: Path, target: Path) -> None:
    """Copies a directory or a file; holes stay holes."""
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)


def lines(values: list[Event]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


CONTRADICTS = frozenset({"corrupt", "inconclusive"})
"""A record that contradicts itself is neither consistent nor refused."""
DAMAGED = frozenset({"corrupt"})
DOUBTFUL = frozenset({"inconclusive"})
FAILED = frozenset({"error"})
SAME = frozenset({"same"})
"""Harmless: the verdict does not change."""
EITHER = SAME | CONTRADICTS
"""Nothing else in the record contradicts the change, or confirms it."""
Apply = Callable[[Draft], object]


@dataclass(frozen=True)
class Change:
    """`apply` changes the draft in memory; then it is saved, and `raw` changes its files.

    `right`: the verdicts that are right afterwards. An `apply` that this record does not allow
    raises LookupError.
    """

    name: str
    right: frozenset[str]
    apply: Apply = lambda draft: None
    raw: Apply = lambda draft: None
