"""Crash replay: every state in which a power cut can leave a storage."""

import random
from collections.abc import Callable, Iterator

from tests.support.recording_storage import Operation
from vhdtool.storage import MemoryStorage
from vhdtool.vhd.units import SECTOR


def windows(log: list[Operation]) -> Iterator[tuple[list[Operation], list[Operation]]]:
    """(operations before, operations within) each window between two flushes."""
    before: list[Operation] = []
    inside: list[Operation] = []
    for step in log:
        if step.kind == "flush":
            yield list(before), list(inside)
            before += inside
            inside = []
        else:
            inside.append(step)
    yield before, inside


def crashes(
    start: MemoryStorage, log: list[Operation], limit: int = 300, seed: int = 1
) -> Iterator[tuple[MemoryStorage, int]]:
    """(storage after a crash, number of operations that were durable) for each crash point.

    Every prefix; within a flush window also random subsets in random order, with the last write
    torn at a sector. Sampled to about `limit` states.
    """
    dice = random.Random(seed)
    base = start.copy()
    durable = 0
    per_window = max(4, limit // max(1, sum(1 for _ in windows(log))))
    for before, inside in windows(log):
        for step in before[durable:]:
            step.apply(base)
        durable = len(before)
        for state in _states(base, inside, per_window, dice):
            yield state, durable


def _states(
    base: MemoryStorage, inside: list[Operation], limit: int, dice: random.Random
) -> Iterator[MemoryStorage]:
    yield base.copy()
    count = len(inside)
    if not count:
        return
    prefixes = range(1, count + 1)
    for length in prefixes if count <= limit // 2 else dice.sample(prefixes, limit // 2):
        disk = base.copy()
        for step in inside[:length]:
            step.apply(disk)
        yield disk
    for _ in range(limit // 2):
        chosen = [step for step in inside if dice.random() < 0.6]
        dice.shuffle(chosen)
        disk = base.copy()
        for step in chosen[:-1]:
            step.apply(disk)
        if chosen:
            _torn(chosen[-1], disk, dice)
        yield disk


def _torn(step: Operation, disk: MemoryStorage, dice: random.Random) -> None:
    if step.kind != "write" or step.length <= SECTOR:
        step.apply(disk)
        return
    sectors = dice.randrange(step.length // SECTOR + 1)
    if sectors:
        disk.pwrite(step.offset, step.data[: sectors * SECTOR])


def survives(
    start: MemoryStorage,
    log: list[Operation],
    judge: Callable[[MemoryStorage, int], None],
    limit: int = 300,
) -> int:
    """Calls `judge(storage, durable operations)` for each crash; returns how many there were."""
    number = 0
    for disk, durable in crashes(start, log, limit):
        judge(disk, durable)
        number += 1
    return number
