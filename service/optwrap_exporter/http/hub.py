"""Wakes the streams when something is committed. It buffers nothing for them.

A stream reads what it has not sent yet from the store. So a slow stream costs no memory, and a client that reconnects
after an hour misses nothing.
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
MOST_STREAMS_OF_PEER: Final = 64
"""The most streams to one address, so that one client cannot take them all. The Unix socket counts as one address."""
HEALTH_SECONDS: Final = 1.0
"""Seconds between checks for changes of health without a report."""


class Follower:
    """One stream in the hub. Use it in the event loop only."""

    def __init__(self, run: str | None, peer: str) -> None:
        self.peer = peer
        """The address of its client."""
        self.shown: dict[str, tuple[float, Health]] = {}
        """By run: when (`time.monotonic`) the stream last showed it, and its health then."""
        self.rows: defaultdict[str, Shown] = defaultdict(dict)
        """By run: the process rows that the stream last showed."""
        self.run = run
        """The run it follows; None follows all."""
        self._touched: set[str] = set()
        self._wake = asyncio.Event()

    def touch(self, runs: frozenset[str]) -> None:
        """Mark runs that have changed, if the stream follows them, and wake it."""
        mine = runs if self.run is None else runs & {self.run}
        if mine:
            self._touched |= mine
            self._wake.set()

    def wake(self) -> None:
        """End the current wait."""
        self._wake.set()

    async def wait(self, seconds: float | None) -> None:
        """Wait until a run is touched, or for at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    def take(self) -> set[str]:
        """Return the runs touched since the last call."""
        self._wake.clear()
        taken, self._touched = self._touched, set()
        return taken


class Hub:
    """Notifies the followers of commits. Use it in the event loop: `running()` runs it, `close()` ends every stream.

    Args:
      subscribe: `Ingest.subscribe`.
      ledger: where health is read.
    """

    def __init__(self, subscribe: Callable[[Listener], Callable[[], None]], ledger: Ledger) -> None:
        self._subscribe = subscribe
        self._ledger = ledger
        self._followers: set[Follower] = set()
        self.closed = False

    def full(self, peer: str) -> bool:
        """Whether no more streams to this address are accepted."""
        of_peer = sum(follower.peer == peer for follower in self._followers)
        return len(self._followers) >= MOST_STREAMS or of_peer >= MOST_STREAMS_OF_PEER

    @contextlib.contextmanager
    def follow(self, run: str | None, peer: str = "") -> Iterator[Follower]:
        """A follower of one run, or of all, during the block. The hub must not be full for this address."""
        assert not self.full(peer)
        follower = Follower(run, peer)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the commits during the block."""
        loop = asyncio.get_running_loop()

        def committed(what: Committed) -> None:
            # Runs in the writer's thread, so usually returns at once. The loop may be closing.
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
        """End every stream, and accept no new ones."""
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
