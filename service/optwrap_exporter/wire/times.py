"""Times: in an answer as Unix seconds and, beside them, in RFC 3339; in a query as either of them."""

import math
from datetime import UTC, datetime
from inspect import get_annotations
from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, computed_field

from optwrap_exporter.wire.vocabulary import LATEST

SUFFIX: Final = "_rfc3339"
"""Ends the name of the field that has a time in RFC 3339."""
TIME_FORMS: Final = (
    "seconds since 1970, a time in RFC 3339 such as 2026-11-29T07:00:00Z, or a negative number of seconds before now"
)


class _Marker:
    """Marks a field as a time."""


Instant = Annotated[float, _Marker()]
"""A time in seconds since 1970. A model with a field `time` of this type also has `time_rfc3339`."""


def rfc3339(time: float) -> str:
    """A time in RFC 3339, in UTC, with milliseconds."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str, now: float) -> float:
    """A time in one of TIME_FORMS as seconds since 1970.

    Args:
      text: the time.
      now: the exporter's clock.

    Raises:
      ValueError: it has none of these forms, or is later than 2100.
    """
    try:
        time = float(text)
        # Also finds -0.0: nobody means 1970 by "before now".
        time = now + time if math.copysign(1.0, time) < 0 else time
    except ValueError:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError(f"{text!r} has no time zone") from None
        time = moment.timestamp()
    if not -math.inf < time <= LATEST:
        raise ValueError(f"{text!r} is no time before 2100")
    return max(0.0, time)


def _is_instant(annotation: Any) -> bool:
    parts = get_args(annotation)
    return any(isinstance(part, _Marker) or _is_instant(part) for part in parts)


class TimedModel(BaseModel):
    """A model whose fields of type `Instant`, or `Instant | None`, are in RFC 3339, too."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Add a computed field for each of these fields, which pydantic collects afterwards."""
        super().__init_subclass__(**kwargs)
        for name, annotation in get_annotations(cls).items():
            if _is_instant(annotation):
                setattr(cls, name + SUFFIX, _computed(name, optional=type(None) in get_args(annotation)))


def _computed(name: str, *, optional: bool) -> Any:
    def text(self: BaseModel) -> str | None:
        time = getattr(self, name)
        return None if time is None else rfc3339(time)

    returned: Any = str | None if optional else str
    field = computed_field(return_type=returned, description=f"`{name}` in RFC 3339.")
    return field(property(text))
