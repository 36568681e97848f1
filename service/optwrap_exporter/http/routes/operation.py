"""GET /-/healthy and /-/ready: probes for supervisors and load balancers."""

from collections.abc import Callable
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from optwrap_exporter.http.errors import item, refused
from optwrap_exporter.store.condition import Condition, StoreState
from optwrap_exporter.wire.errors import ErrorBody
from optwrap_exporter.wire.times import Answer, Instant


class ProbeAnswer(BaseModel):
    """The answer to a successful probe."""

    status: Literal["healthy", "ready"]


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


def router(alive: Callable[[], bool], stopping: Callable[[], bool], store: Callable[[], StoreState]) -> APIRouter:
    """The routes of the probes.

    Args:
      alive: returns whether the writer thread runs. If not, only a restart helps.
      stopping: returns whether the exporter is shutting down.
      store: returns the condition of the store.
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

    return routes
