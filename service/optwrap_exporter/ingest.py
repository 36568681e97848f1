"""Ingest: one writer thread that takes reports, commits them, folds them into the ledger, and tells who listens.

offer -> bounded line -> [writer thread: known? -> ledger.plan -> store.commit -> ledger.apply] -> answer, listeners
"""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Final, Self, TypeVar

from optwrap_exporter.ledger.ledger import Clock, Ledger, Plan, acknowledge
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import Acknowledgement
from optwrap_exporter.wire.requests import Report

_log = logging.getLogger(__name__)

_RETRY: Final = 1.0
_RETIRING: Final = 0.05
"""Seconds that one look at the clock may spend on forgetting what is old."""

Result = TypeVar("Result")


class Conflict(Exception):
    """The incarnation and seq are stored with other content, or the incarnation with another attempt (409). Nothing was changed."""

    def __init__(self, field: str, value: str, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field}: {value}: expected {allowed}")


class Busy(Exception):
    """Too many reports are waiting (429). `retry_after` in seconds."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"too many reports are waiting: try again in {retry_after:g} s")


class Closed(Exception):
    """The exporter is shutting down (503): the report was not taken."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what is stored is kept. Totals of a run that is live are kept whatever this says."""

    seconds: float | None = None
    """Age beyond which step records and events go, and runs not heard of for so long go whole; None: never."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What a listener is told: read the rest with `store.changes`."""

    revision: int
    runs: frozenset[str]


Listener = Callable[[Committed], None]
"""Called in the writer thread after each commit: must return at once and not raise."""


def digest_of(report: Report) -> bytes:
    """16 bytes that are the same for two reports of the same content, however their JSON was written."""
    return hashlib.blake2b(report.model_dump_json().encode(), digest_size=16).digest()


