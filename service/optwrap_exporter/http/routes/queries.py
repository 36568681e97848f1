"""GET /v1/runs and below: what is known of the runs. Plain functions: they run in threads, and hold no report up."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Path, Query, Response
from pydantic import BaseModel

from optwrap_exporter.http.errors import refused
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.downsample import Axis
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import Event, Page, ParameterRow, RunDetail, RunSummary, StepsAnswer
from optwrap_exporter.wire.cursor import CursorError
from optwrap_exporter.wire.errors import ErrorBody
from optwrap_exporter.wire.vocabulary import LARGEST, EventKind, Run

INVALID: Final[dict[int | str, dict[str, Any]]] = {422: {"model": ErrorBody, "description": "A parameter is wrong."}}
UNKNOWN: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": ErrorBody, "description": "No such run, or no such process of it."},
    **INVALID,
}

RunName = Annotated[Run, Path(description="The run's name.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many items at most.")]
Cursor = Annotated[str | None, Query(max_length=2000, description="Of this list's last answer, for the next page.")]
ProcessNumber = Annotated[
    int | None, Query(ge=0, le=65535, description="Of which process; the one that speaks for the run, if left out.")
]
StepNumber = Annotated[int | None, Query(ge=0, le=LARGEST)]


def answer(model: BaseModel) -> Response:
    """`model` as JSON, written here in the thread and validated by nobody again."""
    return Response(model.model_dump_json(), media_type="application/json")


def unknown_run(run: str) -> HTTPException:
    """The 404 for a run that has never reported, or is forgotten."""
    return refused(404, "run", run, "a run that GET /v1/runs lists")


def _bad_cursor(error: CursorError) -> HTTPException:
    return refused(422, "cursor", error.value, error.allowed)


def router(store: Store, ledger: Ledger) -> APIRouter:
    """The routes, all reading."""
    routes = APIRouter(prefix="/v1/runs", tags=["queries"])

    @routes.get("", response_model=Page[RunSummary], responses=INVALID)
    def list_runs(limit: Limit = 100, cursor: Cursor = None) -> Response:
        """List the runs by name."""
        try:
            return answer(ledger.run_page(limit, cursor))
        except CursorError as error:
            raise _bad_cursor(error) from None

    @routes.get("/{run}", response_model=RunDetail, responses=UNKNOWN)
    def get_run(run: RunName) -> Response:
        """Show one run, whole."""
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
            int, Query(ge=2, le=100_000, description="Good steps at most; bad ones are all there.")
        ] = 2000,
        process: ProcessNumber = None,
        axis: Annotated[
            Axis, Query(description="Thinned out so that as many are left of each part of the numbers, or of the time.")
        ] = "step",
    ) -> Response:
        """Show the step records of one process, thinned out where there are more than `points`; bad steps never are."""
        lead = ledger.lead(run)
        if lead is None:
            raise unknown_run(run)
        if since is not None and until is not None and since > until:
            raise refused(422, "until", until, f"a step from since ({since}) on")
        _check_process(run, process)
        of = lead if process is None else process
        return answer(store.steps(run, of, since=since, until=until, points=points, axis=axis))

    @routes.get("/{run}/events", response_model=Page[Event], responses=UNKNOWN)
    def get_events(
        run: RunName,
        kind: EventKind | None = None,
        process: Annotated[int | None, Query(ge=0, le=65535, description="Only of this process.")] = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """List what happened, newest first."""
        if ledger.lead(run) is None:
            raise unknown_run(run)
        _check_process(run, process)
        try:
            return answer(store.events(run, kind=kind, process=process, limit=limit, cursor=cursor))
        except CursorError as error:
            raise _bad_cursor(error) from None

    @routes.get("/{run}/parameters", response_model=Page[ParameterRow], responses=UNKNOWN)
    def get_parameters(run: RunName, limit: Limit = 100, cursor: Cursor = None) -> Response:
        """List the parameters that were not finite, worst first."""
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
