"""What was counted before an incarnation, as it travels: what the exporter said of it, and what this process has added.

Only an exporter knows what earlier processes of the run have counted, and it may lose its directory at any time, the
moment after a new incarnation began included. So what was said once is kept, and every incarnation takes it over from the last.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from optwrap._reading.counters import OUTCOMES

Base = Mapping[str, Any]
"""Counters in the wire's form."""

_LARGEST: Final = 2**53
"""The largest count that the wire takes."""

_REPLICA: Final = ("replica", "process", "device")
"""What tells one replica from the others."""


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
    outcomes = {name: join(a["outcomes"][name], b["outcomes"][name]) for name in OUTCOMES}
    mine, others = a["parameters"], b["parameters"]
    replicas = _by_replica(a), _by_replica(b)
    found = {
        "steps": sum(outcomes.values()),
        "gradient_steps": outcomes["applied"] + outcomes["accepted_not_finite"],
        "not_finite_steps": join(a["not_finite_steps"], b["not_finite_steps"]),
        "outcomes": outcomes,
        "parameters": {path: join(mine.get(path, 0), others.get(path, 0)) for path in {**mine, **others}},
    }
    if any(replicas):
        mine, others = replicas
        found["replicas"] = [
            {
                "replica": index,
                "process": process,
                "device": device,
                "steps": join(mine.get(key, 0), others.get(key, 0)),
            }
            for key in {**mine, **others}
            for index, process, device in [key]
        ]
    return found


def _by_replica(of: Base) -> dict[Any, int]:
    """Steps by replica, process and device; an exporter of before knows of none."""
    return {tuple(row[name] for name in _REPLICA): row["steps"] for row in of.get("replicas", ())}
