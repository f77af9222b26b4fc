"""Typed values from JSON of unknown shape, with a default for each wrong type.

A record may be torn, hand-edited or written by a newer version, and a report is made of it all the
same. None of the functions raises; `vhdtool.oracle.evidence.json_fields` is the strict reader.
"""

import math
import re
from typing import Any

# No control characters (a terminal would obey them), no lone surrogates (nothing can encode
# them). XML 1.0 can hold all that is left.
_UNPRINTABLE = re.compile("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(value: object, default: str = "") -> str:
    """Return a string, or `default`; unprintable characters become U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", value) if isinstance(value, str) else default


def number(value: object) -> float | None:
    """Return a finite float, or None; a bool is not a number here."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def integer(value: object) -> int | None:
    """Return an int, or None; a bool is not a number here."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def mapping(value: object) -> dict[str, Any]:
    """Return a dict, or an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    """Return a list, or an empty one."""
    return value if isinstance(value, list) else []
