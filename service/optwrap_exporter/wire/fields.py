"""Refuses a large report at its first unknown or missing field, or too long list, before pydantic sees it.

pydantic makes one error for each such field, and copies the whole object into the error of a missing one. For 4 MiB
that would be a second of processor time. It reads a list or a mapping to its end before it compares the length. A small
report cannot have many fields, so pydantic alone is quick.
"""

from functools import cache
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, from_json

from optwrap_exporter.wire.errors import inconsistent
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import MOST_RECORDS

_LARGE: Final = 16_384
"""Bytes of a body above which it is checked here."""


def check_fields(body: bytes) -> None:
    """Raise if an object of a large report has an unknown field or lacks a required one, or if a list is too long.

    Raises:
      pydantic.ValidationError: with the first such field.
    """
    if len(body) <= _LARGE:
        return
    try:
        tree = from_json(body)
    except ValueError:
        return  # the real parser says what is wrong
    _check(Report, tree, ())


def _check(model: type[BaseModel], tree: Any, place: tuple[str | int, ...]) -> None:
    if not isinstance(tree, dict):
        return
    fields = model.model_fields
    for name, value in tree.items():
        if name not in fields:
            error = inconsistent(name or '""', "no field of this name: leave it out", value)
            raise _error(InitErrorDetails(type=error, loc=place, input=value))
        if isinstance(value, list | dict) and len(value) > MOST_RECORDS:
            error = inconsistent(name, f"at most {MOST_RECORDS} entries", value)
            raise _error(InitErrorDetails(type=error, loc=place, input=None))
    for name, field in fields.items():
        if field.is_required() and name not in tree:
            raise _error(InitErrorDetails(type="missing", loc=(*place, name), input=None))
    for name, inner in _inner(model).items():
        value = tree.get(name)
        if isinstance(value, list):
            most = len(inner.model_fields)
            for index, one in enumerate(value):
                if isinstance(one, dict) and len(one) > most:
                    _check(inner, one, (*place, name, index))
        else:
            _check(inner, value, (*place, name))


def _error(detail: InitErrorDetails) -> ValidationError:
    return ValidationError.from_exception_data("Report", [detail])


@cache
def _inner(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields of a model that are models, or lists of models."""
    found = {}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[name] = kind
    return found
