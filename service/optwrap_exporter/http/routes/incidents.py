"""GET /v1/incidents and /v1/runs/{run}/incidents: the events of one trouble, folded."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from optwrap_exporter.http.query.limiter import Limiter
from optwrap_exporter.http.query.parameters import Cursor, Limit, RunName, Since, Until, time_range
from optwrap_exporter.http.query.responses import INVALID, UNKNOWN, answer, bad_cursor, unknown_run
from optwrap_exporter.http.query.routing import limited
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import Page
from optwrap_exporter.wire.cursor import CursorError
from optwrap_exporter.wire.incident import Incident
from optwrap_exporter.wire.vocabulary import IncidentKind, IncidentState, Outcome

Kinds = Annotated[list[IncidentKind], Query(description="Only incidents of this kind. Repeat it for more.")]
States = Annotated[list[IncidentState], Query(description="Only incidents in this state. Repeat it for more.")]
Outcomes = Annotated[
    list[Outcome], Query(description="Only incidents with bad steps of this outcome. Repeat it for more.")
]


def router(store: Store, ledger: Ledger, limiter: Limiter) -> APIRouter:
    """The routes of the incidents."""
    routes = APIRouter(tags=["queries"], route_class=limited(limiter))

    @routes.get("/v1/incidents", response_model=Page[Incident], responses=INVALID)
    def list_incidents(
        *,
        kind: Kinds = [],  # noqa: B006 - FastAPI copies it
        state: States = [],  # noqa: B006
        outcome: Outcomes = [],  # noqa: B006
        since: Since = None,
        until: Until = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """List the incidents of all runs, newest first.

        An incident is in the range if it lasted at or after `since` and began before `until`. So one request says which
        runs skipped steps today.
        """
        times = time_range(since, until, ledger.clocks.now())
        try:
            found = store.incidents(
                kind=kind,
                state=state,
                outcome=outcome,
                since=times.since,
                until=times.until,
                limit=limit,
                cursor=cursor,
            )
        except CursorError as error:
            raise bad_cursor(error) from None
        return answer(found)

    @routes.get("/v1/runs/{run}/incidents", response_model=Page[Incident], responses=UNKNOWN)
    def get_incidents(
        run: RunName,
        *,
        kind: Kinds = [],  # noqa: B006
        state: States = [],  # noqa: B006
        outcome: Outcomes = [],  # noqa: B006
        since: Since = None,
        until: Until = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """List the incidents of one run, newest first."""
        if ledger.lead(run) is None:
            raise unknown_run(run)
        times = time_range(since, until, ledger.clocks.now())
        try:
            found = store.incidents(
                run,
                kind=kind,
                state=state,
                outcome=outcome,
                since=times.since,
                until=times.until,
                limit=limit,
                cursor=cursor,
            )
        except CursorError as error:
            raise bad_cursor(error) from None
        return answer(found)

    return routes
