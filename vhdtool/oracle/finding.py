"""Findings of an oracle, and the result that follows from them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["corrupt", "left", "doubt", "info"]
Result = Literal["pass", "fail", "skip"]

SHOWN = 50
"""Findings of one oracle that a verdict lists; a last one counts the rest."""


@dataclass(frozen=True)
class Finding:
    """One observation.

    Severities: `corrupt` is proof of damage. `left` is proof that a host still holds something of
    the case, without damage to the disk. `doubt` means that a part of the record is missing or
    contradictory, so that the oracle cannot pass. `info` has no effect on the result.
    Positions: `block` of the disk, `sectors` (first, count) in guest sectors, `offset` in bytes of
    the file, `epochs` (first, end) half open, `who` "host:pid" of the processes.
    """

    code: str
    message: str
    severity: Severity = "corrupt"
    block: int | None = None
    sectors: tuple[int, int] | None = None
    offset: int | None = None
    epochs: tuple[int, int] | None = None
    who: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The entry of verdict.json; `offset`, `epochs` and `who` only if they are set."""
        entry: dict[str, object] = {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "block": self.block,
            "sectors": list(self.sectors) if self.sectors else None,
        }
        if self.offset is not None:
            entry["offset"] = self.offset
        if self.epochs is not None:
            entry["epochs"] = list(self.epochs)
        if self.who:
            entry["who"] = list(self.who)
        return entry


def doubt(code: str, message: str) -> Finding:
    """A finding of severity `doubt`."""
    return Finding(code, message, "doubt")


@dataclass(frozen=True)
class Outcome:
    """All findings of one oracle, in the order of discovery."""

    findings: tuple[Finding, ...] = field(default=())

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> "Outcome":
        return cls(tuple(findings))

    @property
    def result(self) -> Result:
        """`fail` with any proof, else `skip` with any doubt, else `pass`."""
        severities = {finding.severity for finding in self.findings}
        if severities & {"corrupt", "left"}:
            return "fail"
        return "skip" if "doubt" in severities else "pass"

    def of_severity(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def as_dict(self) -> dict[str, object]:
        """The entry of verdict.json: proof first, at most SHOWN findings and a count."""
        order = {"corrupt": 0, "left": 1, "doubt": 2, "info": 3}
        listed = sorted(self.findings, key=lambda finding: order[finding.severity])
        shown = [finding.as_dict() for finding in listed[:SHOWN]]
        if len(listed) > SHOWN:
            rest = f"{len(listed) - SHOWN} more findings, {len(listed)} in all"
            shown.append(Finding("more", rest, "info").as_dict())
        return {"result": self.result, "findings": shown}
