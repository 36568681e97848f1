"""The parameters of the query routes."""

import math
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, NamedTuple

from fastapi import Path, Query

from optwrap_exporter.http.errors import refused
from optwrap_exporter.wire.times import TIME_FORMS, parse_time
from optwrap_exporter.wire.vocabulary import Run

RunName = Annotated[Run, Path(description="The run's name.", examples=["lm-7b"])]
Limit = Annotated[int, Query(ge=1, le=1000, description="The most items to return.")]
Cursor = Annotated[str | None, Query(max_length=2000, description="The cursor of the previous page.")]
ProcessNumber = Annotated[
    int | None, Query(ge=0, le=65535, description="The process; by default the one whose gauges the run shows.")
]
Since = Annotated[
    str | None,
    Query(max_length=64, description=f"The earliest time: {TIME_FORMS}.", examples=["-86400", "2026-11-29T07:00:00Z"]),
]
Until = Annotated[str | None, Query(max_length=64, description="The time before which things are, in the same forms.")]


_LONGEST: Final = 365 * 86_400


class Range(NamedTuple):
    """A range of time in seconds since 1970. None is without an end."""

    since: float | None
    until: float | None


def time_range(since: str | None, until: str | None, now: float) -> Range:
    """The range that the parameters `since` and `until` ask for.

    Args:
      since: the parameter `since`.
      until: the parameter `until`.
      now: the exporter's clock.

    Raises:
      HTTPException: 422 if one is no time, or if they are in the wrong order.
    """
    found = Range(_time("since", since, now), _time("until", until, now))
    if found.since is not None and found.until is not None and found.since > found.until:
        raise refused(422, "until", until, f"a time from since on, {since}")
    return found


def page_of(now: Callable[[], float]) -> Callable[..., Awaitable[dict[str, Any]]]:
    """The dependency of every route that lists things by time: `since`, `until`, `limit` and `cursor`, by name.

    Args:
      now: the exporter's clock.
    """

    async def page(
        since: Since = None, until: Until = None, limit: Limit = 100, cursor: Cursor = None
    ) -> dict[str, Any]:
        return {**time_range(since, until, now())._asdict(), "limit": limit, "cursor": cursor}

    return page


def _time(name: str, text: str | None, now: float) -> float | None:
    if text is None:
        return None
    try:
        return parse_time(text, now)
    except (ValueError, OverflowError):
        raise refused(422, name, text, TIME_FORMS) from None


def seconds(name: str, text: str | None) -> float | None:
    """A width of time in seconds: a number, or one with s, m, h or d behind it.

    Raises:
      HTTPException: 422 if it is none.
    """
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    try:
        found = float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
    except ValueError:
        found = math.nan
    if not 0.001 <= found <= _LONGEST:
        raise refused(
            422, name, text, "seconds from 0.001 to 31,536,000, or a number with s, m, h or d: 3600, 15m, 1h, 1d"
        )
    return found
