"""GET /v1/stream: every commit as server-sent events."""

import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from optwrap_exporter.http.errors import refused
from optwrap_exporter.http.hub import Follower, Hub
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.condition import StoreUnavailableError
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.errors import ErrorBody
from optwrap_exporter.wire.vocabulary import Health, Run

BATCH: Final = 100
"""Messages read from the store at once, which is all that a stream holds in memory."""
RUN_SECONDS: Final = 1.0
"""The shortest time between two `run` events of one run while its health is the same."""

MOST_PARAMETERS: Final = 1000
"""The most parameters in a `run` event. One is sent every second, and a run may have 100,000 parameters."""

Shown = Mapping[str, tuple[float, Health]]
"""By run: when the stream last showed it, and its health then."""


def _error(description: str) -> dict[str, Any]:
    # With `model`, FastAPI would document the error as an event stream.
    schema = {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def router(store: Store, ledger: Ledger, hub: Hub) -> APIRouter:
    """The route of the stream."""

    async def place(
        request: Request,
        run: Annotated[Run | None, Query(description="Only this run. It need not have reported yet.")] = None,
    ) -> AsyncIterator[Follower]:
        # Runs in the event loop without an await, so that concurrent requests cannot exceed the limit.
        peer = request.client.host if request.client is not None else ""  # empty over the Unix socket
        if hub.closed or hub.full(peer):
            allowed = "the same request later: " + (
                "the exporter is shutting down" if hub.closed else "too many streams are open"
            )
            raise refused(503, "request", None, allowed, {"Retry-After": "5"})
        with hub.follow(run, peer) as follower:
            yield follower

    routes = APIRouter(tags=["stream"])

    @routes.get(
        "/v1/stream",
        response_class=EventSourceResponse,
        responses={
            422: _error("A parameter is invalid."),
            503: _error(
                "Too many streams are open, or the exporter is shutting down. Retry-After says when to try again."
            ),
        },
    )
    async def stream(
        follower: Annotated[Follower, Depends(place)],
        last_event_id: Annotated[
            str | None, Header(description="The `id` of the last message received. The stream continues after it.")
        ] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """Follow one run, or all runs.

        A `report` event has what one commit added, without events that another process of the attempt has reported
        before. A `run` event is the answer of /v1/runs/{run} with the worst 1,000 parameters. It is sent at the start
        (for the run asked for, or for every run that has not ended), then at most once a second and on every change of
        health. The first one of a run has all its processes; later ones only those that changed.

        Without Last-Event-ID, or with one that this store did not issue, the stream starts with the next commit.
        """
        run = follower.run
        position = _position(last_event_id, await run_in_threadpool(store.revision))
        # Sets the client's last event id, so that it can resume even if no message follows.
        yield ServerSentEvent(comment=f"from revision {position}", id=str(position))
        touched = await run_in_threadpool(_first, ledger, run)
        while not hub.closed:
            touched |= follower.take()
            try:
                messages = await run_in_threadpool(store.changes, position, run, BATCH)
            except StoreUnavailableError:
                return  # the client connects again
            for message in messages:
                position = message.revision
                yield ServerSentEvent(event="report", data=message, id=str(position))
            for name in await run_in_threadpool(_due, ledger, touched, follower.shown):
                touched.discard(name)
                detail = await run_in_threadpool(ledger.detail, name, MOST_PARAMETERS, follower.rows[name])
                if detail is None:
                    follower.shown.pop(name, None)
                    follower.rows.pop(name, None)
                    continue
                follower.shown[name] = (time.monotonic(), detail.health)
                yield ServerSentEvent(event="run", data=detail, id=str(position))
            if len(messages) < BATCH:
                await follower.wait(_until_due(touched, follower.shown))

    return routes


def _first(ledger: Ledger, run: str | None) -> set[str]:
    """The runs to show at the start of a stream."""
    if run is not None:
        return {run}
    return {name for name in ledger.runs() if ledger.health(name) not in {"finished", "failed"}}


def _due(ledger: Ledger, touched: set[str], shown: Shown) -> list[str]:
    """The touched runs to show now: not shown for a second, or with another health."""
    now = time.monotonic()
    found = []
    for name in sorted(touched):
        when, health = shown.get(name, (-math.inf, None))
        if now - when >= RUN_SECONDS or ledger.health(name) != health:
            found.append(name)
    return found


def _until_due(touched: set[str], shown: Shown) -> float | None:
    """Seconds until a touched run may be shown again; None if no run is touched."""
    if not touched:
        return None
    return max(0.0, min(shown[name][0] for name in touched) + RUN_SECONDS - time.monotonic())


def _position(last_event_id: str | None, revision: int) -> int:
    """The revision after which a stream starts: the last event id, or now if this store did not issue it."""
    if last_event_id is None or re.fullmatch(r"[0-9]{1,18}", last_event_id) is None:
        return revision
    return min(int(last_event_id), revision)
