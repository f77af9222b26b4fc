"""Strict parsing of JSON values: a wrong type or range raises, nothing is converted or guessed."""

import json
import math
from collections.abc import Mapping
from typing import Never

from vhdtool.errors import VhdtoolError


class TornRecord(VhdtoolError):
    """A file of a record is missing, torn or cannot be parsed."""


Object = Mapping[str, object]
MOST = 10**15
LONGEST_TEXT = 2000
"""Characters of a text that a sentence of a verdict quotes: those that we write are whole."""


def _no_constant(text: str) -> Never:
    raise ValueError(f"{text} is not a number")


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuses an object with a repeated key: parsers differ in which value they take."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} is repeated")
    return value


def parse_object(data: bytes) -> Object:
    """Parses one JSON object in UTF-8. Raises TornRecord without the file's name."""
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_key_twice
        )
    except (ValueError, RecursionError) as error:
        raise TornRecord(f"not JSON ({str(error)[:80]})") from error
    if not isinstance(value, dict):
        raise TornRecord("not a JSON object")
    return value


def integer(source: Object, key: str, low: int = 0, high: int = 1 << 63) -> int:
    """An integer in low..high. Raises TornRecord for anything else, as all functions below."""
    value = source.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise TornRecord(f"{key!r} is {_shown(value)}, not an integer from {low} to {high}")
    return value


def optional_integer(source: Object, key: str) -> int | None:
    """An integer from 0, or None if the key is null or absent."""
    return None if source.get(key) is None else integer(source, key)


def number(source: Object, key: str) -> float:
    """A finite number."""
    value = source.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TornRecord(f"{key!r} is {_shown(value)}, not a number")
    # Compared before it is converted: an integer may be too large for a float.
    if not abs(value) <= MOST or not math.isfinite(value):
        raise TornRecord(f"{key!r} is {_shown(value)}, out of range")
    return float(value)


def optional_number(source: Object, key: str) -> float | None:
    """A finite number, or None if the key is null or absent."""
    return None if source.get(key) is None else number(source, key)


def text(source: Object, key: str) -> str:
    """A string that is not empty."""
    value = source.get(key)
    if not isinstance(value, str) or not value:
        raise TornRecord(f"{key!r} is {_shown(value)}, not a non-empty string")
    return value


def boolean(source: Object, key: str) -> bool:
    value = source.get(key)
    if not isinstance(value, bool):
        raise TornRecord(f"{key!r} is {_shown(value)}, not true or false")
    return value


def one_line(value: object) -> str:
    """Any value as text on one line, to be quoted; cut only where it is very long."""
    line = " ".join(str(value).split())
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]}..."


def _shown(value: object) -> str:
    return "absent" if value is None else repr(value)[:40]
