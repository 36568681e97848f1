"""Ingest: one writer thread that commits reports in groups, and wakes each event loop once for a group of answers.

offer -> bounded queue -> writer thread, at most GROUP at once: GroupCommit.take -> answers, listeners
"""

import asyncio
import contextlib
import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

from optwrap_exporter.ingest.group_commit import (
    GROUP,
    BusyError,
    GroupCommit,
    Listener,
    Offer,
)
from optwrap_exporter.ingest.load import Load
from optwrap_exporter.ingest.operations import Operations, Result
from optwrap_exporter.ingest.waiting import Waiting, give_answers
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.store.condition import StoreState, StoreUnavailableError
from optwrap_exporter.store.connections import ClosedError
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import Acknowledgement
from optwrap_exporter.wire.requests import Report

_log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 1.0
"""Seconds after which a client that was refused may try again."""
_RETIRE_SECONDS: Final = 0.05
"""Seconds that one tick may spend on deleting old data."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long data is kept. The totals of a live run are always kept."""

    seconds: float | None = None
    """Step records and events older than this are deleted within `slack`, and whole runs that have not reported for as
    long. None keeps everything."""

    @property
    def slack(self) -> float:
        """Seconds by which records may get older: deleted together they cost a fraction of what each costs alone."""
        return min(3600.0, (self.seconds or 0.0) / 16)


_Job = Waiting | Callable[[], object] | None
"""A report, other work for the writer's thread, or None to end it."""


def digest_of(report: Report) -> bytes:
    """16 bytes that are equal for reports with equal content, however their JSON was formatted."""
    return hashlib.blake2b(report.model_dump_json().encode(), digest_size=16).digest()


