"""A planted fault, and how the finding that it must cause is recognised."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vhdtool.oracle.finding import Finding
from vhdtool.oracle.judge import Evidence, Outcomes

Matches = Callable[[Finding], bool]


@dataclass(frozen=True)
class Fault:
    """`evidence` holds the fault. `matches`: whether a finding names the fault's position."""

    oracle: str
    name: str
    evidence: Evidence
    matches: Matches


def finds(code: str, *texts: str, who: str | None = None) -> Matches:
    """A finding with that code whose message has all the texts, about the host `who` if given."""

    def matches(finding: Finding) -> bool:
        if finding.code != code or (who is not None and who not in finding.who):
            return False
        return all(text in finding.message for text in texts)

    return matches


def at_block(code: str | None, block: int) -> Matches:
    """A finding about that block; with that code, unless it is None."""
    return lambda finding: finding.block == block and code in (None, finding.code)


def at_sector(code: str, sector: int) -> Matches:
    """A finding with that code whose guest sectors have that one."""

    def matches(finding: Finding) -> bool:
        first, count = finding.sectors or (0, 0)
        return finding.code == code and first <= sector < first + count

    return matches


def bat_of(meta: Any) -> dict[str, int]:
    """The BAT of a metadata dump."""
    bat: dict[str, int] = meta["bat"]
    return bat


def damaged_blocks(outcomes: Outcomes) -> set[int]:
    """Blocks with damage, in which a planted fault would be no news."""
    blocks = (finding.block for finding in outcomes.of_severity("corrupt"))
    return {block for block in blocks if block is not None}
