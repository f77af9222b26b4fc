"""Collects findings, and limits the number of one code that a damaged table can produce."""

from collections import Counter

from vhdtool.image.metadata.findings import Finding, Severity

LIMIT = 10_000
_ORDER = {"corrupt": 0, "unclean": 1, "info": 2}


class Collector:
    """The findings of one check, whose `mode` is strict, unclean or live."""

    def __init__(self, mode: str, limit: int = LIMIT) -> None:
        self.mode = mode
        self._limit = limit
        self._findings: list[Finding] = []
        self._count: Counter[tuple[str, Severity]] = Counter()

    def add(
        self,
        code: str,
        severity: Severity,
        message: str,
        block: int | None = None,
        offset: int | None = None,
        sectors: tuple[int, int] | None = None,
    ) -> None:
        """Add a finding; one beyond the limit is only counted."""
        self._count[code, severity] += 1
        if self._count[code, severity] <= self._limit:
            self._findings.append(Finding(code, severity, message, block, offset, sectors))

    def corrupt(
        self,
        code: str,
        message: str,
        block: int | None = None,
        offset: int | None = None,
        sectors: tuple[int, int] | None = None,
    ) -> None:
        self.add(code, "corrupt", message, block, offset, sectors)

    def unclean(self, code: str, message: str, offset: int | None = None) -> None:
        self.add(code, "unclean", message, None, offset)

    def info(self, code: str, message: str, offset: int | None = None) -> None:
        self.add(code, "info", message, None, offset)

    def unclosed(self, code: str, message: str, offset: int | None = None) -> None:
        """Add a finding that is normal in an image that was not closed."""
        severity: Severity = "unclean" if self.mode == "strict" else "info"
        self.add(code, severity, message, None, offset)

    def is_full(self, code: str) -> bool:
        """Whether further corrupt findings of a code would only be counted."""
        return self._count[code, "corrupt"] >= self._limit

    def count_only(self, code: str, number: int) -> None:
        """Count corrupt findings of a code that is full."""
        self._count[code, "corrupt"] += number

    def truncated(self) -> set[str]:
        """Codes with more corrupt findings than the limit."""
        return {
            code
            for (code, severity), count in self._count.items()
            if severity == "corrupt" and count > self._limit
        }

    def findings(self) -> list[Finding]:
        """All findings, worst first, then in the order in which they were added."""
        extra = [
            Finding(code, severity, f"and {count - self._limit} more of these")
            for (code, severity), count in self._count.items()
            if count > self._limit
        ]
        return sorted(self._findings, key=lambda f: _ORDER[f.severity]) + extra
