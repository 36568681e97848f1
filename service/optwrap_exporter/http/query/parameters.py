"""The parameters of the query routes."""

from typing import Annotated, NamedTuple

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


def _time(name: str, text: str | None, now: float) -> float | None:
    if text is None:
        return None
    try:
        return parse_time(text, now)
    except (ValueError, OverflowError):
        raise refused(422, name, text, TIME_FORMS) from None
