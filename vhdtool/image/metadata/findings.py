"""Findings of a check or a comparison, the report on one image, and their exit codes."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Never

if TYPE_CHECKING:
    # Only the annotation needs it; the lab's agent and `vhdtool diff` do without the module.
    from vhdtool.image.metadata.orphans import Orphan

Severity = Literal["corrupt", "unclean", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `offset` in bytes of the file; `sectors` = (first, count) of the guest."""

    code: str
    severity: Severity
    message: str
    block: int | None = None
    offset: int | None = None
    sectors: tuple[int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON types."""
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "block": self.block,
            "offset": self.offset,
            "sectors": list(self.sectors) if self.sectors is not None else None,
        }


def exit_code(findings: list[Finding]) -> int:
    """0: consistent; 2: corrupt; 3: unclean or leaks, but nothing lost. (1: not checked.)"""
    severities = {finding.severity for finding in findings}
    if "corrupt" in severities:
        return 2
    return 3 if "unclean" in severities else 0


VERDICTS = {0: "consistent", 2: "corrupt", 3: "unclean"}
"""Exit code of a check -> verdict."""


class NoTruthValue:
    """A result with more than two values: `if result:` could be read either way, and raises."""

    __slots__ = ()

    def __bool__(self) -> Never:
        raise TypeError(
            f"a {type(self).__name__} has no truth value; ask for one of its fields, as "
            "`consistent` of a report"
        )


class Judged(NoTruthValue):
    """What follows from the findings of a check."""

    __slots__ = ()

    @property
    def findings(self) -> list[Finding]:
        """All findings."""
        raise NotImplementedError

    @property
    def exit_code(self) -> int:
        """0 consistent, 2 corrupt, 3 unclean but nothing lost."""
        return exit_code(self.findings)

    @property
    def consistent(self) -> bool:
        """Whether nothing is corrupt, unclean or leaked, in the image and its checked parents."""
        return self.exit_code == 0

    @property
    def verdict(self) -> str:
        """consistent, unclean or corrupt."""
        return VERDICTS[self.exit_code]


@dataclass(slots=True)
class CheckReport(Judged):
    """All findings about one image, worst first."""

    name: str
    mode: str
    findings: list[Finding] = field(default_factory=list)
    blocks: int = 0
    """Number of blocks of the disk."""
    allocated: int = 0
    orphans: "list[Orphan]" = field(default_factory=list)
    """Blocks in the file that no BAT entry names."""
    truncated: set[str] = field(default_factory=set)
    """Codes of corrupt findings of which `findings` has not all."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "image": self.name,
            "mode": self.mode,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "blocks": self.blocks,
            "allocated": self.allocated,
            "findings": [finding.as_dict() for finding in self.findings],
        }
