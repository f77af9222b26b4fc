"""How figures are written, the same in the terminal, the page and the drawings."""


def milliseconds(value: float | None) -> str:
    """A time for a table: one decimal below 100 ms, none above; '-' where it is not known."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def percent(rate: float | None) -> str:
    """A rate in 0..1 as a percentage; '-' where it is not known."""
    return "-" if rate is None else f"{rate * 100:.1f}%"
