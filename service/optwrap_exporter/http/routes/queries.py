"""GET /v1/runs and below. The routes are plain functions, so they run in threads and delay no report.

A few run at a time (`Limiter`). No answer is larger than ANSWER_BYTES.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Path, Query, Response
from pydantic import BaseModel

from optwrap_exporter.http.errors import refused
from optwrap_exporter.http.limiter import Limiter
from optwrap_exporter.http.routing import limited
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.downsample import Axis
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import ANSWER_BYTES, Event, Page, ParameterRow, RunDetail, RunSummary, StepsAnswer
from optwrap_exporter.wire.cursor import CursorError
from optwrap_exporter.wire.errors import ErrorBody
from optwrap_exporter.wire.vocabulary import LARGEST, EventKind, Run

INVALID: Final[dict[int | str, dict[str, Any]]] = {
    422: {"model": ErrorBody, "description": "A parameter is invalid."},
    503: {"model": ErrorBody, "description": "Too many queries wait. Retry-After says when to try again."},
}
UNKNOWN: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": ErrorBody, "description": "The run, or its process, is unknown."},
    **INVALID,
}

MOST_POINTS: Final = 20_000
"""The most good steps that may be asked for."""
_MOST_BAD: Final = 8_000
"""Bad steps beyond this number are thinned."""
_MOST_REPLICAS: Final = 2_000

RunName = Annotated[Run, Path(description="The run's name.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="The most items to return.")]
Cursor = Annotated[str | None, Query(max_length=2000, description="The cursor of the previous page.")]
ProcessNumber = Annotated[
    int | None, Query(ge=0, le=65535, description="The process; by default the one whose gauges the run shows.")
]
StepNumber = Annotated[int | None, Query(ge=0, le=LARGEST, description="First or last step to return.")]


def answer(model: BaseModel) -> Response:
    """`model` as a JSON response, serialized in this thread and not validated again."""
    return Response(model.model_dump_json(), media_type="application/json")


def within_limit(make: Callable[[float], BaseModel]) -> Response:
    """The first of smaller and smaller answers that has at most ANSWER_BYTES.

    Args:
      make: makes an answer with at most this share of what it may have.
    """
    share = 1.0
    while True:
        body = make(share).model_dump_json().encode()
        if len(body) <= ANSWER_BYTES:
            return Response(body, media_type="application/json")
        share *= 0.9 * ANSWER_BYTES / len(body)


def unknown_run(run: str) -> HTTPException:
    """The 404 for a run that has never reported or was deleted."""
    return refused(404, "run", run, "a run that GET /v1/runs lists")


def _bad_cursor(error: CursorError) -> HTTPException:
    return refused(422, "cursor", error.value, error.allowed)


def router(store: Store, ledger: Ledger) -> APIRouter:
    """The routes of the queries."""
    routes = APIRouter(prefix="/v1/runs", tags=["queries"], route_class=limited(Limiter()))

    @routes.get("", response_model=Page[RunSummary], responses=INVALID)
    def list_runs(limit: Limit = 100, cursor: Cursor = None) -> Response:
        """List the runs by name."""
        try:
            return answer(ledger.run_page(limit, cursor))
        except CursorError as error:
            raise _bad_cursor(error) from None

    @routes.get("/{run}", response_model=RunDetail, responses=UNKNOWN)
    def get_run(run: RunName) -> Response:
        """Get everything about one run."""
        detail = ledger.detail(run)
        if detail is None:
            raise unknown_run(run)
        return answer(detail)

    @routes.get("/{run}/steps", response_model=StepsAnswer, responses=UNKNOWN)
    def get_steps(
        run: RunName,
        *,
        since: StepNumber = None,
        until: StepNumber = None,
        points: Annotated[
            int,
            Query(ge=2, le=MOST_POINTS, description="The most good steps to return; fewer if the answer is too large."),
        ] = 2000,
        process: ProcessNumber = None,
        axis: Annotated[Axis, Query(description="The axis along which good steps are downsampled evenly.")] = "step",
    ) -> Response:
        """Get the step records of one process.

        If there are more than `points` good steps, they are downsampled. If there are more than 8,000 bad steps, they
        are thinned: each of 1,000 parts of the range shows the first and the last of each outcome, and `thinned` has
        the number of all of them. Ask for a shorter range to get all.
        """
        lead = ledger.lead(run)
        if lead is None:
            raise unknown_run(run)
        if since is not None and until is not None and since > until:
            raise refused(422, "until", until, f"at least since, {since}")
        _check_process(run, process)
        of = lead if process is None else process
        return within_limit(
            lambda share: store.steps(
                run,
                of,
                since=since,
                until=until,
                points=max(2, int(points * share)),
                axis=axis,
                most_bad=int(_MOST_BAD * share),
                most_replicas=int(_MOST_REPLICAS * share),
            )
        )

    @routes.get("/{run}/events", response_model=Page[Event], responses=UNKNOWN)
    def get_events(
        run: RunName,
        kind: EventKind | None = None,
        process: Annotated[int | None, Query(ge=0, le=65535, description="Only events of this process.")] = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """List the events of one run, newest first."""
        if ledger.lead(run) is None:
            raise unknown_run(run)
        _check_process(run, process)
        try:
            return answer(store.events(run, kind=kind, process=process, limit=limit, cursor=cursor))
        except CursorError as error:
            raise _bad_cursor(error) from None

    @routes.get("/{run}/parameters", response_model=Page[ParameterRow], responses=UNKNOWN)
    def get_parameters(run: RunName, limit: Limit = 100, cursor: Cursor = None) -> Response:
        """List the parameters with non-finite gradients, worst first."""
        try:
            page = ledger.parameter_page(run, limit, cursor)
        except CursorError as error:
            raise _bad_cursor(error) from None
        if page is None:
            raise unknown_run(run)
        return answer(page)

    def _check_process(run: str, process: int | None) -> None:
        if process is not None and not ledger.has(run, process):
            raise refused(404, "process", process, f"a process that GET /v1/runs/{run} lists")

    return routes
