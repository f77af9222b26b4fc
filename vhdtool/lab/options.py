"""The options of a run: their names, what each may be, and which cases they ask for.

The one home of all that. `make lab` and the playbooks ask it before anything is made, and the
runner once more when it reads its configuration.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vhdtool.errors import UsageError
from vhdtool.lab.strategies import IMAGES, STRATEGIES, Strategy, named
from vhdtool.oracle.evidence.depth import deep_blocks

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LARGEST_SEED = (1 << 64) - 1
"""The load's records have 64 bits for it."""
LEAST_SECONDS = 4
"""The load must go on allocating for as long. With all blocks in use before the switch there is
nothing left to lose: of runs with 1 s of blocks none was judged, with 2 s some, with 4 s all."""
_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": GIB << 10}
_SIZE = re.compile(r"([0-9]+)([kmgt]?)", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,30}", re.ASCII)

Read = Callable[[Any], Any]
"""From what was given (a word, or a value of JSON) to a value. Raises ValueError that says why not;
its text follows the name and the value."""


def _number(least: int, most: int) -> Read:
    def read(given: Any) -> int:
        if isinstance(given, bool) or not _NUMBER.fullmatch(str(given)):
            raise ValueError("is not a whole number")
        return _within(int(given), least, most)

    return read


def _size(least: int, most: int, power_of_two: bool = False) -> Read:
    def read(given: Any) -> int:
        match = _SIZE.fullmatch(str(given))
        if match is None or len(match[1]) > 20 or isinstance(given, bool):
            raise ValueError(
                "is not a size; give a number of bytes, or one with k, m or g, as 256m"
            )
        size = _within(int(match[1]) * _UNITS[match[2].lower()], least, most)
        if size % 512:
            raise ValueError("is no whole number of 512-byte sectors")
        if power_of_two and size & (size - 1):
            raise ValueError("is no power of two")
        return size

    return read


def _within(value: int, least: int, most: int) -> int:
    if value < least:
        raise ValueError(f"is too small, the least is {least}")
    if value > most:
        raise ValueError(f"is too large, the most is {most}")
    return value


def _one_of(*words: str) -> Read:
    def read(given: Any) -> str:
        if given not in words:
            raise ValueError(f"is none of {', '.join(words)}")
        return str(given)

    return read


def _strategies(given: Any) -> tuple[str, ...]:
    """Words with commas between them, or a list."""
    words = given.split(",") if isinstance(given, str) else list(given)
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


@dataclass(frozen=True)
class Option:
    """A field of RunOptions, its variable in playbooks (after `migration_`), its name for make."""

    field: str
    variable: str
    make: str | None
    read: Read


