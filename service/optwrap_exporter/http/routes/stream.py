"""GET /v1/stream: what is committed, as it is committed, in server-sent events."""

import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from optwrap_exporter.http.errors import refused
from optwrap_exporter.http.hub import Follower, Hub
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.errors import ErrorBody
from optwrap_exporter.wire.vocabulary import Health, Run

BATCH: Final = 100
"""Messages read from the store at once: all that a stream ever holds."""
RUN_SECONDS: Final = 1.0
"""Least time between two `run` events of one run whose health is the same."""

MOST_PARAMETERS: Final = 1000
"""Parameters in a `run` event, the worst: one comes every second, and a run may have a hundred thousand."""

Shown = Mapping[str, tuple[float, Health]]


def _error(description: str) -> dict[str, Any]:
    # Spelled out: a `model` would be said to come as an event stream, as the answer that is none does.
    schema = {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def router(store: Store, ledger: Ledger, hub: Hub) -> APIRouter:
    """The route."""

    async def place(
        run: Annotated[Run | None, Query(description="Only this run, which need not have reported yet.")] = None,
    ) -> AsyncIterator[Follower]:
        # In the event loop, and without a pause between the question and the answer: many may ask at once.
        if hub.closed or hub.full:
            allowed = "the same request later: " + (
                "the exporter is stopping" if hub.closed else "too many streams are open"
            )
            raise refused(503, "request", None, allowed, {"Retry-After": "5"})
        with hub.follow(run) as follower:
            yield follower

    routes = APIRouter(tags=["stream"])

    @routes.get(
        "/v1/stream",
        response_class=EventSourceResponse,
        responses={
            422: _error("A parameter is wrong."),
            503: _error("Too many streams, or the exporter is stopping; Retry-After says how long."),
        },
    )
    async def stream(
        follower: Annotated[Follower, Depends(place)],
        last_event_id: Annotated[
            str | None, Header(description="The `id` of the last message that came: what follows it comes first.")
        ] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """Follow one run, or all.

        `report` events bring what each committed report added, without the events that another process of its attempt
        had told alike before; `run` events the answer of /v1/runs/{run} with the worst
        1,000 parameters: at the start (of the run asked for, or of every run that has not ended), then at most once a
        second and on every change of health. The first one of a run has all its processes, each later one only those of
        which there is something new: put them in the place of what came before. Without Last-Event-ID, or with one that
        this store never gave, it begins with what comes next.
        """
        run = follower.run
        position = _position(last_event_id, await run_in_threadpool(store.revision))
        # Sets the client's last event id, so that it can come back even if nothing happens before it is cut off.
        yield ServerSentEvent(comment=f"from revision {position}", id=str(position))
        touched = await run_in_threadpool(_first, ledger, run)
        while not hub.closed:
            touched |= follower.take()
            messages = await run_in_threadpool(store.changes, position, run, BATCH)
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
    """The runs that a stream shows at its start."""
    if run is not None:
        return {run}
    return {name for name in ledger.runs() if ledger.health(name) not in {"finished", "failed"}}


def _due(ledger: Ledger, touched: set[str], shown: Shown) -> list[str]:
    """The touched runs to show now: those not shown for a second, and those whose health has changed."""
    now = time.monotonic()
    found = []
    for name in sorted(touched):
        when, health = shown.get(name, (-math.inf, None))
        if now - when >= RUN_SECONDS or ledger.health(name) != health:
            found.append(name)
    return found


def _until_due(touched: set[str], shown: Shown) -> float | None:
    """Seconds until a run that was touched may be shown again; None where there is none."""
    if not touched:
        return None
    return max(0.0, min(shown[name][0] for name in touched) + RUN_SECONDS - time.monotonic())


def _position(last_event_id: str | None, revision: int) -> int:
    """Where a stream begins: after that revision, or from now on where this store cannot have given it."""
    if last_event_id is None or re.fullmatch(r"[0-9]{1,18}", last_event_id) is None:
        return revision
    return min(int(last_event_id), revision)
