"""Reading values of unknown shape: whatever is in a record, a report must still come out.

A record may be torn, hand-edited or written by a newer version. Each function returns the value
if it has the wanted type and a harmless default if it has not; none of them raises.
"""

import math
import re
from typing import Any

# No control characters (a terminal would obey them), no lone surrogates (nothing can encode
# them), and so also nothing that XML 1.0 has no way to write.
_UNPRINTABLE = re.compile("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(value: object, default: str = "") -> str:
    """`value` if it is a string, else `default`; what cannot be shown becomes U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", value) if isinstance(value, str) else default


def number(value: object) -> float | None:
    """`value` as a finite float, or None (bool is not a number here)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def integer(value: object) -> int | None:
    """`value` if it is an int (not a bool), else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def mapping(value: object) -> dict[str, Any]:
    """`value` if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []
