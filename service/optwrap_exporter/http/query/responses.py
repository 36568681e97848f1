"""Answers of queries, and how they are refused."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import HTTPException, Response
from pydantic import BaseModel

from optwrap_exporter.http.errors import refused
from optwrap_exporter.wire.answers import ANSWER_BYTES
from optwrap_exporter.wire.cursor import CursorError
from optwrap_exporter.wire.errors import ErrorBody

INVALID: Final[dict[int | str, dict[str, Any]]] = {
    422: {"model": ErrorBody, "description": "A parameter is invalid or unknown."},
    503: {"model": ErrorBody, "description": "Too many queries wait. Retry-After says when to try again."},
}
"""Errors that every query may answer."""
UNKNOWN: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": ErrorBody, "description": "The run, or its process, is unknown."},
    **INVALID,
}
"""The same of a query of one run."""


def answer(model: BaseModel) -> Response:
    """`model` as a JSON response, serialized in this thread and not validated again."""
    return Response(model.model_dump_json(), media_type="application/json")


def within_limit(make: Callable[[float], Response]) -> Response:
    """The first of smaller and smaller answers that has at most ANSWER_BYTES.

    Args:
      make: makes an answer with at most this share of what it may have.
    """
    share = 1.0
    while True:
        response = make(share)
        if len(response.body) <= ANSWER_BYTES:
            return response
        share *= 0.9 * ANSWER_BYTES / len(response.body)


def unknown_run(run: str) -> HTTPException:
    """The 404 for a run that has never reported or was deleted."""
    return refused(404, "run", run, "a run that GET /v1/runs lists")


def unknown_process(run: str, process: int) -> HTTPException:
    """The 404 for a process that has never reported."""
    return refused(404, "process", process, f"a process that GET /v1/runs/{run} lists")


def bad_cursor(error: CursorError) -> HTTPException:
    """The 422 for a cursor of another list."""
    return refused(422, "cursor", error.value, error.allowed)
