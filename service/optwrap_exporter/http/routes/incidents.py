"""GET /v1/incidents and /v1/runs/{run}/incidents: each is one trouble of a run."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from optwrap_exporter.http.query.limiter import Limiter
from optwrap_exporter.http.query.parameters import RunName, page_of
from optwrap_exporter.http.query.responses import INVALID, UNKNOWN, answer, bad_cursor, unknown_run
from optwrap_exporter.http.query.routing import limited
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import Page
from optwrap_exporter.wire.cursor import CursorError
from optwrap_exporter.wire.incident import Incident
from optwrap_exporter.wire.vocabulary import IncidentKind, IncidentState, Outcome

Kinds = Annotated[list[IncidentKind], Query(description="Only incidents of this kind. Repeat it for more.")]
States = Annotated[
    list[IncidentState], Query(description="Only incidents in this state. Repeat it for more.", examples=[["open"]])
]
Outcomes = Annotated[
    list[Outcome], Query(description="Only incidents with bad steps of this outcome. Repeat it for more.")
]


def router(store: Store, ledger: Ledger, limiter: Limiter) -> APIRouter:
    """The routes of the incidents."""
    routes = APIRouter(tags=["queries"], route_class=limited(limiter))

    async def chosen(
        page: Annotated[dict[str, Any], Depends(page_of(ledger.clocks.now))],
        kind: Kinds = [],  # noqa: B006 - FastAPI copies it
        state: States = [],  # noqa: B006
        outcome: Outcomes = [],  # noqa: B006
    ) -> dict[str, Any]:
        return {"kind": kind, "state": state, "outcome": outcome, **page}

    Chosen = Annotated[dict[str, Any], Depends(chosen)]

    @routes.get("/v1/incidents", response_model=Page[Incident], responses=INVALID)
    def list_incidents(chosen: Chosen) -> Response:
        """List the incidents of all runs, newest first.

        An incident is in the range if it lasted at or after `since` and began before `until`. So one request says which
        runs skipped steps today.
        """
        try:
            return answer(store.incidents(**chosen))
        except CursorError as error:
            raise bad_cursor(error) from None

    @routes.get("/v1/runs/{run}/incidents", response_model=Page[Incident], responses=UNKNOWN)
    def get_incidents(run: RunName, chosen: Chosen) -> Response:
        """List the incidents of one run, newest first."""
        if ledger.lead(run) is None:
            raise unknown_run(run)
        try:
            return answer(store.incidents(run, **chosen))
        except CursorError as error:
            raise bad_cursor(error) from None

    return routes
