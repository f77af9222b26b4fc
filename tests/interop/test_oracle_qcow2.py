"""The oracles on a record whose image is qcow2: a clean one passes, damage of each kind is seen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.oracle_cases import BLOCK, Lab, activate
from tests.support.shim_process import run
from vhdtool.image.metadata.dump import dump_qcow2_metadata
from vhdtool.lab.hosts.agent_images import ImageOperations
from vhdtool.oracle.readers.image_view import FileView
from vhdtool.oracle.readers.qcow2 import OFFSET_BITS, Qcow2Reader, Tables, entry_bytes
from vhdtool.oracle.readers.vhd import SECTOR, open_reader
from vhdtool.oracle.verdict import judge_case

Change = Callable[[Path], None]


def disk_of(path: Path) -> bytes:
    with FileView(path) as view:
        reader = Qcow2Reader(view) if path.suffix == ".qcow2" else open_reader(view)
        disk = bytearray(reader.disk_sectors * SECTOR)
        for sector, data in reader.chunks():
            disk[sector * SECTOR : sector * SECTOR + len(data)] = data
    return bytes(disk)


@pytest.fixture
def record(clean: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(clean, tmp_path / "case"))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safe hand-over's record, with its disk in a qcow2 image that QEMU wrote."""
    place = tmp_path_factory.mktemp("clean")
    lab = activate()
    told_of = tables_told(lab)
    folder = lab.save(place / "case")
    raw, image = place / "disk.raw", folder / "image.qcow2"
    raw.write_bytes(disk_of(folder / "image.vhd"))
    (folder / "image.vhd").unlink()
    make = ("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096")
    run(*make, str(raw), str(image))
    assert disk_of(image) == raw.read_bytes()
    change(folder / "case.json", image="image.qcow2")
    with FileView(image) as view:
        taken = dump_qcow2_metadata(view)
    for path in (folder / "metadata").iterdir():
        told = json.loads(path.read_text())
        bat = {k: v for k, v in taken["bat"].items() if told_of[int(k) // 512] <= told["seq"]}
        then = {**taken, "bat": bat, "bitmaps": dict.fromkeys(bat)}
        path.write_text(json.dumps({**then, "seq": told["seq"], "point": told["point"]}))
    report = run("qemu-img", "check", "--output=json", str(image))
    (folder / "check.json").write_text(report)
    return folder


def tables_told(lab: Lab) -> dict[int, int]:
    """What an L2 table maps is allocated once. The seq at which each one was."""
    told: dict[int, int] = {}
    for event in list(lab.events):
        if event["event"] == "allocated":
            event["block"] = event["block"] * BLOCK // (512 * 4096)
            if event["block"] in told:
                lab.drop(lab.events.index(event))
            told.setdefault(event["block"], event["seq"])
    return told


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_every_fault_planted_in_a_clean_record_is_caught(record: Path) -> None:
    judged = judge_case(record)
    assert (judged["verdict"], judged["why"][:4]) == ("consistent", "All ")
    assert {name: one["result"] for name, one in judged["oracles"].items()} == {
        "content": "pass", "metadata": "pass", "structure": "pass", "activation": "pass",
        "leftovers": "pass",
    }  # fmt: skip
    assert judged["planted"]["caught"] == judged["planted"]["faults"] > 100


def entry_of(record: Path, new: int | None) -> None:
    """The L2 entry of the middle cluster becomes another one; None: that of the first."""
    image = record / "image.qcow2"
    with FileView(image) as view:
        reader = Qcow2Reader(view)
        clusters = sorted(reader.blocks)
        middle = clusters[len(clusters) // 2]
        at = reader.entry(middle)
        place = reader.blocks[clusters[0]] if new is None else new
    assert at is not None
    with open(image, "r+b") as stream:
        stream.seek(at)
        stream.write(entry_bytes(place))


def snapshot_entry(record: Path, move: int | None) -> None:
    """In the last snapshot but one an entry is gone, or somewhere else."""
    path = record / "metadata" / "1-destination-wrote.json"
    told = json.loads(path.read_text())
    key = sorted(told["bat"])[0]
    place = told["bat"].pop(key)
    bits = told["bitmaps"].pop(key)
    if move is not None:
        told["bat"][key], told["bitmaps"][key] = place + move, bits
    path.write_text(json.dumps(told))


def header_gone(record: Path) -> None:
    with open(record / "image.qcow2", "r+b") as stream:
        stream.write(bytes(4))


@pytest.mark.parametrize(
    ("damage", "verdict", "code"),
    [
        (lambda r: entry_of(r, 0), "corrupt", "lost"),
        (lambda r: entry_of(r, None), "corrupt", "cluster-place"),
        (lambda r: snapshot_entry(r, None), "corrupt", "bat-vanished"),
        (lambda r: snapshot_entry(r, 8), "corrupt", "bat-moved"),
        (lambda r: change(r / "check.json", corruptions=3), "corrupt", "qemu-img-corruptions"),
        (header_gone, "corrupt", "image-unreadable"),
        (lambda r: (r / "check.json").unlink(), "inconclusive", "missing"),
        (lambda r: (r / "check.json").write_text("{}"), "inconclusive", "missing"),
        (lambda r: change(r / "check.json", **{"check-errors": 1}), "inconclusive",
         "qemu-img-check-errors"),
        (lambda r: change(r / "check.json", **{"allocated-clusters": 7}), "inconclusive",
         "other-check"),
        (lambda r: (r / "metadata" / "1-all-closed.json").unlink(), "inconclusive", "snapshot"),
        (lambda r: (r / "image.qcow2").unlink(), "inconclusive", "missing"),
    ],
)  # fmt: skip
def test_damage_is_seen_and_what_is_missing_passes_for_nothing(
    record: Path, damage: Change, verdict: str, code: str
) -> None:
    damage(record)
    judged = judge_case(record)
    assert judged["verdict"] == verdict, judged["why"]
    codes = {f["code"] for one in judged["oracles"].values() for f in one["findings"]}
    assert code in codes


def poke(record: Path, at: Callable[[Tables], int], data: Callable[[bytes], bytes]) -> None:
    """Eight bytes of the image become others."""
    image = record / "image.qcow2"
    with FileView(image) as view:
        place = at(Tables(view))
    with open(image, "r+b") as stream:
        stream.seek(place)
        old = stream.read(8)
        stream.seek(place)
        stream.write(data(old))


def without_copied(entry: bytes) -> bytes:
    return bytes([entry[0] & 0x7F]) + entry[1:]


@pytest.mark.parametrize(
    ("at", "data", "code"),
    [
        (lambda t: t.header.refcounts, lambda _: bytes(8), "refcount-low"),
        (lambda t: refcount_of(t, max(t.blocks.values())), lambda old: b"\0\0" + old[2:],
         "refcount-low"),
        (lambda t: refcount_of(t, max(t.blocks.values())), lambda old: b"\0\2" + old[2:],
         "copied-flag"),
        (lambda t: t.header.l1_offset + 8 * min(t.l1), without_copied, "copied-flag"),
        (lambda t: entry_at(t, min(t.blocks)), without_copied, "copied-flag"),
    ],
)  # fmt: skip
def test_refcounts_are_read_and_not_believed(
    record: Path, at: Callable[[Tables], int], data: Callable[[bytes], bytes], code: str
) -> None:
    """check.json still says that all is well."""
    poke(record, at, data)
    judged = judge_case(record)
    assert judged["verdict"] == "corrupt", judged["why"]
    assert code in {f["code"] for f in judged["oracles"]["structure"]["findings"]}


def entry_at(tables: Tables, cluster: int) -> int:
    index, at = divmod(cluster, tables.header.table_entries)
    return (tables.l1[index] & OFFSET_BITS) + 8 * at


def refcount_of(tables: Tables, place: int) -> int:
    """Where the refcount of a cluster lies, when one refcount block has them all."""
    raw = tables.view.pread(tables.header.refcounts, 8)
    at = place // tables.header.cluster
    assert at < tables.header.cluster // 2 - 4
    return int.from_bytes(raw) + 2 * at


def test_leaked_clusters_hurt_nobody(record: Path) -> None:
    change(record / "check.json", leaks=4)
    judged = judge_case(record)
    assert judged["verdict"] == "consistent"
    (finding,) = judged["oracles"]["structure"]["findings"]
    assert (finding["code"], finding["severity"]) == ("qemu-img-leaks", "info")


@pytest.mark.parametrize("over", [(8, 200), (32, 2), (60, 1)])
def test_an_overwritten_image_is_no_lab_error(record: Path, over: tuple[int, int]) -> None:
    """A host that stumbles over it would end the case as an error, which is tried once more."""
    image = record / "image.qcow2"
    with open(image, "r+b") as stream:
        stream.seek(over[0])
        stream.write(over[1].to_bytes(8 if over[0] == 8 else 4, "big"))
    _told_and_corrupt(record, image)


def test_guest_data_over_a_table_is_an_observation_too(record: Path) -> None:
    image = record / "image.qcow2"
    with FileView(image) as view:
        reader = Qcow2Reader(view)
        at = reader.entry(next(iter(reader.blocks)))
    assert at is not None
    with open(image, "r+b") as stream:
        stream.seek(at)
        stream.write(b"\xff" * 8)
    _told_and_corrupt(record, image)


def _told_and_corrupt(record: Path, image: Path) -> None:
    agent = ImageOperations()
    (taken,) = agent.snapshots([agent.metadata(str(image), "qcow2")])
    told = agent.check(str(image))
    change(record / "metadata" / "1-all-closed.json", **taken)
    (record / "check.json").write_text(json.dumps(told))
    judged = judge_case(record)
    assert judged["verdict"] == "corrupt", judged["why"]
