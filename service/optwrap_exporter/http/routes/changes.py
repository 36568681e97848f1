"""What a person changes: acknowledges an incident; archives, restores or deletes a run."""

from collections.abc import Awaitable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Response

from optwrap_exporter.http.authorization import OPTIONAL_TOKEN, Authorization
from optwrap_exporter.http.errors import refused
from optwrap_exporter.http.query.parameters import RunName
from optwrap_exporter.http.query.responses import answer, unknown_run
from optwrap_exporter.http.query.routing import StrictRoute
from optwrap_exporter.ingest.ingest import Ingest
from optwrap_exporter.ingest.operations import UnknownError
from optwrap_exporter.wire.errors import ErrorBody
from optwrap_exporter.wire.incident import Incident
from optwrap_exporter.wire.vocabulary import LARGEST

_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    code: {"model": ErrorBody, "description": text}
    for code, text in {
        401: "The token is missing or wrong, or this address accepts no changes.",
        403: "A page of another origin sent the request.",
        404: "The run or incident is unknown.",
        422: "A parameter is invalid or unknown.",
        503: "The store stores nothing now, or the exporter is shutting down; Retry-After says when to retry.",
    }.items()
}
_DONE: Final[dict[int | str, dict[str, Any]]] = {204: {"description": "Done, and durable."}, **_ERRORS}


def router(ingest: Ingest, authorization: Authorization) -> APIRouter:
    """The routes that change something. They need what reports need, and no browser may send them for another page."""
    routes = APIRouter(
        prefix="/v1",
        tags=["changes"],
        route_class=StrictRoute,
        dependencies=[Depends(authorization.may_change())],
    )

    @routes.post(
        "/incidents/{incident}/acknowledge",
        response_model=Incident,
        responses=_ERRORS,
        openapi_extra=OPTIONAL_TOKEN,
    )
    async def acknowledge(
        incident: Annotated[int, Path(ge=1, le=LARGEST, description="The incident's id.", examples=[17])],
    ) -> Response:
        """Acknowledge an incident: it no longer counts as trouble.

        This is final; new trouble makes a new incident. An incident that was acknowledged before stays as it is.
        """
        try:
            return answer(await ingest.acknowledge(incident))
        except UnknownError:
            raise refused(404, "incident", str(incident), "an incident that GET /v1/incidents lists") from None

    @routes.post("/runs/{run}/archive", status_code=204, responses=_DONE, openapi_extra=OPTIONAL_TOKEN)
    async def archive(run: RunName) -> Response:
        """Hide a run from the lists. It is kept, and still takes reports."""
        return await _of_run(run, ingest.archive(run))

    @routes.post("/runs/{run}/restore", status_code=204, responses=_DONE, openapi_extra=OPTIONAL_TOKEN)
    async def restore(run: RunName) -> Response:
        """Show a run in the lists again."""
        return await _of_run(run, ingest.restore(run))

    @routes.delete("/runs/{run}", status_code=204, responses=_DONE, openapi_extra=OPTIONAL_TOKEN)
    async def delete(run: RunName) -> Response:
        """Delete everything about a run. If it reports again, it is a new run that starts at zero."""
        return await _of_run(run, ingest.delete(run))

    return routes


async def _of_run(run: str, change: Awaitable[None]) -> Response:
    try:
        await change
    except UnknownError:
        raise unknown_run(run) from None
    return Response(status_code=204)
