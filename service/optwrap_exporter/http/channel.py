"""What all streams of one run, or of all runs, are sent. Each message is read and encoded once, for all of them.

A channel works in rounds, at most four a second. A round reads what was committed since the last one and makes one
chunk of it. The channel keeps the last chunks, at most ANSWER_BYTES, and each stream sends those that it has not sent
yet. A stream that begins, or that is so slow that its next chunk is gone, begins with a `Start`. So a slow stream costs
no memory.
"""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections import deque
from typing import Final

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.shown.views import Shown, Verdict
from optwrap_exporter.store.condition import StoreUnavailableError
from optwrap_exporter.store.queries import Changes
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import ANSWER_BYTES
from optwrap_exporter.wire.vocabulary import ENDED

ROUND_SECONDS: Final = 0.25
"""The shortest time from one round to the next."""
RUN_SECONDS: Final = 1.0
"""The shortest time between two `run` events of one run that reports."""
SHARE: Final = 0.2
"""The most of a processor that the `run` events of one run may take. Those of a very large run come less often."""
LOOK_SECONDS: Final = 1.0
"""The time between two looks at the verdict on every run, which may change without a report."""
MOST_PARAMETERS: Final = 1000
"""The most parameters in a `run` event. One is sent every second, and a run may have 100,000 parameters."""


def encoded(event: str, data: BaseModel, revision: int | None = None) -> bytes:
    """One message of a stream. With a revision as its id, a client that reconnects continues after it."""
    number = None if revision is None else str(revision)
    return format_sse_event(data_str=data.model_dump_json(), event=event, id=number)


