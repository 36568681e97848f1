"""What was counted before an epoch, as it travels: what the exporter said of it, and what this process has added.

Only an exporter knows what earlier processes of the run have counted, and it may lose its directory at any time, the
moment after a new epoch began included. So what was said once is kept, and every epoch takes it over from the last.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from optwrap.telemetry.state import VERDICTS

Base = Mapping[str, Any]
"""Counters in the wire's form."""

_LARGEST: Final = 2**53
"""The largest count that the wire takes."""


def plus(a: Base | None, b: Base) -> Base | None:
    """Both, count by count; None where that is nothing."""
    found = b if a is None else _joined(a, b, lambda x, y: min(x + y, _LARGEST))
    return found if found["steps"] else None


def largest(a: Base | None, b: Base | None) -> Base | None:
    """The larger, count by count: what was known before the loss of a directory is no less true after it."""
    return _joined(a, b, max) if a and b else a or b


def checked(said: object) -> Base | None:
    """What an exporter said.

    Raises:
      TypeError, KeyError: it is no base, and who said it no exporter.
    """
    if said is None:
        return None
    if not isinstance(said, dict):
        raise TypeError(f"base: got a {type(said).__name__}")
    return _joined(said, said, max)


def _joined(a: Base, b: Base, join: Callable[[int, int], int]) -> Base:
    verdicts = {name: join(a["verdicts"][name], b["verdicts"][name]) for name in VERDICTS}
    mine, others = a["parameters"], b["parameters"]
    return {
        "steps": sum(verdicts.values()),
        "gradient_steps": verdicts["applied"] + verdicts["accepted_not_finite"],
        "not_finite_steps": join(a["not_finite_steps"], b["not_finite_steps"]),
        "verdicts": verdicts,
        "parameters": {path: join(mine.get(path, 0), others.get(path, 0)) for path in {**mine, **others}},
    }
