"""GET /v1/runs, /v1/runs/{run} and its parameters.

The routes of queries are plain functions, so they run in threads and delay no report.
"""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from optwrap_exporter.http.query.limiter import Limiter
from optwrap_exporter.http.query.parameters import Cursor, Limit, RunName
from optwrap_exporter.http.query.responses import INVALID, UNKNOWN, answer, bad_cursor, unknown_run
from optwrap_exporter.http.query.routing import limited
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.shown.run_list import RunFilter, RunSort
from optwrap_exporter.wire.answers import Page, ParameterRow, RunDetail, RunSummary
from optwrap_exporter.wire.cursor import CursorError
from optwrap_exporter.wire.vocabulary import Health

Healths = Annotated[
    list[Health], Query(description="Only runs of this health. Repeat it for more.", examples=[["failed", "stale"]])
]


def router(ledger: Ledger, limiter: Limiter) -> APIRouter:
    """The routes that the ledger answers."""
    routes = APIRouter(prefix="/v1/runs", tags=["queries"], route_class=limited(limiter))

    @routes.get("", response_model=Page[RunSummary], responses=INVALID)
    def list_runs(
        *,
        health: Healths = [],  # noqa: B006 - FastAPI copies it
        q: Annotated[str, Query(max_length=128, description="Only runs with this text in their name.")] = "",
        archived: Annotated[bool, Query(description="The archived runs instead of the others.")] = False,
        sort: Annotated[
            RunSort,
            Query(description="`health` is worst first, a time the latest first, a count the largest first."),
        ] = "health",
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """List the runs, worst first.

        The order changes with the runs: one that changes between two pages may be on both or on neither.
        """
        chosen = RunFilter(tuple(health), q, archived, sort)
        try:
            return answer(ledger.run_page(chosen, limit=limit, cursor=cursor))
        except CursorError as error:
            raise bad_cursor(error) from None

    @routes.get("/{run}", response_model=RunDetail, responses=UNKNOWN)
    def get_run(run: RunName) -> Response:
        """Get everything about one run."""
        detail = ledger.detail(run)
        if detail is None:
            raise unknown_run(run)
        return answer(detail)

    @routes.get("/{run}/parameters", response_model=Page[ParameterRow], responses=UNKNOWN)
    def get_parameters(run: RunName, limit: Limit = 100, cursor: Cursor = None) -> Response:
        """List the parameters with non-finite gradients, worst first."""
        try:
            page = ledger.parameter_page(run, limit, cursor)
        except CursorError as error:
            raise bad_cursor(error) from None
        if page is None:
            raise unknown_run(run)
        return answer(page)

    return routes
