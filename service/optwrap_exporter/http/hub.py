"""Who follows what is committed: wakes the streams, and holds nothing for them.

A stream reads from the store where it left off, so a slow one falls behind without costing memory, and one that comes
back after an hour reads on exactly like one that never left.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from starlette.concurrency import run_in_threadpool

from optwrap_exporter.ingest import Committed, Listener
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.views import Shown
from optwrap_exporter.wire.vocabulary import Health

MOST_STREAMS: Final = 256
HEALTH_SECONDS: Final = 1.0
"""How often a change of health that time alone brings is looked for."""


class Follower:
    """One stream's place in the hub. Belongs to the event loop."""

    def __init__(self, run: str | None) -> None:
        self.shown: dict[str, tuple[float, Health]] = {}
        """When (`time.monotonic`) the stream last showed each run, and in which health."""
        self.rows: defaultdict[str, Shown] = defaultdict(dict)
        """Of each run, what the stream last said of its processes."""
        self.run = run
        """Which one it follows; None: all."""
        self._touched: set[str] = set()
        self._wake = asyncio.Event()

    def touch(self, runs: frozenset[str]) -> None:
        """Something was committed of these runs, or their health changed."""
        mine = runs if self.run is None else runs & {self.run}
        if mine:
            self._touched |= mine
            self._wake.set()

    def wake(self) -> None:
        """Let a wait end."""
        self._wake.set()

    async def wait(self, seconds: float | None) -> None:
        """Until something was touched since the last `take`, or for so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    def take(self) -> set[str]:
        """The runs touched since the last call."""
        self._wake.clear()
        taken, self._touched = self._touched, set()
        return taken


class Hub:
    """Tells the followers what was committed. `running()` in the event loop; `close()` ends every stream.

    Args:
      subscribe: `Ingest.subscribe`.
      ledger: where a change of health is seen.
    """

    def __init__(self, subscribe: Callable[[Listener], Callable[[], None]], ledger: Ledger) -> None:
        self._subscribe = subscribe
        self._ledger = ledger
        self._followers: set[Follower] = set()
        self.closed = False

    @property
    def full(self) -> bool:
        """Whether no further stream is taken."""
        return len(self._followers) >= MOST_STREAMS

    @contextlib.contextmanager
    def follow(self, run: str | None) -> Iterator[Follower]:
        """A follower of one run, or of all, for the block's time; there must be room."""
        assert not self.full
        follower = Follower(run)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the commits for the block's time."""
        loop = asyncio.get_running_loop()

        def committed(what: Committed) -> None:
            # In the writer's thread. Nobody listens most of the time; the loop may be closing.
            if self._followers:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._touch, what.runs)

        unsubscribe = self._subscribe(committed)
        watch = asyncio.create_task(self._watch_health())
        try:
            yield
        finally:
            unsubscribe()
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            self.close()

    def close(self) -> None:
        """End every stream, now and from now on; in the event loop."""
        self.closed = True
        for follower in self._followers:
            follower.wake()

    def _touch(self, runs: frozenset[str]) -> None:
        for follower in self._followers:
            follower.touch(runs)

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            if self._followers:
                health = await run_in_threadpool(self._look)
                for follower in self._followers:
                    shown = follower.shown.items()
                    follower.touch(frozenset(run for run, (_, before) in shown if health.get(run) != before))

    def _look(self) -> dict[str, Health | None]:
        return {run: self._ledger.health(run) for run in self._ledger.runs()}
