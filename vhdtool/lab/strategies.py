"""The strategies, as data: steps, expectations and texts. A new strategy is a new entry here.

A leg is one migration. Its steps come before, between and after the hypervisor's two points:
SUSPENDED (the guest at the source is stopped, all its requests are answered) and RESUME (the guest
may run at the destination). Each step is an operation on S (source) or D (destination);
docs/strategies.md says what each operation does.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from vhdtool.errors import UsageError

ALL_POINTS = (
    "source-quiesced",
    "source-closed",
    "destination-opened",
    "destination-wrote",
    "all-closed",
)
IMAGES = ("vhd", "qcow2")
_STEP = re.compile(r"([SD])\.([a-z]+)(?:\(([a-z]+)\))?")
OPERATIONS = ("attach", "open", "activate", "pause", "unpause", "deactivate", "detach", "probe")


@dataclass(frozen=True)
class Step:
    """One operation: `side` is S or D, `argument` the mode of an open."""

    side: str
    operation: str
    argument: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Step":
        """Parse a step. Raises UsageError when there is no such operation.

        >>> Step.parse("D.open(each)")
        Step(side='D', operation='open', argument='each')
        """
        match = _STEP.fullmatch(text)
        if match is None or match[2] not in OPERATIONS:
            words = [f"{side}.{operation}" for side in "SD" for operation in OPERATIONS]
            raise UsageError(
                f"strategy step {text!r}: no such operation; {nearest(text, words)}"
                f"there are {', '.join(OPERATIONS)}, of S (source) or D (destination)"
            )
        return cls(match[1], match[2], match[3])

    def __str__(self) -> str:
        return f"{self.side}.{self.operation}" + (f"({self.argument})" if self.argument else "")


@dataclass(frozen=True)
class Leg:
    """One migration: steps before SUSPENDED, between SUSPENDED and RESUME, after RESUME.

    An `attach` at the start of `before` comes before the destination's guest starts, the other
    steps while the guest's memory is copied. `back`: the hosts have changed roles. `fault`: what
    the runner breaks after the steps of `switch`; `recover` are the steps of the rollback.
    """

    before: tuple[Step, ...]
    switch: tuple[Step, ...]
    after: tuple[Step, ...]
    back: bool = False
    fault: str | None = None
    recover: tuple[Step, ...] = ()
    points: tuple[str, ...] = ALL_POINTS

    def __str__(self) -> str:
        return (
            " | ".join(" ".join(map(str, part)) for part in self.parts).replace("  ", " ").strip()
        )

    @property
    def parts(self) -> tuple[tuple[Step, ...], ...]:
        return self.before, self.switch, self.after

    @property
    def pauses_destination(self) -> bool:
        """Whether the shim makes the destination's guest wait from SUSPENDED to the last step.

        A leg without steps between SUSPENDED and RESUME needs no wait.
        """
        return not self.switch or Step("D", "pause") in self.before


@dataclass(frozen=True)
class Strategy:
    """A named order, its expected verdicts, and the snapshots that its record must have."""

    name: str
    legs: tuple[Leg, ...]
    safe: bool
    label: str
    """The option of the mail that the order belongs to; reports show it beside the name."""
    summary: str
    """What the order does, for reports and `vhdtool lab strategies`."""
    refused_points: tuple[str, ...] = ("all-closed",)
    not_on: Mapping[str, str] = field(default_factory=dict)
    """Kinds of image on which the order cannot run, and why."""
    lun: bool = False
    """Whether the image is on a LUN, which with the guard on one host at a time can use."""
    vdi: bool = False
    """Whether attach, activate, deactivate and detach are the VDI operations of each host."""

    def runs_on(self, image: str) -> bool:
        return image not in self.not_on

    def expected(self, guard: bool) -> str:
        """The verdict that the table of docs/strategies.md promises."""
        if self.safe:
            return "consistent"
        return "refused" if guard else "corrupt"

    def points(self, guard: bool) -> dict[str, list[str]]:
        """The snapshots that each leg must have; a refused one has fewer."""
        if guard and not self.safe:
            return {"1": list(self.refused_points)}
        return {str(n): list(leg.points) for n, leg in enumerate(self.legs, start=1)}


def leg(text: str, **more: object) -> Leg:
    """Make a leg from one line: the steps before, between and after, divided by `|`."""
    before, switch, after = (
        tuple(Step.parse(word) for word in part.split()) for part in text.split("|")
    )
    return Leg(before, switch, after, **more)  # type: ignore[arg-type]


_ACTIVATE = "D.attach | S.deactivate D.activate | S.detach"

STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "overlap",
            (leg("D.attach D.open | | S.deactivate S.detach"),),
            safe=False,
            label="the bug",
            summary=(
                "The destination opens the image before the guest is suspended, and the source "
                "closes it only after the guest runs again."
            ),
            refused_points=("destination-opened", "source-quiesced", "all-closed"),
        ),
        Strategy(
            "late-close",
            (leg("| D.attach D.open | S.deactivate S.detach"),),
            safe=False,
            label="the bug",
            summary=(
                "The destination opens the image once the guest is suspended, but the source still "
                "has it open until after the guest runs again."
            ),
            refused_points=("destination-opened", "source-quiesced", "all-closed"),
        ),
        Strategy(
            "reopen-early",
            (leg("D.attach D.open | D.pause D.unpause S.deactivate | S.detach"),),
            safe=False,
            label="B, too early",
            summary=(
                "The destination reopens the image before the source has closed it; of a VHD the "
                "source then writes its footer over the newer state."
            ),
            refused_points=("destination-opened", "source-quiesced", "all-closed"),
        ),
        Strategy(
            "activate",
            (leg(_ACTIVATE),),
            safe=True,
            label="A",
            summary=(
                "The source deactivates (closes), then the destination activates (opens); the two "
                "never overlap."
            ),
        ),
        Strategy(
            "reopen",
            (leg("D.attach D.open | S.deactivate D.pause D.unpause | S.detach"),),
            safe=True,
            label="B",
            summary=(
                "The destination opens early, and reads everything again with pause and unpause "
                "after the source has closed."
            ),
        ),
        Strategy(
            "hold",
            (leg("D.attach D.open D.pause | S.deactivate D.unpause | S.detach"),),
            safe=True,
            label="B, held",
            summary=(
                "The destination opens early and is paused at once; it reopens only after the "
                "source has closed."
            ),
        ),
        Strategy(
            "implicit",
            (leg("D.attach D.open(each) | S.deactivate | S.detach"),),
            safe=True,
            label="C",
            summary=(
                "Every request of the destination closes and opens the image, so none is served on "
                "old metadata."
            ),
            not_on={"qcow2": "does not run on qcow2: a reopen for each request is not done there"},
        ),
        Strategy(
            "implicit-first",
            (leg("D.attach D.open(first) D.probe | S.deactivate | S.detach"),),
            safe=False,
            label="C, first only",
            summary=(
                "Only the destination's first request reopens the image, and a probe at attach "
                "uses that one up too early."
            ),
            refused_points=("destination-opened", "all-closed"),
        ),
        Strategy(
            "login",
            (leg("| S.deactivate D.attach D.activate | S.detach"),),
            safe=True,
            label="A, exclusive",
            summary="As activate, on a LUN that lets no second host log in.",
            not_on={"qcow2": "does not run on qcow2: qemu-nbd has no part in the shim's login"},
            lun=True,
        ),
        Strategy(
            "xcp",
            (leg(_ACTIVATE),),
            safe=True,
            label="A, by XCP's operations",
            summary="As activate, by VDI operations on each host, with keys beside the image.",
            vdi=True,
        ),
        Strategy(
            "activate-back",
            (leg(_ACTIVATE), leg(_ACTIVATE, back=True)),
            safe=True,
            label="A, there and back",
            summary="Two migrations in a row with activate.",
        ),
        Strategy(
            "activate-retry",
            (
                leg(
                    "D.attach | S.deactivate D.activate |",
                    fault="destination-qemu-killed",
                    recover=tuple(
                        Step.parse(word) for word in ("D.deactivate", "S.activate", "D.detach")
                    ),
                    points=("source-quiesced", "source-closed"),
                ),
                leg(_ACTIVATE),
            ),
            safe=True,
            label="A, failed and retried",
            summary=(
                "The destination's QEMU is killed after the source has deactivated; the guest runs "
                "on at the source, and the second attempt succeeds."
            ),
        ),
    )
}


def named(name: str) -> Strategy:
    """The strategy of that name. Raises UsageError, which lists all, when there is none."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise UsageError(
            f"strategy {name!r} does not exist; "
            f"{nearest(name, STRATEGIES)}there are {', '.join(STRATEGIES)}"
        ) from None


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean NAME? ` where a known word is much like this one, else nothing."""
    names = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), names, 1)
    return f"did you mean {names[close[0]]}? " if close else ""
