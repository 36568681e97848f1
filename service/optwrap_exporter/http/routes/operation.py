"""GET /-/healthy and /-/ready: for who keeps the exporter running."""

from collections.abc import Callable
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from optwrap_exporter.http.errors import refused
from optwrap_exporter.wire.errors import ErrorBody


class Condition(BaseModel):
    """The answer to a probe that succeeds."""

    status: Literal["healthy", "ready"]


def router(alive: Callable[[], bool], stopping: Callable[[], bool]) -> APIRouter:
    """The routes.

    Args:
      alive: whether reports can still be committed; where not, only a restart helps.
      stopping: whether the exporter takes no new requests any more.
    """
    routes = APIRouter(prefix="/-", tags=["operation"])

    @routes.get("/healthy", responses={503: {"model": ErrorBody, "description": "It has to be restarted."}})
    async def healthy() -> Condition:
        """Whether the exporter works; if not, it has to be restarted."""
        if not alive():
            raise refused(503, "exporter", "the writer has died", "a restart: the log says what happened")
        return Condition(status="healthy")

    @routes.get("/ready", responses={503: {"model": ErrorBody, "description": "It is stopping, or broken."}})
    async def ready() -> Condition:
        """Whether the exporter takes requests."""
        if stopping() or not alive():
            raise refused(503, "exporter", "stopping" if stopping() else "the writer has died", "a later request")
        return Condition(status="ready")

    return routes
