"""GET /-/healthy and /-/ready: probes for supervisors and load balancers."""

from collections.abc import Callable
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from optwrap_exporter.http.errors import refused
from optwrap_exporter.wire.errors import ErrorBody


class Condition(BaseModel):
    """The answer to a successful probe."""

    status: Literal["healthy", "ready"]


def router(alive: Callable[[], bool], stopping: Callable[[], bool]) -> APIRouter:
    """The routes of the probes.

    Args:
      alive: returns whether reports can still be committed. If not, only a restart helps.
      stopping: returns whether the exporter is shutting down.
    """
    routes = APIRouter(prefix="/-", tags=["operation"])

    @routes.get("/healthy", responses={503: {"model": ErrorBody, "description": "The exporter must be restarted."}})
    async def healthy() -> Condition:
        """Check whether the exporter works. If not, it must be restarted."""
        if not alive():
            raise refused(503, "exporter", "the writer thread has ended", "a restart: the log has the reason")
        return Condition(status="healthy")

    @routes.get(
        "/ready",
        responses={503: {"model": ErrorBody, "description": "The exporter is shutting down or must be restarted."}},
    )
    async def ready() -> Condition:
        """Check whether the exporter accepts requests."""
        if stopping() or not alive():
            raise refused(
                503,
                "exporter",
                "shutting down" if stopping() else "the writer thread has ended",
                "the same request later",
            )
        return Condition(status="ready")

    return routes
