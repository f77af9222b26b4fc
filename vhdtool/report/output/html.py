"""The template environment that the pages share: filters, colours and the style sheet."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from vhdtool.report.drawing import paint
from vhdtool.report.drawing.primitives import decimal
from vhdtool.report.wording import milliseconds, percent

BASE = {"fill": paint.LIGHT["ink"], "font-family": "sans-serif", "font-size": "11.5"}
"""Attributes of each picture, for its labels."""


def environment() -> Environment:
    """An environment that escapes all text and refuses unknown names."""
    made = Environment(
        loader=PackageLoader("vhdtool.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        attributes=paint.attributes, decimal=decimal, ms=_milliseconds, percent=percent
    )
    made.globals.update(
        base=BASE,
        light=paint.variables(paint.LIGHT),
        dark=paint.variables(paint.DARK),
        painted=paint.rules(),
    )
    return made


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else milliseconds(value)