OPTIONS = (
    Option("strategies", "strategies", "STRATEGY", _strategies),
    Option("seed", "seed", "SEED", _number(0, LARGEST_SEED)),
    Option("guard", "guard", "GUARD", _one_of("default", "on", "off")),
    Option("repeats", "repeats", "REPEATS", _number(1, 10_000)),
    Option("image", "image", "IMAGE", _one_of(*IMAGES)),
    Option("image_bytes", "image_size", "IMAGE_SIZE", _size(64 * MIB, 2040 * GIB)),
    Option("block_bytes", "block_size", "BLOCK_SIZE", _size(512 * KIB, GIB, power_of_two=True)),
    Option("profile", "load_profile", "LOAD", _one_of("paced")),
    Option("pace_us", "load_pace_us", "PACE", _number(500, 100_000)),
    Option("hypervisor", "hypervisor", "HYPERVISOR", _one_of("kvm")),
    Option("accelerator", "accelerator", "ACCELERATOR", _one_of("auto", "kvm", "tcg")),
    Option("migration_port", "port", None, _number(1024, 65535)),
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run is asked for; sizes in bytes. The defaults are those of `make lab`."""

    strategies: tuple[str, ...] = ("all",)
    guard: str = "default"
    seed: int = 1
    repeats: int = 1
    image: str = "vhd"
    """The kind of the guest's image: vhd or qcow2."""
    image_bytes: int = 2048 * MIB
    block_bytes: int = 2 * MIB
    profile: str = "paced"
    pace_us: int = 4000
    hypervisor: str = "kvm"
    accelerator: str = "auto"
    migration_port: int = 49160

    @classmethod
    def of_make(cls, given: Mapping[str, str]) -> "RunOptions":
        """From make's variables, an empty one counting as absent. Raises UsageError."""
        names = {option.make: option for option in OPTIONS if option.make}
        return cls(**_values(names, {n: given[n] for n in names if given.get(n)}, "="))

    @classmethod
    def of_playbook(cls, given: Mapping[str, Any]) -> "RunOptions":
        """From the variables of the role migration. Raises UsageError."""
        names = {f"migration_{option.variable}": option for option in OPTIONS}
        return cls(**_values(names, given, ": "))

    def __post_init__(self) -> None:
        """What only several options together can be wrong about."""
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
        self.cases()

    def command(self, inventory: str | None) -> str:
        """What a user types for such a run: `make lab`, or the playbook with that inventory."""
        usual = RunOptions()
        words = []
        for option in OPTIONS:
            value = getattr(self, option.field)
            value = ",".join(value) if isinstance(value, tuple) else value
            always = option.field in ("strategies", "seed", "guard")
            if not always and value == getattr(usual, option.field):
                continue
            if inventory is None and option.make:
                words.append(shlex.quote(f"{option.make}={value}"))
            elif inventory is not None:
                words.append("-e " + shlex.quote(f"migration_{option.variable}={value}"))
        if inventory is None:
            return " ".join(["make lab", *words])
        playbook = f".venv/bin/ansible-playbook -i {shlex.quote(inventory)} playbooks/lab.yml"
        return " ".join([playbook, *words])

    def left_out(self) -> list[str]:
        """Orders of "all" that cannot run on this kind of image, and why."""
        if "all" not in self.strategies:
            return []
        return [
            f"{one.name}: {one.not_on[self.image]}"
            for one in STRATEGIES.values()
            if not one.runs_on(self.image)
        ]

    def planned(self) -> list[tuple[str, Strategy, bool, int]]:
        """(name, strategy, guard, seed) of each case that the run has, in their order."""
        return [
            (f"{strategy.name}-{'on' if guard else 'off'}-s{seed}", strategy, guard, seed)
            for seed in range(self.seed, self.seed + self.repeats)
            for strategy, guard in self.cases()
        ]

    def cases(self) -> list[tuple[Strategy, bool]]:
        """(strategy, guard) of each case, in the order of the table."""
        if "all" in self.strategies:
            strategies = [one for one in STRATEGIES.values() if one.runs_on(self.image)]
        else:
            strategies = [named(name) for name in self.strategies]
        chosen = []
        for strategy in strategies:
            if not strategy.runs_on(self.image):
                raise UsageError(f"strategy {strategy.name}: {strategy.not_on[self.image]}")
            if self.guard == "default":
                guards = [True] if strategy.safe else [False, True]
            else:
                guards = [self.guard == "on"]
            chosen += [(strategy, guard) for guard in guards]
        return chosen


def _values(
    names: Mapping[str, Option], given: Mapping[str, Any], between: str = ": "
) -> dict[str, Any]:
    """{field: value} of what was given by those names. Raises UsageError."""
    values = {}
    for name, value in given.items():
        if name not in names:
            raise UsageError(f"{name}: no such option; there are {', '.join(names)}")
        option = names[name]
        try:
            values[option.field] = option.read(value)
        except ValueError as error:
            raise UsageError(f"{name}{between}{value} {error}") from None
        except UsageError as error:
            raise UsageError(f"{name}{between}{value}: {error}") from None
    return values


def of_record(given: Mapping[str, Any]) -> dict[str, Any]:
    """{field: value} of the options in a run's configuration. Raises UsageError."""
    return _values({option.field: option for option in OPTIONS}, given)
