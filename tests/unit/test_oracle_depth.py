"""The deep half of the load: what its requests may leave, and how many were in flight."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support import oracle_cases
from vhdtool.oracle.evidence.depth import (
    DISCARD,
    ONCE,
    SLOTS,
    WAIT_FOR_A_WRITE,
    WRITE,
    ZERO,
    DeepContent,
    Depth,
)
from vhdtool.oracle.evidence.record import load_record
from vhdtool.oracle.judge import prepare, run_oracles
from vhdtool.oracle.planted.plant import try_oracles
from vhdtool.oracle.readers.image_view import FileView
from vhdtool.oracle.verdict import judge_case

DEPTH = Depth(100, 16, 1024)
IN_FLIGHT = SLOTS - len(WAIT_FOR_A_WRITE)


def played(seed: int, steps: int) -> tuple[dict[int, int], dict[int, int]]:
    """(slot -> acknowledged, sector -> the write there, -1 for zeroes) after a random run.

    Each slot has one operation in flight; it reaches the disk at any time before it is
    acknowledged, and a discard reaches it or does not.
    """
    dice = random.Random(seed)
    acked = dict.fromkeys(range(SLOTS), 0)
    disk: dict[int, int] = {}
    for _ in range(steps):
        slot = dice.randrange(SLOTS)
        kind, sector, length = DEPTH.operation(slot, acked[slot])
        for at in range(sector, sector + length):
            if kind == WRITE:
                disk[at] = DEPTH.number(slot, acked[slot])
            elif kind == ZERO or (kind == DISCARD and dice.random() < 0.5):
                disk[at] = -1
        acked[slot] += 1
    return acked, disk


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_the_slots_is_allowed_by_the_model(seed: int) -> None:
    acked, disk = played(seed, 2500)
    left = DeepContent(DEPTH, acked, ended=True)
    for sector, found in disk.items():
        allowed = {left.last.get(sector, -1), *left.also.get(sector, ())}
        if sector in left.freed:
            allowed.add(left.freed[sector])
        assert found in allowed
    assert left.last.keys() | left.freed.keys() == disk.keys()


def test_only_the_two_of_a_pair_share_a_sector() -> None:
    owner: dict[int, set[int]] = {}
    for slot in range(SLOTS):
        for seq in range(300):
            kind, sector, length = DEPTH.operation(slot, seq)
            if kind in (WRITE, ZERO, DISCARD):
                for at in range(sector, sector + length):
                    owner.setdefault(at, set()).add(slot)
    shared = {tuple(sorted(slots)) for slots in owner.values() if len(slots) > 1}
    assert shared == {(24, 25), (26, 27)}
    assert min(owner) >= 100 * 1024
    assert max(owner) < 116 * 1024


def test_no_slot_uses_a_block_before_its_end_is_written() -> None:
    newest = -1
    for seq in range(40):
        places = {slot: DEPTH.operation(slot, seq) for slot in range(SLOTS)}
        blocks = {place // 1024 - 100 for kind, place, _ in places.values() if kind == WRITE}
        newest = max(newest, seq % 16)
        assert max(blocks) <= newest
        ends = {place + length for kind, place, length in places.values() if kind == WRITE}
        assert seq >= 16 or (100 + seq + 1) * 1024 in ends


def test_what_is_written_once_is_never_written_again() -> None:
    places = [
        DEPTH.operation(slot, seq)[1]
        for slot in range(SLOTS)
        for seq in range(300)
        if DEPTH.writes_once(slot, seq)
    ]
    assert len(places) == len(set(places)) == (12 + 4 * 2) * 3 * 16
    assert all(place % ONCE == 0 for place in places)


def test_a_deep_record_says_how_many_requests_were_in_flight(
    tmp_path: Path,
) -> None:
    entry = judge_case(oracle_cases.deep().save(tmp_path / "activate"))
    assert entry["verdict"] == "consistent", entry["why"]
    assert entry["in_flight"] == [IN_FLIGHT]
    assert entry["planted"]["faults"] == entry["planted"]["caught"]


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_faults_are_planted_and_seen_whatever_the_seed(tmp_path: Path, seed: int) -> None:
    """Zeroes that were undone are among them; another seed is planted too."""
    record = load_record(oracle_cases.deep(seed).save(tmp_path / "activate"))
    assert record.image is not None
    evidence = prepare(record, FileView(record.image))
    planted = try_oracles(evidence, run_oracles(evidence))
    assert {"content: zeroes-undone", "content: seed-other"} <= set(planted.names)
    assert planted.missed == []


def test_slots_that_are_silent_after_the_switch_prove_nothing(tmp_path: Path) -> None:
    entry = judge_case(oracle_cases.deep(again=False).save(tmp_path / "activate"))
    assert entry["verdict"] == "inconclusive"
    assert "only 0 requests were in flight when the guest was stopped" in entry["why"]


def test_qemus_own_count_is_believed_where_it_is_smaller(tmp_path: Path) -> None:
    lab = oracle_cases.deep()
    lab.events[lab.place("suspended")]["queued"] = {"deep1": 20, "deep2": 3}
    entry = judge_case(lab.save(tmp_path / "activate"))
    assert entry["in_flight"] == [23]
    # A busy machine fills the queues less: the rest is proved all the same.
    assert entry["verdict"] == "consistent"
    assert "leg 1: only 23 requests were in flight" in entry["why"]
    lab.events[lab.place("suspended")]["queued"] = {"deep1": 0, "deep2": 0}
    assert judge_case(lab.save(tmp_path / "none"))["verdict"] == "inconclusive"


def test_a_leg_without_a_check_of_old_data_proves_nothing(tmp_path: Path) -> None:
    lab = oracle_cases.deep()
    lab.logs["beta"] = lab.logs["beta"].replace(b"deep checked 80 0", b"unknown check....")
    entry = judge_case(lab.save(tmp_path / "activate"))
    assert entry["verdict"] == "inconclusive"
    assert "the guest did not check on beta" in entry["why"]


def test_a_check_that_found_another_content_is_damage(tmp_path: Path) -> None:
    lab = oracle_cases.deep()
    lab.logs["beta"] = lab.logs["beta"].replace(b"deep checked 80 0", b"deep checked 80 1")
    assert judge_case(lab.save(tmp_path / "activate"))["verdict"] == "corrupt"


def changed_sector(folder: Path, sector: int, data: bytes) -> dict[str, Any]:
    """The verdict after a guest sector of the closed image was changed."""
    meta = json.loads((folder / "metadata/1-all-closed.json").read_text())
    block, inside = divmod(sector, oracle_cases.BLOCK // 512)
    with open(folder / "image.vhd", "r+b") as image:
        image.seek((meta["bat"][str(block)] + 1 + inside) * 512)
        image.write(data)
    return judge_case(folder)


@pytest.mark.parametrize("slot", [0, 12, 24, 36, 40, 44, 46])
def test_a_lost_write_of_a_slot_is_damage(slot: int, tmp_path: Path) -> None:
    lab = oracle_cases.deep()
    folder = lab.save(tmp_path / "activate")
    last = max(seq for seq in range(lab.rounds) if lab.depth.operation(slot, seq)[0] == WRITE)
    _, sector, _ = lab.depth.operation(slot, last)
    entry = changed_sector(folder, sector, bytes(512))
    assert entry["verdict"] == "corrupt"
    assert entry["writes"]["lost"] == 1


def test_a_rewrite_out_of_order_is_damage(tmp_path: Path) -> None:
    lab = oracle_cases.deep()
    folder = lab.save(tmp_path / "activate")
    _, sector, _ = lab.depth.operation(12, 5)
    older = lab.load.sector_content(lab.depth.number(12, 4), sector)
    assert changed_sector(folder, sector, older)["verdict"] == "corrupt"


def freed_sector(lab: oracle_cases.Lab, slot: int) -> tuple[int, int]:
    """(sector, the write that was there) of a sector that nobody wrote since it was freed."""
    left = DeepContent(lab.depth, dict.fromkeys(range(SLOTS), lab.rounds), ended=True)
    seq = max(q for q in range(lab.rounds) if lab.depth.operation(slot, q)[0] in (ZERO, DISCARD))
    _, sector, _ = lab.depth.operation(slot, seq)
    assert sector in left.freed
    return sector, lab.depth.number(slot, seq - 1)


@pytest.mark.parametrize(("slot", "verdict"), [(44, "corrupt"), (46, "consistent")])
def test_discarded_data_may_come_back_and_zeroed_data_may_not(
    slot: int, verdict: str, tmp_path: Path
) -> None:
    lab = oracle_cases.deep()
    folder = lab.save(tmp_path / "activate")
    sector, before = freed_sector(lab, slot)
    data = lab.load.sector_content(before, sector)
    assert changed_sector(folder, sector, data)["verdict"] == verdict


def test_either_write_of_a_pair_may_be_there(tmp_path: Path) -> None:
    lab = oracle_cases.deep()
    folder = lab.save(tmp_path / "activate")
    _, sector, _ = lab.depth.operation(24, lab.rounds - 1)
    for slot, seq, verdict in ((24, 1, "consistent"), (25, 2, "corrupt")):
        number = lab.depth.number(slot, lab.rounds - seq)
        data = lab.load.sector_content(number, sector)
        assert changed_sector(folder, sector, data)["verdict"] == verdict


def test_an_acknowledgement_out_of_turn_is_a_doubt(tmp_path: Path) -> None:
    lab = oracle_cases.deep()
    lab.logs["beta"] = lab.logs["beta"].replace(b"deep 0:4 ", b"deep 0:6 ", 1)
    entry = judge_case(lab.save(tmp_path / "activate"))
    assert entry["verdict"] == "inconclusive"
    assert "slot 0 acknowledges request 6 instead of 4" in entry["why"]
