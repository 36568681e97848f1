"""Limits how many queries run at once. The others wait. A client that hangs up ends its query, waiting or not."""

from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from fastapi import Request, Response

from optwrap_exporter.http.errors import refused
from optwrap_exporter.store.connections import IN_VAIN, AbandonedError

AT_ONCE: Final = 2
"""Queries that run at once. Each may keep a CPU core busy, which reports and scrapes need, too."""
MOST_WAITING: Final = 64
"""Queries that may wait. Beyond it clients get 503."""


class Limiter:
    """Runs a few queries at a time, in the order in which they came."""

    def __init__(self, at_once: int = AT_ONCE, most_waiting: int = MOST_WAITING) -> None:
        self._running = anyio.CapacityLimiter(at_once)
        self._most_waiting = most_waiting

    async def run(self, request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        """Handle a request when it is its turn. If the client hangs up, the query does not run, or is interrupted.

        Raises:
          HTTPException: 503 if too many wait.
        """
        if self._running.statistics().tasks_waiting >= self._most_waiting:
            raise refused(503, "request", None, "the same request later: too many queries wait", {"Retry-After": "1"})
        mine = object()
        if not await self._turn(request, mine):
            return _for_nobody()
        connection = request.scope.get("state", {}).get("connection")
        before = IN_VAIN.set(None if connection is None else connection.is_lost)  # the query's thread inherits it
        try:
            return await handle(request)
        except AbandonedError:
            return _for_nobody()
        finally:
            IN_VAIN.reset(before)
            self._running.release_on_behalf_of(mine)

    async def _turn(self, request: Request, mine: object) -> bool:
        """Wait until a query may run. False if the client hung up before."""
        mine_now = False
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                while (await request.receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await self._running.acquire_on_behalf_of(mine)
            mine_now = True
            tasks.cancel_scope.cancel()
        return mine_now


def _for_nobody() -> Response:
    return Response(status_code=499)