class Ingest:
    """Takes reports. `start()` it, `close()` it; or use it as a context manager.

    On construction the ledger is filled from the store.

    Args:
      store: where reports are committed; belongs to this ingest's thread as far as writing goes.
      ledger: an empty one.
      clock: the exporter's.
      waiting: how many reports may wait for the writer.
      tick: seconds between looks at the clock (stale, stalled, retention); 0: only when `tick()` is called.
      retention: what to forget.

    Raises:
      StoreError: what the store holds makes no sense.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        *,
        clock: Clock,
        waiting: int = 256,
        tick: float = 1.0,
        retention: Retention | None = None,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._most = waiting
        self._tick = tick
        self._retention = retention or Retention()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = False
        self._listeners: tuple[Listener, ...] = ()
        self._thread = threading.Thread(target=self._work, name="optwrap-writer", daemon=True)
        ledger.restore(store.restore())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the writer thread."""
        self._thread.start()

    def close(self) -> None:
        """Answer what waits, then stop. The store stays open."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the writer thread runs: what /-/healthy asks."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Reports that wait for the writer."""
        return self._waiting

    def offer(self, report: Report, digest: bytes | None = None) -> "Future[Acknowledgement]":
        """Put a report in the line; from any thread, never blocks.

        Args:
          report: what came.
          digest: of its content, where the caller has it already (`digest_of`).

        Returns:
          The answer, once the report is committed (its `duplicate` says whether it was already); or the exception
          Conflict, StoreFull, or Busy (more gaps between the reports of an incarnation than are kept). Cancelling it takes
          the report out of the line, if the writer has not begun.

        Raises:
          Busy: the line is full.
          Closed: the ingest is closed.
        """
        future: Future[Acknowledgement] = Future()
        with self._lock:
            if self._closed:
                raise Closed("the exporter is shutting down")
            if self._waiting >= self._most:
                raise Busy(_RETRY)
            self._waiting += 1
            self._jobs.put(partial(self._serve, future, partial(self._take, report, digest), waited=True))
        return future

    def submit(self, report: Report, digest: bytes | None = None) -> Acknowledgement:
        """`offer`, and wait for the answer.

        Raises:
          Busy, Closed, Conflict, StoreFull: as `offer` says.
        """
        return self.offer(report, digest).result()

    def tick(self) -> None:
        """Look at the clock now: commit the events that time alone brings, forget what is old. Waits for the writer.

        Raises:
          Closed: the ingest is closed.
        """
        self._do(partial(self._look, forever=True))

    def forget(self, run: str) -> bool:
        """Delete all that is stored of a run. Waits for the writer. False where the run is unknown.

        Raises:
          Closed: the ingest is closed.
          sqlite3.Error: the store could not.
        """
        return self._do(partial(self._forget, run))

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each commit from now on; returns what ends that."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(other for other in self._listeners if other is not listener)

        return unsubscribe

    def _do(self, work: Callable[[], Result]) -> Result:
        future: Future[Result] = Future()
        with self._lock:
            if self._closed:
                raise Closed("the exporter is shutting down")
            self._jobs.put(partial(self._serve, future, work))
        return future.result()

    # --- the writer thread ---

    def _work(self) -> None:
        due = time.monotonic() + self._tick
        while True:
            left = max(0.0, due - time.monotonic()) if self._tick else None
            try:
                job = self._jobs.get(timeout=left)
            except queue.Empty:
                job = self._look_after
            if job is None:
                return
            job()
            if self._tick and time.monotonic() >= due:
                if job != self._look_after:  # a busy line must not keep time from passing
                    self._look_after()
                due = time.monotonic() + self._tick

    def _serve(self, future: "Future[Result]", work: Callable[[], Result], *, waited: bool = False) -> None:
        if waited:
            with self._lock:
                self._waiting -= 1
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:  # the writer outlives whatever one report does to it
            future.set_exception(error)
        else:
            future.set_result(result)

    def _take(self, report: Report, digest: bytes | None) -> Acknowledgement:
        digest = digest_of(report) if digest is None else digest
        known = self._ledger.knows(report)
        if known is not None:
            # One so old that its digest is gone is taken for what it says it is.
            if self._store.digest(report) not in {None, digest}:
                raise Conflict(
                    "seq",
                    f"incarnation {report.incarnation}, seq {report.seq}",
                    "what was sent with this incarnation and seq before, or a seq that was not sent yet",
                )
            return acknowledge(known, report, duplicate=True)
        plan = self._ledger.plan(report)
        if plan.before is not None and plan.before.attempt != report.attempt:
            raise Conflict(
                "attempt", report.attempt, f"that of incarnation {report.incarnation}, {plan.before.attempt}"
            )
        if plan.scattered:  # those that the client holds from before will close gaps
            raise Busy(_RETRY)
        if self._make_room(len(report.steps) + len(report.offenders) + len(report.replicas)):
            plan = self._ledger.plan(report)
        return self._commit(plan, digest).answer()

    def _make_room(self, records: int = 0) -> bool:
        """Make room for so many records; whether the ledger has changed by that."""
        lost = self._store.make_room(records)
        self._ledger.lose(lost)
        return bool(lost)

    def _commit(self, plan: Plan, digest: bytes | None = None) -> Plan:
        revision, plan = self._store.commit(plan, digest)
        self._ledger.apply(plan)
        committed = Committed(revision, frozenset({plan.run.run}))
        for listener in self._listeners:
            try:
                listener(committed)
            except Exception:  # what is committed is committed, whoever cannot hear of it
                _log.exception("a listener failed")
        return plan

    def _look_after(self) -> None:
        try:
            self._look()
        except Exception as error:  # what cannot be stored now is found again at the next look
            _log.warning("looking after the store failed, will try again: %s", error)

    def _look(self, *, forever: bool = False) -> None:
        self._make_room()
        for plan in self._ledger.pass_time():
            self._commit(plan)
        if self._retention.seconds is None:
            return
        before = self._clock() - self._retention.seconds
        until = time.monotonic() + _RETIRING
        while self._store.retire(before) and (forever or time.monotonic() < until):
            pass
        for run in self._ledger.idle(before):
            self._forget(run)

    def _forget(self, run: str) -> bool:
        found = self._store.forget(run)
        self._ledger.forget(run)
        return found
