"""GET /v1/events and /v1/runs/{run}/events: what happened, newest first."""

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from optwrap_exporter.http.query.csv_answer import CONTENT, csv_answer, wants_csv
from optwrap_exporter.http.query.limiter import Limiter
from optwrap_exporter.http.query.parameters import RunName, page_of
from optwrap_exporter.http.query.responses import INVALID, UNKNOWN, answer, bad_cursor, unknown_process, unknown_run
from optwrap_exporter.http.query.routing import limited
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import Event, Page
from optwrap_exporter.wire.cursor import CursorError
from optwrap_exporter.wire.times import SUFFIX
from optwrap_exporter.wire.vocabulary import EventKind

BadOutcome = Literal["skipped_not_finite", "skipped_large", "skipped_other", "accepted_not_finite"]
"""An outcome that makes an event."""
Kinds = Annotated[
    list[EventKind], Query(description="Only events of this kind. Repeat it for more.", examples=[["skipped"]])
]
Outcomes = Annotated[
    list[BadOutcome],
    Query(
        description="Only events of steps with this outcome. Repeat it for more. A page may then have fewer items than "
        "`limit`, or none, although a cursor leads to more."
    ),
]

_COLUMNS: Final = ("id", "run", "process", "kind", "time", f"time{SUFFIX}", "step", "attempt", "detail")


def router(store: Store, ledger: Ledger, limiter: Limiter) -> APIRouter:
    """The routes of the events."""
    routes = APIRouter(tags=["queries"], route_class=limited(limiter))

    async def chosen(
        page: Annotated[dict[str, Any], Depends(page_of(ledger.clocks.now))],
        kind: Kinds = [],  # noqa: B006 - FastAPI copies it
        outcome: Outcomes = [],  # noqa: B006
    ) -> dict[str, Any]:
        return {"kind": kind, "outcome": outcome, **page}

    Chosen = Annotated[dict[str, Any], Depends(chosen)]

    @routes.get("/v1/events", response_model=Page[Event], responses={**CONTENT, **INVALID})
    def list_events(request: Request, chosen: Chosen) -> Response:
        """List the events of all runs, newest first.

        An event that all processes of an attempt report is listed once. As CSV, the `Link` header leads to the next
        page.
        """
        try:
            return _shown(request, store.events(**chosen))
        except CursorError as error:
            raise bad_cursor(error) from None

    @routes.get("/v1/runs/{run}/events", response_model=Page[Event], responses={**CONTENT, **UNKNOWN})
    def get_events(
        request: Request,
        run: RunName,
        chosen: Chosen,
        process: Annotated[int | None, Query(ge=0, le=65535, description="List every event of this process.")] = None,
    ) -> Response:
        """List the events of one run, newest first.

        An event that all processes of an attempt report is listed once, from the process that reported it first; with
        `process` every event of that process is listed. As CSV, the `Link` header leads to the next page.
        """
        if ledger.lead(run) is None:
            raise unknown_run(run)
        if process is not None and not ledger.has(run, process):
            raise unknown_process(run, process)
        try:
            return _shown(request, store.events(run, process=process, **chosen))
        except CursorError as error:
            raise bad_cursor(error) from None

    return routes


def _shown(request: Request, page: Page[Event]) -> Response:
    if not wants_csv(request):
        return answer(page)
    headers = {}
    if page.cursor is not None:
        following = request.url.include_query_params(cursor=page.cursor)
        headers["link"] = f'<{following.path}?{following.query}>; rel="next"'
    rows = (one.model_dump(mode="json") for one in page.items)
    return csv_answer(_COLUMNS, ([row[name] for name in _COLUMNS] for row in rows), headers)
