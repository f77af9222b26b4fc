"""Changes of case.json, of whole files, and of files beside them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.tamper.draft import CONTRADICTS, FAILED, SAME, Change, Draft


def case_changes(draft: Draft) -> Iterator[Change]:
    known = draft.case
    hosts = known["hosts"]
    swapped = "->".join(reversed(known["direction"].split("->")))
    wrong: tuple[dict[str, Any], ...] = (
        {"guard": not known["guard"]}, {"seed": known["seed"] + 1}, {"legs": known["legs"] + 1},
        {"direction": swapped}, {"direction": "alpha->gamma"}, {"direction": "x"},
        {"hosts": ["gamma", "delta"]}, {"hosts": hosts[:1]}, {"hosts": [hosts[0], "gamma"]},
        {"image_bytes": known["image_bytes"] * 2}, {"image_bytes": known["image_bytes"] // 2},
        {"block_bytes": known["block_bytes"] * 2}, {"block_bytes": known["block_bytes"] // 2},
        {"exclusive": not known.get("exclusive", False)}, {"expected": "fine"},
        {"schema": known["schema"] - 1}, {"schema": 99},
        {"image": "image.raw"}, {"points": {"1": ["all-closed", "x"]}}, {"seed": "1"},
        {"attempts": 0}, {"legs": 0}, {"image": "../case.json"},
    )  # fmt: skip
    for values in wrong:
        yield Change(f"case.json: {_short(values)}", CONTRADICTS,
                     lambda d, v=values: d.case.update(v))  # fmt: skip
    if known["legs"] > 1:
        yield Change("case.json: one leg", CONTRADICTS, lambda d: d.case.update(legs=1))
    if (draft.path / "reproduce.txt").exists():
        yield Change("case.json: another strategy", CONTRADICTS,
                     lambda d: d.case.update(strategy="hold-more"))  # fmt: skip
    yield Change("case.json: a lab error", FAILED,
                 lambda d: d.case.update(error={"what": "QEMU died", "log": []}))  # fmt: skip
    for key in ("strategy", "guard", "seed", "hosts", "error", "legs", "image", "direction"):
        yield Change(f"case.json: no {key}", CONTRADICTS, lambda d, key=key: _drop(d.case, key))
    right: tuple[dict[str, Any], ...] = (
        {"attempts": 2}, {"load": {**known["load"], "later": 1}}, {"storage": "elsewhere"},
        {"accelerator": "kvm"}, {"later": [1]}, {"hosts": list(reversed(hosts))},
        {"hypervisor": "xen"},
    )  # fmt: skip
    for values in right:
        yield Change(f"harmless: case.json: {_short(values)}", SAME,
                     lambda d, v=values: d.case.update(v))  # fmt: skip
    yield Change("harmless: case.json: keys in another order", SAME, _reorder)
    yield from _repeated_keys()
    yield from _files()


def _short(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {str(value)[:40]}" for key, value in values.items())


def _drop(value: dict[str, Any], key: str) -> None:
    del value[key]


def _reorder(draft: Draft) -> None:
    draft.case = dict(reversed(list(draft.case.items())))


def _repeated_keys() -> Iterator[Change]:
    """A repeated key: parsers differ in whether they take the first or the last value."""

    def twice(name: str, text: str) -> Callable[[Draft], None]:
        def raw(draft: Draft) -> None:
            path = draft.path / name
            old = path.read_text().lstrip()
            path.write_text("{" + text + ", " + old[1:])

        return raw

    yield Change("case.json: two guards", CONTRADICTS, raw=twice("case.json", '"guard": false'))
    yield Change("case.json: two errors", CONTRADICTS, raw=twice("case.json", '"error": "x"'))
    yield Change("events.jsonl: two epochs", CONTRADICTS, raw=twice("events.jsonl", '"epoch": 4'))
    yield Change("console.jsonl: two hosts", CONTRADICTS, raw=twice("console.jsonl", '"host": "a"'))


def _files() -> Iterator[Change]:
    for name in ("case.json", "events.jsonl", "console.jsonl"):
        yield Change(
            f"{name}: gone", CONTRADICTS, raw=lambda d, name=name: (d.path / name).unlink()
        )
        yield Change(f"{name}: empty", CONTRADICTS,
                     raw=lambda d, name=name: (d.path / name).write_bytes(b""))  # fmt: skip
        yield Change(f"{name}: a FIFO", CONTRADICTS, raw=lambda d, name=name: _fifo(d.path / name))
        yield Change(f"{name}: a device", CONTRADICTS,
                     raw=lambda d, name=name: _link(d.path / name, "/dev/zero"))  # fmt: skip
        yield Change(f"{name}: binary", CONTRADICTS,
                     raw=lambda d, name=name: (d.path / name).write_bytes(b"\xff\0{"))  # fmt: skip
    yield Change("metadata: one that is a FIFO", CONTRADICTS,
                 raw=lambda d: _fifo(next((d.path / "metadata").glob("*.json"))))  # fmt: skip
    yield Change("harmless: other files", SAME, raw=_litter)
    yield Change("reproduce.txt: another seed", CONTRADICTS,
                 raw=lambda d: (d.path / "reproduce.txt").write_text("x SEED=99"))  # fmt: skip


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


def _litter(draft: Draft) -> None:
    (draft.path / "notes.txt").write_text("from a colleague")
    (draft.path / "core").mkdir()
    (draft.path / "core" / "dump").write_bytes(bytes(100))
    os.mkfifo(draft.path / "some.fifo")


def files_of(other: Path) -> Iterator[Change]:
    """Files of another run, which agree with one another but not with this record."""
    texts = ("case.json", "events.jsonl", "console.jsonl", "reproduce.txt")
    for name in texts:
        if (other / name).exists():
            yield Change(f"of another run: {name}", CONTRADICTS,
                         raw=lambda d, name=name: _take(d, other, [name]))  # fmt: skip
    yield Change("of another run: the consoles", CONTRADICTS, raw=lambda d: _take(
        d, other, ["console.jsonl", *(p.name for p in other.glob("console-*.log"))]))  # fmt: skip
    for path in sorted((other / "metadata").glob("*.json")):
        yield Change(f"of another run: {path.stem}", CONTRADICTS,
                     raw=lambda d, n=path.name: _take(d, other, [f"metadata/{n}"]))  # fmt: skip


def _take(draft: Draft, other: Path, names: list[str]) -> None:
    for name in names:
        (draft.path / name).write_bytes((other / name).read_bytes())
