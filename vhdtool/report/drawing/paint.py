"""Colours and lines of the drawings: as a style sheet, and as attributes of each shape.

A page may be shown where inline style sheets are forbidden, as in Jenkins. The attributes colour
the shapes there; a style sheet takes precedence over them where there is one, and knows a dark
screen. Hosts are blue and orange, red means overlap or corruption: told apart with any colour
vision, and every colour is repeated by a word.
"""

from collections.abc import Mapping

LIGHT = {
    "page": "#ffffff", "panel": "#f6f7f9", "line": "#d9dde3", "ink": "#1b1f24", "soft": "#59636e",
    "a": "#0072b2", "a-soft": "#cfe4f3", "b": "#b85c00", "b-soft": "#fbe3c4", "stop": "#6e7781",
    "red": "#c1121f", "red-soft": "#fde3e3", "green": "#00704f", "green-soft": "#d9f2e8",
    "purple": "#7a3e9d", "purple-soft": "#efe1f7", "amber": "#7a5900", "amber-soft": "#fbefc6",
    "on-solid": "#ffffff",
}  # fmt: skip
DARK = {
    "page": "#0f1318", "panel": "#171c23", "line": "#333b46", "ink": "#e8ecf1", "soft": "#a2adb9",
    "a": "#56b4e9", "a-soft": "#123a55", "b": "#e69f00", "b-soft": "#4d3506", "stop": "#8b949e",
    "red": "#ff6b6b", "red-soft": "#4a1519", "green": "#4fd1a5", "green-soft": "#0d3b2d",
    "purple": "#d2a8ff", "purple-soft": "#3a2250", "amber": "#f0c94c", "amber-soft": "#3f3207",
    "on-solid": "#0f1318",
}  # fmt: skip

Attributes = Mapping[str, str]


def _fill(colour: str, **more: str) -> Attributes:
    return {"fill": colour, **{name.replace("_", "-"): value for name, value in more.items()}}


def _line(colour: str, width: str, dashes: str = "") -> Attributes:
    dashed = {"stroke-dasharray": dashes} if dashes else {}
    return {"stroke": colour, "stroke-width": width, **dashed}


def _halo(colour: str) -> Attributes:
    """An outline of the letters, painted first: they stay readable across lines."""
    return {"paint-order": "stroke", **_line(colour, "5"), "stroke-linejoin": "round"}


def _dots(colour: str, width: str) -> Attributes:
    """Lines without length, whose round ends are the dots."""
    return {**_line(colour, width), "stroke-linecap": "round"}


_A, _B = _fill("a-soft", **_line("a", "1")), _fill("b-soft", **_line("b", "1"))
PAINT: Mapping[str, Attributes] = {
    "attached-a": _A, "attached-b": _B, "vm-a": _A, "vm-b": _B,
    "vm-copy": {"stroke-dasharray": "4 3"},
    "vm-stop": _fill("stop"), "phase": _fill("stop"),
    "active-a": _fill("a"), "active-b": _fill("b"),
    "window": _fill("stop", opacity=".16"),
    "overlap": _fill("url(#hatch)", **_line("red", "1.5")),
    "hatch": _line("red", "2.5"),
    "read": _fill("page", **_line("ink", "1.6")),
    "bad": _fill("red", **_line("page", "1")),
    "release": _fill("ink"),
    "axis": _line("soft", "1"),
    "point-line": _line("soft", "1.2", "5 4"),
    "silence": _line("soft", "1.5", "2 4"),
    "group": {"font-weight": "600"},
    "name": _fill("soft"), "tick": _fill("soft"), "unit": _fill("soft"), "mark": _fill("soft"),
    "point": _fill("soft", font_size="10.5px", font_weight="600", **_halo("page")),
    "value": {"font-weight": "600", **_halo("page")},
    "silence-text": _fill("soft", **_halo("page")),
    "overlap-text": _fill("red", font_weight="700", **_halo("page")),
    "on-active-a": _fill("on-solid", font_weight="600", **_halo("a")),
    "on-active-b": _fill("on-solid", font_weight="600", **_halo("b")),
    "below-zero": _fill("red-soft"), "zero": _line("ink", "1"), "tick-line": _line("line", "1"),
    "band": _fill("a-soft"), "median": {"fill": "none", **_line("a", "1.5")},
    "dot": _dots("a", "3.2"), "dot-bad": _dots("red", "5"),
    "remark": _fill("soft", **_halo("page")),
}  # fmt: skip
"""Attributes of each class of shapes; a colour is a key of LIGHT and DARK."""


def attributes(css: str) -> Attributes:
    """The presentation attributes of a shape with these classes, in the colours of a light page."""
    return {
        name: LIGHT.get(value, value)
        for one in css.split()
        for name, value in PAINT.get(one, {}).items()
    }


def rules() -> str:
    """The same as rules of a style sheet, in the colours that `variables` has set."""
    lines = []
    for css, paint in PAINT.items():
        body = "; ".join(f"{k}: {f'var(--{v})' if v in LIGHT else v}" for k, v in paint.items())
        lines.append(f"svg .{css} {{ {body} }}")
    return "\n".join(lines)


def variables(colours: Mapping[str, str]) -> str:
    """The colours as custom properties, for a rule of a style sheet."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
