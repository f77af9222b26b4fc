"""The options of a run: names, types, bounds, defaults and help, and the cases they ask for.

Each field of RunOptions is one option; everything about it stands there. `make lab`, the
playbooks and `vhdtool lab validate` parse their values with it before the run begins. The roles'
argument specifications and the tables of the documents are tested against it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from vhdtool.errors import UsageError
from vhdtool.lab.custom import (
    EXPECTED,
    check_order,
    custom_strategy,
    guards_of,
    parse_order,
)
from vhdtool.lab.strategies import IMAGES, STRATEGIES, Strategy, named, nearest
from vhdtool.oracle.evidence.depth import deep_blocks

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LARGEST_SEED = (1 << 64) - 1
"""The load's sectors have 64 bits for it."""
LEAST_SECONDS = 4
"""The load must allocate for so long. When all blocks are in use before the switch there is nothing
left to lose: of runs with blocks for 1 s none was judged, with 2 s some, with 4 s all."""
SHOWN = 100
"""Characters of a wrong word that a message has."""
_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": GIB << 10}
_SIZE = re.compile(r"([0-9]+)([kmgt]?)", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,30}", re.ASCII)

Read = Callable[[Any], Any]
"""Convert a word, or a value of JSON, to the option's value. Raises ValueError with a text that
follows the name and the value."""


def _number(least: int, most: int, given: Any) -> int:
    if isinstance(given, bool) or not _NUMBER.fullmatch(str(given)):
        raise ValueError("is not a whole number")
    return _within(int(given), least, most)


def _size(least: int, most: int, given: Any, power_of_two: bool = False) -> int:
    """Bytes of a word with or without k, m, g or t."""
    match = _SIZE.fullmatch(str(given))
    if match is None or len(match[1]) > 20 or isinstance(given, bool):
        raise ValueError("is not a size; give a number of bytes, or one with k, m or g, as 256m")
    size = _within(int(match[1]) * _UNITS[match[2].lower()], least, most, _size_word)
    if size % 512:
        raise ValueError("is no whole number of 512-byte sectors")
    if power_of_two and size & (size - 1):
        raise ValueError("is no power of two")
    return size


def _within(value: int, least: int, most: int, word: Callable[[int], str] = str) -> int:
    if value < least:
        raise ValueError(f"is too small, the least is {word(least)}")
    if value > most:
        raise ValueError(f"is too large, the most is {word(most)}")
    return value


def _size_word(size: int) -> str:
    """A size as a user would write it."""
    unit = next(unit for unit in "gmk" if size % _UNITS[unit] == 0)
    return f"{size // _UNITS[unit]}{unit}"


def _one_of(choices: tuple[str, ...], given: Any) -> str:
    if isinstance(given, bool):  # YAML reads on and off as that
        given = "on" if given else "off"
    if given not in choices:
        raise ValueError(f"is none of {', '.join(choices)}")
    return str(given)


def _strategies(given: Any) -> tuple[str, ...]:
    """Names of strategies, from a list or from words with commas between them."""
    words = given.split(",") if isinstance(given, str) else given
    if not isinstance(words, list | tuple):
        raise ValueError("is no list of strategies")
    names = tuple(str(word).strip() for word in words)
    if names == ("all",):
        return names
    for name in names:
        if name == "all":
            raise ValueError("has all beside other names; give it alone")
        named(name)
        if names.count(name) > 1:
            raise ValueError(f"names {name} twice; repeats run a case more than once")
    if not names:
        raise ValueError("names no strategy")
    return names


def _steps(given: Any) -> str:
    """An order of steps, or nothing."""
    if not isinstance(given, str):
        raise ValueError("is no order of steps")
    return str(parse_order(given)) if given.strip() else ""


@dataclass(frozen=True)
class Option:
    """One option: its names for make and for playbooks, and its values."""

    variable: str
    """Its name in playbooks is this after `migration_`."""
    make: str | None
    """None where make has no name for it."""
    default: str
    """As a user would write it."""
    kind: str
    """Its type in the role's argument specification: int, str or list."""
    read: Read
    help: str
    choices: tuple[str, ...] = ()
    """Empty where numbers or sizes are meant."""
    field: str = ""


