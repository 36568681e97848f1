"""Numbers, durations and names for a terminal, written as on the page."""

import math
from typing import Final


def clean(text: str) -> str:
    """The text without control characters, because clients choose the names in it."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def number(value: object) -> str:
    """Three significant digits: 0.812, 12.3, 4,120, 3.1e-7. A number that is not finite by its name; empty for None."""
    if value is None:
        return ""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return clean(str(value)).replace("Infinity", "∞")
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6 or size < 1e-3:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}"


def percent(part: int, whole: int) -> str:
    """A share in per cent: 0 %, < 0.1 %, 1.4 %, 12 %. Empty if there is nothing to be a share of."""
    if not whole:
        return ""
    share = 100 * part / whole
    if share == 0:
        return "0 %"
    if share < 0.1:
        return "< 0.1 %"
    return f"{share:.1f} %" if share < 10 else f"{share:.0f} %"


def duration(seconds: float) -> str:
    """Seconds as 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    big, unit, small, small_unit = next(size for size in _SIZES if whole >= size[0])
    rest = whole % big // small
    return f"{whole // big} {unit}" + (f" {rest} {small_unit}" if rest else "")


_SIZES: Final = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
"""Seconds of a unit, its name, and the same of the unit below it."""