class Ingest(Operations):
    """Takes reports. Call `start()` and `close()`, or use it as a context manager.

    The constructor fills the ledger from the store. While the store stores no reports, every report is refused, and
    nothing turns stale.

    Args:
      store: where reports are committed. Only this ingest may write to it.
      ledger: an empty ledger.
      waiting: how many reports may wait for the writer.
      tick: seconds between ticks, which find stale and stalled processes and delete old data. 0: only `tick()` does.
      retention: how long data is kept.
      load: what measures reports, and how often processes should send them.

    Raises:
      StoreError: the stored data is damaged.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        *,
        waiting: int = 256,
        tick: float = 1.0,
        retention: Retention | None = None,
        load: Load | None = None,
    ) -> None:
        self.load = load or Load()
        """What reports cost, and how often processes should send them."""
        super().__init__(store, ledger, GroupCommit(store, ledger, self.load))
        self._most = waiting
        self._tick = tick
        self._retention = retention or Retention()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="optwrap-writer", daemon=True)
        ledger.restore(store.restore(), store.newest(), store.last_incident())
        self.load.measure(ledger.reporting())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the writer thread."""
        self._thread.start()

    def close(self) -> None:
        """Answer the reports that wait, then stop. The store stays open."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the writer thread runs, for /-/healthy."""
        return self._thread.is_alive()

    @property
    def store_state(self) -> StoreState:
        """Whether reports are stored, and if not, why."""
        return self._store.state

    @property
    def waiting(self) -> int:
        """Reports that wait for the writer."""
        return self._waiting

    @property
    def room(self) -> int:
        """How many more reports may wait."""
        return self._most - self._waiting

    def offer(self, report: Report, digest: bytes | None = None) -> "Future[Acknowledgement]":
        """Queue a report. Any thread may call it; it never blocks.

        Args:
          report: the report.
          digest: `digest_of(report)`, if the caller has it already.

        Returns:
          A future that is done when the report is committed: its result is the answer. Its exception can be a
          ConflictError, an ImplausibleError, a StoreUnavailableError, or a BusyError (too many gaps or new names). If
          it is cancelled before the writer takes the report, the report is not stored.

        Raises:
          BusyError: the queue is full.
          ClosedError: the ingest is closed.
        """
        future: Future[Acknowledgement] = Future()
        self._put(report, digest, future, None)
        return future

    def offer_async(
        self, report: Report, digest: bytes | None = None, *, gone: Callable[[], bool] | None = None
    ) -> "asyncio.Future[Acknowledgement]":
        """`offer` for a coroutine: the future belongs to the running event loop.

        Args:
          report: the report.
          digest: `digest_of(report)`, if the caller has it already.
          gone: returns whether nobody waits for the answer any more. If so when the writer takes the report, it is not
            stored, and the future is cancelled. It is called in the writer's thread.

        Raises:
          BusyError, ClosedError: as in `offer`.
        """
        future: asyncio.Future[Acknowledgement] = asyncio.get_running_loop().create_future()
        self._put(report, digest, future, gone)
        return future

    def submit(self, report: Report, digest: bytes | None = None) -> Acknowledgement:
        """`offer` a report and wait for the answer.

        Raises:
          BusyError, ClosedError, ConflictError, StoreUnavailableError: as in `offer`.
        """
        return self.offer(report, digest).result()

    def tick(self) -> None:
        """Commit changes of health that time alone brings, and delete all old data. Waits for the writer.

        Raises:
          ClosedError: the ingest is closed.
        """
        self._queue(partial(self._on_tick, unlimited=True)).result()

    def forget(self, run: str) -> bool:
        """Delete everything about a run. Waits for the writer. False if the run is unknown.

        Raises:
          ClosedError: the ingest is closed.
          sqlite3.Error: the database could not be written.
        """
        return self._queue(partial(self._forget, run)).result()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each commit from now on. Returns a function that ends the subscription."""
        with self._lock:
            self._commits.listeners = (*self._commits.listeners, listener)

        def unsubscribe() -> None:
            with self._lock:
                self._commits.listeners = tuple(other for other in self._commits.listeners if other is not listener)

        return unsubscribe

    def _put(
        self,
        report: Report,
        digest: bytes | None,
        future: "Future[Acknowledgement] | asyncio.Future[Acknowledgement]",
        gone: Callable[[], bool] | None,
    ) -> None:
        job = Waiting(Offer(report, digest_of(report) if digest is None else digest), future, gone)
        with self._lock:
            if self._closed:
                raise ClosedError("the exporter is shutting down")
            if self._waiting >= self._most:
                raise BusyError(_RETRY_SECONDS)
            self._waiting += 1
            self._jobs.put(job)

    def _queue(self, work: Callable[[], Result]) -> "Future[Result]":
        future: Future[Result] = Future()
        with self._lock:
            if self._closed:
                raise ClosedError("the exporter is shutting down")
            self._jobs.put(partial(self._serve, future, work))
        return future

    # --- the writer thread ---

    def _work(self) -> None:
        due = time.monotonic() + self._tick
        while True:
            left = max(0.0, due - time.monotonic()) if self._tick else None
            try:
                job = self._jobs.get(timeout=left)
            except queue.Empty:
                job = self._safe_tick
            if isinstance(job, Waiting):
                job = self._serve_group(job)
            if job is None:
                return
            job()
            if self._tick and time.monotonic() >= due:
                if job != self._safe_tick:  # ticks must not stop while the queue is busy
                    self._safe_tick()
                due = time.monotonic() + self._tick

    def _serve_group(self, first: Waiting) -> Callable[[], object] | None:
        """Store the reports that wait, at most GROUP. Returns the next job if it is not a report."""
        group = [first]
        job: Callable[[], object] | None = _nothing
        with contextlib.suppress(queue.Empty):
            while len(group) < GROUP:
                following = self._jobs.get_nowait()
                if not isinstance(following, Waiting):
                    job = following
                    break
                group.append(following)
        with self._lock:
            self._waiting -= len(group)
        kept: list[Waiting] = []
        dropped: list[Waiting] = []
        for waiting in group:
            (dropped if waiting.dropped() else kept).append(waiting)
        answers = self._commits.take([waiting.offer for waiting in kept]) if kept else []
        give_answers([*zip(kept, answers, strict=True), *((waiting, None) for waiting in dropped)])
        return job

    def _serve(self, future: "Future[Result]", work: Callable[[], Result]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:  # one job must not end the writer thread
            future.set_exception(error)
        else:
            future.set_result(result)

    def _safe_tick(self) -> None:
        try:
            self._on_tick()
        except StoreUnavailableError:  # logged when it began
            pass
        except Exception as error:  # the next tick tries again
            _log.warning("could not store changes of health or delete old data; will try again: %s", error)

    def _on_tick(self, *, unlimited: bool = False) -> None:
        stores = self._store.look()
        if self.load.measure(self._ledger.reporting()):
            self._ledger.clocks.hold()  # a process that was refused is not to blame
        self._commits.make_room()
        if not stores:
            self._ledger.clocks.pause()
            return
        self._ledger.clocks.resume()
        self._commits.commit(self._ledger.pass_time())
        if self._retention.seconds is None:
            return
        before = self._ledger.clocks.age() - self._retention.seconds
        slack, until = self._retention.slack, time.monotonic() + _RETIRE_SECONDS
        retired = False
        while self._store.retire(before, slack):
            retired = True
            if not unlimited and time.monotonic() >= until:
                break
        if retired:
            self._forget_incidents()
        for run in self._ledger.idle(before):
            self._forget(run)


def _nothing() -> None:
    """A job without work."""
