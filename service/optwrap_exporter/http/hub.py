"""Knows the open streams, and tells their channels what was committed."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from optwrap_exporter.http.channel import Channel
from optwrap_exporter.ingest.group_commit import Committed, Listener
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.store import Store

MOST_STREAMS: Final = 256
MOST_STREAMS_OF_PEER: Final = 64
"""The most streams to one address, so that one client cannot take them all. The Unix socket counts as one address."""


class _Open:
    """A channel with open streams."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.streams = 0
        self.work = asyncio.create_task(channel.work())


class Hub:
    """The channels of the open streams. Use it in the event loop: `running()` runs it, `close()` ends every stream.

    Args:
      subscribe: `Ingest.subscribe`.
      store: where reports are read.
      ledger: where runs are read.
    """

    def __init__(self, subscribe: Callable[[Listener], Callable[[], None]], store: Store, ledger: Ledger) -> None:
        self._subscribe = subscribe
        self._store = store
        self._ledger = ledger
        self._open: dict[str | None, _Open] = {}
        self._peers: Counter[str] = Counter()
        """Open streams by the address of their client."""
        self.closed = False

    def full(self, peer: str) -> bool:
        """Whether no more streams to this address are accepted."""
        return self._peers.total() >= MOST_STREAMS or self._peers[peer] >= MOST_STREAMS_OF_PEER

    @contextlib.contextmanager
    def follow(self, run: str | None, peer: str = "") -> Iterator[Channel]:
        """The channel of one run, or of all, for one stream during the block. The hub must not be full for `peer`."""
        assert not self.full(peer)
        mine = self._open.get(run)
        if mine is None:
            mine = self._open[run] = _Open(Channel(self._store, self._ledger, run))
        mine.streams += 1
        self._peers[peer] += 1
        try:
            yield mine.channel
        finally:
            mine.streams -= 1
            self._peers -= Counter([peer])  # drops the address of the last stream
            if not mine.streams:
                mine.work.cancel()
                del self._open[run]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the commits during the block."""
        loop = asyncio.get_running_loop()

        def committed(what: Committed) -> None:
            # Runs in the writer's thread, so usually returns at once. The loop may be closing.
            if self._open:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._touch, what.runs)

        unsubscribe = self._subscribe(committed)
        try:
            yield
        finally:
            unsubscribe()
            self.close()

    def close(self) -> None:
        """End every stream, and accept no new ones."""
        self.closed = True
        for one in self._open.values():
            one.channel.publish()

    def _touch(self, runs: frozenset[str]) -> None:
        for one in self._open.values():
            one.channel.touch(runs)