def reports(changes: Changes) -> list[tuple[int, bytes]]:
    """The `report` events of changes, and a `gap` event before them if some are left out, with their revisions."""
    gap = changes.gap
    before = [] if gap is None else [(gap.until, encoded("gap", gap, gap.until))]
    return before + [(one.revision, encoded("report", one, one.revision)) for one in changes.messages]


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """The messages of one round."""

    number: int
    """Chunks are numbered without gaps."""
    position: int
    """Every revision up to this one has been sent with this chunk."""
    reports: tuple[tuple[int, bytes], ...]
    """`report` and `gap` events, with their revisions."""
    runs: bytes
    """`run` events."""
    data: bytes
    """All of them."""

    def after(self, revision: int) -> bytes:
        """The messages without the reports up to a revision."""
        if not self.reports or self.reports[0][0] > revision:
            return self.data
        return b"".join([data for number, data in self.reports if number > revision]) + self.runs


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins: it is sent `runs`, and then the chunks from `number` on."""

    number: int
    position: int
    """Every revision up to this one is in earlier chunks."""
    runs: bytes
    """The `run` events of all that the stream shows, with all of their processes."""
    made: float
    """When it was made, by `time.monotonic`."""


class Channel:
    """One run, or all runs. Use it in the event loop. `work()` runs it.

    Args:
      store: where reports are read.
      ledger: where runs are read.
      run: the run; None means all.
    """

    def __init__(self, store: Store, ledger: Ledger, run: str | None) -> None:
        self._store = store
        self._ledger = ledger
        self.run = run
        """None means all."""
        self._chunks: deque[Chunk] = deque()
        self._next = 0
        self._position: int | None = None
        self._start: Start | None = None
        self._touched: set[str] = set()
        self._seen: dict[str, tuple[float, Verdict]] = {}
        """By run that was shown: when it is due again, and the verdict then."""
        self._rows: dict[str, Shown] = {}
        """By run: the process rows that the channel last showed."""
        self._looked = -math.inf
        """When the verdict on every run was last compared."""
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()
        """Rounds and starts take turns, so that a stream never shows a run as it was before its start."""
        self.published = asyncio.Event()
        """Set when there is a new chunk; then replaced."""

    def touch(self, runs: frozenset[str]) -> None:
        """Mark runs in which something was committed."""
        mine = runs if self.run is None else runs & {self.run}
        if mine:
            self._touched |= mine
            self._wake.set()

    def publish(self) -> None:
        """Wake every stream."""
        self.published.set()
        self.published = asyncio.Event()

    async def work(self) -> None:
        """Make chunks until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), ROUND_SECONDS if self._touched else LOOK_SECONDS)
            self._wake.clear()
            async with self._lock:
                await self._round()
            await asyncio.sleep(ROUND_SECONDS)

    async def start(self) -> Start:
        """Where a stream begins now. Streams that begin within a second begin at the same place."""
        async with self._lock:
            start = self._start
            if start is None or time.monotonic() >= start.made + 1.0 or self.gone(start.number):
                if self._position is None:
                    self._position = await run_in_threadpool(self._store.revision)
                runs = await run_in_threadpool(self._everything)
                start = self._start = Start(self._next, self._position, runs, time.monotonic())
        return start

    def gone(self, number: int) -> bool:
        """Whether a chunk is no longer kept."""
        return number < (self._chunks[0].number if self._chunks else self._next)

    def since(self, number: int) -> list[Chunk]:
        """The chunks from this number on. It must not be gone."""
        return [chunk for chunk in self._chunks if chunk.number >= number]

    async def _round(self) -> None:
        if self._position is None:  # no stream has begun
            return
        touched, self._touched = self._touched, set()
        try:
            chunk, left = await run_in_threadpool(self._made, self._position, touched)
        except StoreUnavailableError:  # the next round tries again
            self._touched |= touched
            return
        self._touched |= left
        self._position = chunk.position
        if not chunk.data:
            return
        self._next += 1
        self._chunks.append(chunk)
        size = sum(len(one.data) for one in self._chunks)
        while size > ANSWER_BYTES and len(self._chunks) > 1:
            size -= len(self._chunks.popleft().data)
        self.publish()

    def _made(self, position: int, touched: set[str]) -> tuple[Chunk, set[str]]:
        """The next chunk, and the touched runs that are shown later. Runs in a thread."""
        told = reports(self._store.changes(position, self.run)) if touched else []
        position = told[-1][0] if told else position
        now = time.monotonic()
        due = {name for name in touched if now >= self._seen.get(name, (-math.inf, None))[0]}
        if now >= self._looked + LOOK_SECONDS:
            self._looked = now
            due |= {name for name, (_, before) in self._seen.items() if self._ledger.verdict(name) != before}
        shown: list[bytes] = []
        left = touched - due
        for name in sorted(due):
            if sum(map(len, shown)) > ANSWER_BYTES // 2:
                left.add(name)  # for the next round
            elif self._show(name, shown, self._rows.setdefault(name, {})):
                left.add(name)
        runs = b"".join(shown)
        return Chunk(self._next, position, tuple(told), runs, b"".join([*(data for _, data in told), runs])), left

    def _show(self, name: str, shown: list[bytes], rows: Shown | None) -> bool:
        """Append the `run` event of a run that exists. Returns whether some of its processes did not fit."""
        begun = time.thread_time()
        detail = self._ledger.detail(name, MOST_PARAMETERS, rows)
        if detail is None:
            self._seen.pop(name, None)
            self._rows.pop(name, None)
            return False
        shown.append(encoded("run", detail))
        if rows is not None:
            pause = max(RUN_SECONDS, (time.thread_time() - begun) / SHARE)
            self._seen[name] = (time.monotonic() + pause, (detail.health, detail.summary))
        return detail.left_out.processes > 0

    def _everything(self) -> bytes:
        """The `run` events for a stream that begins. Runs in a thread."""
        names = [] if self.run is None else [self.run]
        if self.run is None:  # a stream of all runs begins with those that have not ended
            names = [name for name in self._ledger.runs() if self._ledger.health(name) not in ENDED]
        shown: list[bytes] = []
        for place, name in enumerate(names):
            if sum(map(len, shown)) > ANSWER_BYTES // 2:
                shown.append(format_sse_event(comment=f"{len(names) - place} more runs: GET /v1/runs lists them"))
                break
            # Later events have only the rows that differ from those of the first one.
            self._show(name, shown, None if name in self._rows else self._rows.setdefault(name, {}))
        return b"".join(shown)