def _option(
    make: str | None,
    variable: str,
    kind: str,
    read: Read,
    default: str,
    help: str,
    choices: tuple[str, ...] = (),
) -> Any:
    option = Option(variable, make, default, kind, read, help, choices)
    return field(default=read(default), metadata={"option": option})


def _choice(make: str, variable: str, choices: tuple[str, ...], help: str) -> Any:
    """The first choice is the default."""
    read = partial(_one_of, choices)
    return _option(make, variable, "str", read, choices[0], help, choices)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run; sizes in bytes. The defaults are those of `make lab`."""

    # fmt: off
    strategies: tuple[str, ...] = _option(
        "STRATEGY", "strategies", "list", _strategies, "all",
        "Orders of storage operations to try: one, or several with commas.",
    )
    steps: str = _option(
        "STEPS", "steps", "str", _steps, "",
        "Steps of an order of your own, in place of strategies; docs/strategies.md has their form.",
    )
    expect: str = _choice(
        "EXPECT", "expect", EXPECTED,
        "The verdict to expect of it; corrupt runs with the guard off, the others with on.",
    )
    seed: int = _option(
        "SEED", "seed", "int", partial(_number, 0, LARGEST_SEED), "1",
        "Seed of the write load, from 0 to 2^64 - 1; repeats count up from it.",
    )
    guard: str = _choice(
        "GUARD", "guard", ("default", "on", "off"),
        "The backend's guard; by default unsafe orders run with both, the others with on.",
    )
    repeats: int = _option(
        "REPEATS", "repeats", "int", partial(_number, 1, 10_000), "1",
        "How often each case runs, from 1 to 10000.",
    )
    image: str = _choice(
        "IMAGE", "image", IMAGES,
        "Kind of the guest's image, vhd or qcow2; all strategies are those that run on it.",
    )
    image_bytes: int = _option(
        "IMAGE_SIZE", "image_size", "str", partial(_size, 64 * MIB, 2040 * GIB), "2g",
        "Size of the guest's disk, as 2g or 256m, from 64m to 2040g.",
    )
    block_bytes: int = _option(
        "BLOCK_SIZE", "block_size", "str", partial(_size, 512 * KIB, GIB, power_of_two=True), "2m",
        "Block size of the load and of a VHD, a power of two from 512k to 1g.",
    )
    profile: str = _choice(
        "LOAD", "load_profile", ("paced",),
        "The write load in the guest; paced is the only one.",
    )
    pace_us: int = _option(
        "PACE", "load_pace_us", "int", partial(_number, 500, 100_000), "4000",
        "Microseconds between two writes of the paced load, from 500 to 100000.",
    )
    hypervisor: str = _choice(
        "HYPERVISOR", "hypervisor", ("kvm", "xen"),
        "What runs the guest; kvm is QEMU, with KVM or without, xen is xl.",
    )
    accelerator: str = _choice(
        "ACCELERATOR", "accelerator", ("auto", "kvm", "tcg"),
        "How QEMU runs the guest: kvm, tcg, or auto, which asks each host once and remembers.",
    )
    migration_port: int = _option(
        None, "port", "int", partial(_number, 1024, 65535), "49160",
        "TCP port of the migration on the destination; the next few must be free too.",
    )
    # fmt: on

    @classmethod
    def of_make(cls, given: Mapping[str, str]) -> "RunOptions":
        """From make's variables; empty ones count as absent. Raises UsageError."""
        names = {option.make: option for option in OPTIONS if option.make}
        return cls(**_values(names, {n: given[n] for n in names if given.get(n)}, "="))

    @classmethod
    def of_playbook(cls, given: Mapping[str, Any]) -> "RunOptions":
        """From the variables of the role migration. Raises UsageError."""
        names = {f"migration_{option.variable}": option for option in OPTIONS}
        return cls(**_values(names, given, ": "))

    def __post_init__(self) -> None:
        """Check what depends on several options. Raises UsageError."""
        if self.seed + self.repeats - 1 > LARGEST_SEED:
            raise UsageError(
                f"seed: {self.repeats} repeats count up from {self.seed} past {LARGEST_SEED}"
            )
        blocks = self.image_bytes // self.block_bytes
        paced = blocks - deep_blocks(blocks)
        seconds = 2 * paced * self.pace_us / 1e6  # every other write allocates
        if seconds < LEAST_SECONDS:
            raise UsageError(
                f"image size: {blocks} blocks of {self.block_bytes} bytes are all in use after "
                f"{seconds:.1f} s at a write each {self.pace_us} µs, before the switch; a run "
                f"needs {LEAST_SECONDS} s: a larger image, smaller blocks or a slower pace"
            )
        if blocks > 1 << 20:
            raise UsageError(
                f"block size: an image of {self.image_bytes} bytes has {blocks} blocks of "
                f"{self.block_bytes}; the most are {1 << 20}"
            )
        if self.steps and self.strategies != ("all",):
            raise UsageError("steps: are an order of their own; give them without strategies")
        if not self.steps and self.expect != EXPECTED[0]:
            raise UsageError(f"expect: {self.expect} is for an order that is given by its steps")
        for strategy, guard in self.cases():
            if self.steps:
                check_order(strategy.legs[0], guard)

    def left_out(self) -> list[str]:
        """Strategies of "all" that cannot run on this kind of image, and why."""
        if self.steps or "all" not in self.strategies:
            return []
        return [
            f"{one.name}: {one.not_on[self.image]}"
            for one in STRATEGIES.values()
            if not one.runs_on(self.image)
        ]

    def planned(self) -> list[tuple[str, Strategy, bool, int]]:
        """(name, strategy, guard, seed) of each case of the run, in order."""
        return [
            (f"{strategy.name}-{'on' if guard else 'off'}-s{seed}", strategy, guard, seed)
            for seed in range(self.seed, self.seed + self.repeats)
            for strategy, guard in self.cases()
        ]

    def cases(self) -> list[tuple[Strategy, bool]]:
        """(strategy, guard) of each case, in the order of the table."""
        if self.steps:
            strategies = [custom_strategy(self.steps, self.expect)]
        elif "all" in self.strategies:
            strategies = [one for one in STRATEGIES.values() if one.runs_on(self.image)]
        else:
            strategies = [named(name) for name in self.strategies]
        chosen = []
        for strategy in strategies:
            if not strategy.runs_on(self.image):
                raise UsageError(f"strategy {strategy.name}: {strategy.not_on[self.image]}")
            if self.steps:
                guards = guards_of(self.expect, self.guard)
            elif self.guard == "default":
                guards = [True] if strategy.safe else [False, True]
            else:
                guards = [self.guard == "on"]
            chosen += [(strategy, guard) for guard in guards]
        return chosen


OPTIONS = tuple(replace(one.metadata["option"], field=one.name) for one in fields(RunOptions))


def _values(
    names: Mapping[str, Option], given: Mapping[str, Any], between: str = ": "
) -> dict[str, Any]:
    """{field: value} of the given values, by those names. Raises UsageError."""
    values = {}
    for name, value in given.items():
        if name not in names:
            raise UsageError(no_such_option(_shown(name), names))
        option = names[name]
        try:
            values[option.field] = option.read(value)
        except ValueError as error:
            raise UsageError(f"{name}{between}{_shown(value)} {error}") from None
        except UsageError as error:
            raise UsageError(f"{name}{between}{_shown(value)}: {error}") from None
    return values


def no_such_option(name: str, known: Iterable[str]) -> str:
    """The message for an unknown name."""
    names = list(known)
    return f"{name}: no such option; {nearest(name, names)}there are {', '.join(names)}"


def _shown(given: Any) -> str:
    """The start of a value on one line, for a message."""
    text = str(given)
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return text if text.isprintable() else repr(text)


def of_record(given: Mapping[str, Any]) -> dict[str, Any]:
    """{field: value} of the options in a run's configuration. Raises UsageError."""
    return _values({option.field: option for option in OPTIONS}, given)
