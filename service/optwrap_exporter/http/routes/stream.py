"""GET /v1/stream: every commit as server-sent events."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from optwrap_exporter.http.channel import Channel, reports
from optwrap_exporter.http.errors import refused
from optwrap_exporter.http.hub import Hub
from optwrap_exporter.http.query.routing import StrictRoute
from optwrap_exporter.store.condition import StoreUnavailableError
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.errors import ErrorBody
from optwrap_exporter.wire.vocabulary import Run

PING_SECONDS: Final = 15.0
"""Seconds after which an idle stream sends a comment, so that no proxy closes it."""
_HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""No proxy may keep or collect messages."""


class EventStream(StreamingResponse):
    """Server-sent events that are encoded already. FastAPI's own response would encode each once for every stream."""

    media_type = "text/event-stream"


def _error(description: str) -> dict[str, Any]:
    # With `model`, FastAPI would document the error as an event stream.
    schema = {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def router(store: Store, hub: Hub) -> APIRouter:
    """The route of the stream."""

    async def place(
        request: Request,
        run: Annotated[Run | None, Query(description="Only this run. It need not have reported yet.")] = None,
    ) -> AsyncIterator[Channel]:
        # Runs in the event loop without an await, so that concurrent requests cannot exceed the limit.
        peer = request.client.host if request.client is not None else ""  # empty over the Unix socket
        if hub.closed or hub.full(peer):
            allowed = "the same request later: " + (
                "the exporter is shutting down" if hub.closed else "too many streams are open"
            )
            raise refused(503, "request", None, allowed, {"Retry-After": "5"})
        with hub.follow(run, peer) as channel:
            yield channel

    routes = APIRouter(tags=["stream"], route_class=StrictRoute)

    @routes.head("/v1/stream", include_in_schema=False)
    def head(run: Annotated[Run | None, Query()] = None) -> Response:
        del run
        return Response(headers=_HEADERS, media_type=EventStream.media_type)

    @routes.get(
        "/v1/stream",
        response_class=EventStream,
        responses={
            422: _error("A parameter is invalid."),
            503: _error(
                "Too many streams are open, or the exporter is shutting down. Retry-After says when to try again."
            ),
        },
    )
    async def stream(
        channel: Annotated[Channel, Depends(place)],
        last_event_id: Annotated[
            str | None, Header(description="The `id` of the last message received. The stream continues after it.")
        ] = None,
    ) -> EventStream:
        """Follow one run, or all runs.

        A `report` event has what one commit added, without events that another process of the attempt has reported
        before. Events come at most four times a second. A `run` event is the answer of /v1/runs/{run} with the worst
        1,000 parameters. It is sent at the start (for the run asked for, or for every run that has not ended), then
        about once a second if a report came, or if the health or the summary changed. The first one of a run has all
        its processes, as far as they fit; later ones only those that changed.

        Without Last-Event-ID, or with one that this store did not issue, the stream starts with the next commit. A
        client that is more than 2 MiB of `report` events behind gets a `gap` event, which counts those that are left
        out, and the newest ones.
        """
        return EventStream(_messages(store, hub, channel, last_event_id), headers=_HEADERS)

    return routes


async def _messages(store: Store, hub: Hub, channel: Channel, last_event_id: str | None) -> AsyncIterator[bytes]:
    """What one stream is sent. It ends if the store cannot be read; the client connects again."""
    with contextlib.suppress(StoreUnavailableError):
        position = _position(last_event_id, await run_in_threadpool(store.revision))
        # Sets the client's last event id, so that it can resume even if no message follows.
        yield format_sse_event(comment=f"from revision {position}", id=str(position))
        number: int | None = None
        while not hub.closed:
            if number is None or channel.gone(number):
                start = await channel.start()
                if position < start.position:
                    missed = partial(store.changes, position, channel.run, until=start.position)
                    for _, data in reports(await run_in_threadpool(missed)):
                        yield data
                    position = start.position
                yield start.runs
                number = start.number
            published = channel.published
            chunks = channel.since(number)
            for chunk in chunks:
                yield chunk.after(position)
                position, number = max(position, chunk.position), chunk.number + 1
            if not chunks:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(published.wait(), PING_SECONDS)
                    continue
                yield KEEPALIVE_COMMENT


def _position(last_event_id: str | None, revision: int) -> int:
    """The revision after which a stream starts: the last event id, or now if this store did not issue it."""
    if last_event_id is None or re.fullmatch(r"[0-9]{1,18}", last_event_id) is None:
        return revision
    return min(int(last_event_id), revision)
