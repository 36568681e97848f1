"""The package's errors, and the description of what is wrong with a request.

    ExporterError
      OversizeError         wire.size            413  a body has too many JSON values, or too long numbers, to be parsed
      CursorError           wire.cursor          422  a cursor is damaged or belongs to another list
      BucketsError          store.steps.grid     422  a range has too many buckets of the width asked for
      FieldError            wire.errors          --   a field is wrong beside what is stored: the base of the next two
      ImplausibleError      ledger.bounds        422  a seq or a count jumps further than the time in between allows
      ConflictError         ingest.group_commit  409  other content under this incarnation and seq, or another attempt
      BusyError             ingest.group_commit  429  too many reports wait, too many new runs, or too many gaps in seqs
      UnknownError          ingest.operations    404  there is no such run or incident
      ClosedError           store.connections    503  the exporter is shutting down
      AbandonedError        store.connections    --   a query's client hung up, so the query was interrupted
      StoreUnavailableError store.condition      503  the store stores no reports now: full, damaged, gone, ...
      StoreError            store.opening        --   the data directory cannot be used: the command exits with 2
      DamagedError          store.opening        --   the database is damaged: becomes a StoreError, or is recovered
      SchemaError           store.schema         --   the database is not a store of this version: becomes a StoreError
      EventLogError         ingest.event_log     --   the event log cannot be written: the command exits with 2
      StartError            http.serving.server  --   the exporter cannot listen: the command exits with 2
      UnreachableError      cli.exporter         --   the URL or the run of a command is unknown: it exits with 2

A report that breaks the wire's rules raises pydantic's ValidationError; `error_details` turns it into a 422.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

_LONGEST: Final = 200
_FEW: Final = 8
"""The most values of a list or object that is shown."""


class ExporterError(Exception):
    """The base of every error that this package raises on purpose and lets out of a module."""


class FieldError(ExporterError):
    """A field of a report is wrong beside what is stored.

    Attributes:
      field: the field of the report that is wrong.
      value: the value received.
      allowed: what is allowed.
    """

    def __init__(self, field: str, value: str | int, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field}: {value}: expected {allowed}")


class ErrorDetail(BaseModel):
    """One thing that is wrong with a request."""

    model_config = ConfigDict(frozen=True)

    field: str
    """Where in the request, such as `steps.norm[3]`."""
    value: str
    """The value received, shortened; `absent` if there was none."""
    allowed: str
    """What is allowed there."""


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    model_config = ConfigDict(frozen=True)

    detail: list[ErrorDetail]


def inconsistent(field: str, allowed: str, value: object) -> PydanticCustomError:
    """The error that a validator raises if fields contradict each other.

    Args:
      field: the field that is wrong, relative to the model being validated.
      allowed: what is allowed there.
      value: the value received.
    """
    # `allowed` may quote a path with braces, so it must not be used as the message template itself.
    return PydanticCustomError("inconsistent", "{allowed}", {"field": field, "allowed": allowed, "value": value})


def shown(value: object, longest: int = _LONGEST) -> str:
    """The value as text for an error message: printable, and at most `longest` characters."""
    text = value if isinstance(value, str) else _described(value)
    text = text[: longest + 1]  # a report may hold megabytes: escape only what is shown
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _described(value: object) -> str:
    """The value as Python writes it; a list or object of many, long or nested values only by their number."""
    if isinstance(value, bytes):
        value = value[:_LONGEST]
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        if len(value) > _FEW or any(isinstance(one, list | dict) or len(str(one)) > _LONGEST for one in inner):
            return f"a list of {len(value)} values" if isinstance(value, list) else f"an object of {len(value)} fields"
    return repr(value)


def field_of(location: Iterable[int | str]) -> str:
    """A pydantic location as text: `("steps", "norm", 3)` is `steps.norm[3]`, and `()` is `body`."""
    field = ""
    for part in location:
        name = part if part != "" else '""'
        field += f"[{name}]" if isinstance(name, int) else f".{name}" if field else name
    return shown(field) or "body"


def error_details(error: ValidationError, most: int = 20) -> list[ErrorDetail]:
    """What is wrong with a request, at most `most` entries.

    A value that fits no member of a union (a norm that is neither a number nor "NaN") makes one entry in all.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for item in error.errors(include_url=False):
        context: Mapping[str, Any] = item.get("ctx", {})
        location = _without_union_tags(item["loc"])
        if "field" in context:
            location = (*location, context["field"])
        value = shown(context.get("value", item["input"]))
        match item["type"]:
            case "missing":
                value, allowed = "absent", "this field is required"
            case "extra_forbidden":
                allowed = "no field of this name: leave it out"
            case "string_pattern_mismatch":
                allowed = f"a string that matches {context['pattern']}"
            case _:
                allowed = str(context.get("allowed", item["msg"])).removeprefix("Input should be ")
        _, forms = found.setdefault(field_of(location), (value, []))
        if allowed not in forms:
            forms.append(allowed)
    return [
        ErrorDetail(field=field, value=value, allowed=shown(", or ".join(forms), 1000))
        for field, (value, forms) in list(found.items())[:most]
    ]


def _without_union_tags(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The location without what pydantic appends: the member of a union that it tried, and `[key]` for a key."""
    if location[-1:] == ("[key]",):
        return location[:-1]
    if len(location) > 1 and (location[-2] == "gradient_norm" or location[-3:-2] == ("norm",)):
        return location[:-1]
    return location
