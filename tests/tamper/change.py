"""One change of a record: what is done, and which verdicts on the result are right."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.tamper.draft import Draft

CONTRADICTS = frozenset({"corrupt", "inconclusive"})
"""A record that contradicts itself is never consistent and never refused."""
DAMAGED = frozenset({"corrupt"})
DOUBTFUL = frozenset({"inconclusive"})
FAILED = frozenset({"error"})
SAME = frozenset({"same"})
"""Harmless: the verdict stays what it was."""
EITHER = SAME | CONTRADICTS
"""What was changed may have been so, or not: nothing else in the record tells."""
Apply = Callable[[Draft], object]


@dataclass(frozen=True)
class Change:
    """`apply` changes the draft in memory, `raw` the files that were written from it.

    An `apply` that raises LookupError has no place in this record.
    """

    name: str
    right: frozenset[str]
    apply: Apply = lambda draft: None
    raw: Apply = lambda draft: None
