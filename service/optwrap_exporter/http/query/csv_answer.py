"""Answers as CSV, for a client whose Accept header prefers it to JSON."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fastapi import Request, Response

MEDIA_TYPE: Final = "text/csv"
CONTENT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}, "description": "JSON, or CSV on request."}
}
"""The OpenAPI description of an answer that may be CSV."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""A text that begins so is a formula to a spreadsheet. Clients choose the names of runs and parameters."""


def wants_csv(request: Request) -> bool:
    """Whether the Accept header prefers text/csv to application/json."""
    header = ",".join(request.headers.getlist("accept"))
    return _quality(header, MEDIA_TYPE) > _quality(header, "application/json")


def _quality(header: str, media_type: str) -> float:
    """The weight of a media type in an Accept header, by the most specific range that has it; 0 if none has."""
    best = (0, 0.0)
    for part in header.split(","):
        name, *parameters = (one.strip().lower() for one in part.split(";"))
        specific = (name == media_type) * 3 or (name == media_type.partition("/")[0] + "/*") * 2 or name == "*/*"
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        best = max(best, (int(specific), weight if specific else 0.0), key=lambda one: one[0])
    return best[1]


def csv_answer(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], headers: Mapping[str, str] | None = None
) -> Response:
    """A table as CSV (RFC 4180), with a line of names.

    Args:
      columns: the names of the columns.
      rows: their values. None is an empty cell; lists and objects are JSON.
      headers: more headers of the answer.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    headers = {"vary": "Accept", **(headers or {})}
    return Response(text.getvalue(), media_type=f"{MEDIA_TYPE}; charset=utf-8", headers=headers)


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.startswith(_FORMULA) and value not in {"-Infinity"}:
        return f"'{value}"
    return value
