"""GET /-/healthy and /-/ready: probes for supervisors and load balancers."""

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from optwrap_exporter.http.errors import item, refused
from optwrap_exporter.http.query.routing import StrictRoute
from optwrap_exporter.http.scraped import MOST_NAMED, Scraped
from optwrap_exporter.store.condition import Condition, StoreState
from optwrap_exporter.wire.errors import ErrorBody
from optwrap_exporter.wire.times import Answer, Instant
from optwrap_exporter.wire.vocabulary import Run


class ProbeAnswer(BaseModel):
    """The answer to a successful probe."""

    status: Literal["healthy", "ready"]


class DrainAnswer(BaseModel):
    """Whether somebody has scraped the end of every run."""

    drained: bool
    """Whether no run reports and none has changed since the last complete scrape began."""
    reporting: list[str]
    """Runs of which a process still reports, at most 100."""
    unscraped: list[str]
    """Runs that have ended or are stale, and that no complete scrape has shown since, at most 100."""


class StoreTrouble(Answer):
    """Why the exporter stores no reports."""

    condition: Condition
    since: Instant
    """When it stored the last time, in seconds since 1970."""
    why: str
    remedy: str
    """What to do."""


class UnhealthyBody(ErrorBody):
    """The answer of /-/healthy if the exporter does not work."""

    store: StoreTrouble | None = None
    """Null if the store is not the reason."""


def router(
    alive: Callable[[], bool], stopping: Callable[[], bool], store: Callable[[], StoreState], scraped: Scraped
) -> APIRouter:
    """The routes of the probes.

    Args:
      alive: returns whether the writer thread runs. If not, only a restart helps.
      stopping: returns whether the exporter is shutting down.
      store: returns the condition of the store.
      scraped: knows what was scraped.
    """
    routes = APIRouter(prefix="/-", tags=["operation"])

    @routes.get(
        "/healthy",
        response_model=ProbeAnswer,
        responses={503: {"model": UnhealthyBody, "description": "No report is stored. The answer says what to do."}},
    )
    async def healthy() -> Response | ProbeAnswer:
        """Check whether the exporter stores reports.

        A restart seldom helps, so a supervisor that restarts should ask /-/ready.
        """
        state = store()
        if not alive():
            found = item("exporter", "the writer thread has ended", "a restart: the log has the reason")
            return JSONResponse({"detail": [found], "store": None}, 503)
        if not state.ok:
            trouble = StoreTrouble(
                condition=state.condition, since=state.since, why=state.why, remedy=state.remedy
            ).model_dump()
            found = item("store", f"{state.condition}: {state.why}", f"ok: {state.remedy}")
            return JSONResponse({"detail": [found], "store": trouble}, 503)
        return ProbeAnswer(status="healthy")

    @routes.get(
        "/ready",
        responses={503: {"model": ErrorBody, "description": "The exporter is shutting down or must be restarted."}},
    )
    async def ready() -> ProbeAnswer:
        """Check whether the exporter answers requests. If not, it must be restarted, unless it is shutting down."""
        if stopping() or not alive():
            raise refused(
                503,
                "exporter",
                "shutting down" if stopping() else "the writer thread has ended",
                "the same request later",
            )
        return ProbeAnswer(status="ready")

    strict = APIRouter(route_class=StrictRoute)

    @strict.get("/drained", responses={422: {"model": ErrorBody, "description": "A parameter is invalid or unknown."}})
    def drained(run: Annotated[Run | None, Query(description="Only this run.")] = None) -> DrainAnswer:
        """Check whether /metrics has shown the end of every run, so that the exporter may stop."""
        missing = scraped.missing(run)
        return DrainAnswer(
            drained=not any(missing),
            reporting=missing.reporting[:MOST_NAMED],
            unscraped=missing.unscraped[:MOST_NAMED],
        )

    routes.include_router(strict)
    return routes
