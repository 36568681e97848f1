"""Times: in an answer as Unix seconds and, beside them, in RFC 3339; in a query as either of them."""

import math
from datetime import UTC, datetime
from inspect import get_annotations
from typing import Annotated, Any, Final, get_args, get_origin

from pydantic import BaseModel, ConfigDict, computed_field

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


class Answer(BaseModel):
    """The base of every answer. Fields of type `Instant`, `Instant | None` or `list[Instant]` are in RFC 3339, too."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings", json_schema_serialization_defaults_required=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Add a computed field for each of these fields, which pydantic collects afterwards."""
        super().__init_subclass__(**kwargs)
        for name, annotation in get_annotations(cls).items():
            if _is_instant(annotation):
                setattr(cls, name + SUFFIX, _computed(name, _text_of(annotation)))


def _text_of(annotation: Any) -> Any:
    """The type of the field in RFC 3339."""
    if get_origin(annotation) is list:
        return list[str]
    return str | None if type(None) in get_args(annotation) else str


def _computed(name: str, kind: Any) -> Any:
    def text(self: BaseModel) -> str | list[str] | None:
        time = getattr(self, name)
        if isinstance(time, list):
            return [rfc3339(one) for one in time]
        return None if time is None else rfc3339(time)

    field = computed_field(return_type=kind, description=f"`{name}` in RFC 3339.")
    return field(property(text))
