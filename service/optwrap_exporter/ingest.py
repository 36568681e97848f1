"""Ingest: one writer thread that commits reports to the store, applies them to the ledger, and notifies listeners.

offer -> bounded queue -> writer thread: duplicate? -> ledger.plan -> store.commit -> ledger.apply -> answer, listeners
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

from optwrap_exporter.ledger.clocks import Clock
from optwrap_exporter.ledger.ledger import Ledger, Plan, acknowledge
from optwrap_exporter.store.condition import StoreUnavailableError
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.answers import Acknowledgement
from optwrap_exporter.wire.errors import ExporterError
from optwrap_exporter.wire.requests import Report

_log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 1.0
"""Seconds after which a client that was refused may try again."""
_RETIRE_SECONDS: Final = 0.05
"""Seconds that one tick may spend on deleting old data."""

Result = TypeVar("Result")


class ConflictError(ExporterError):
    """Other content is stored under this incarnation and seq, or the incarnation under another attempt (HTTP 409).

    Attributes:
      field: the field of the report that is wrong.
      value: the value received.
      allowed: what is allowed.
    """

    def __init__(self, field: str, value: str, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field}: {value}: expected {allowed}")


class BusyError(ExporterError):
    """Too many reports are waiting, or the seqs of the incarnation have too many gaps (HTTP 429).

    Attributes:
      retry_after: seconds after which to send the report again.
    """

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"the exporter is busy: send the same report again in {retry_after:g} s")


class ClosedError(ExporterError):
    """The exporter is shutting down; the report was not stored (HTTP 503)."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long data is kept. The totals of a live run are always kept."""

    seconds: float | None = None
    """Step records and events older than this are deleted, and whole runs that have not reported for as long.
    None keeps everything."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What a listener receives. `store.changes` has the content."""

    revision: int
    runs: frozenset[str]


Listener = Callable[[Committed], None]
"""Called in the writer thread after each commit. It must return at once and must not raise."""


def digest_of(report: Report) -> bytes:
    """16 bytes that are equal for reports with equal content, however their JSON was formatted."""
    return hashlib.blake2b(report.model_dump_json().encode(), digest_size=16).digest()


class Ingest:
    """Takes reports. Call `start()` and `close()`, or use it as a context manager.

    The constructor fills the ledger from the store. While the store stores no reports, every report is refused, and
    nothing turns stale.

    Args:
      store: where reports are committed. Only this ingest may write to it.
      ledger: an empty ledger.
      clock: the exporter's clock.
      waiting: how many reports may wait for the writer.
      tick: seconds between ticks, which find stale and stalled processes and delete old data. 0: only `tick()` does.
      retention: how long data is kept.

    Raises:
      StoreError: the stored data is damaged.
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
        ledger.restore(store.restore(), store.newest())

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
    def waiting(self) -> int:
        """Reports that wait for the writer."""
        return self._waiting

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
        with self._lock:
            if self._closed:
                raise ClosedError("the exporter is shutting down")
            if self._waiting >= self._most:
                raise BusyError(_RETRY_SECONDS)
            self._waiting += 1
            self._jobs.put(partial(self._serve, future, partial(self._take, report, digest), waited=True))
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
        self._do(partial(self._on_tick, unlimited=True))

    def forget(self, run: str) -> bool:
        """Delete everything about a run. Waits for the writer. False if the run is unknown.

        Raises:
          ClosedError: the ingest is closed.
          sqlite3.Error: the database could not be written.
        """
        return self._do(partial(self._forget, run))

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each commit from now on. Returns a function that ends the subscription."""
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
                raise ClosedError("the exporter is shutting down")
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
                job = self._safe_tick
            if job is None:
                return
            job()
            if self._tick and time.monotonic() >= due:
                if job != self._safe_tick:  # ticks must not stop while the queue is busy
                    self._safe_tick()
                due = time.monotonic() + self._tick

    def _serve(self, future: "Future[Result]", work: Callable[[], Result], *, waited: bool = False) -> None:
        if waited:
            with self._lock:
                self._waiting -= 1
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:  # one report must not end the writer thread
            future.set_exception(error)
        else:
            future.set_result(result)

    def _take(self, report: Report, digest: bytes | None) -> Acknowledgement:
        digest = digest_of(report) if digest is None else digest
        process = self._ledger.find(report)
        if process is not None:
            # The digest of an old report may have been deleted. Then the report is taken to be a duplicate.
            if self._store.digest(report) not in {None, digest}:
                raise ConflictError(
                    "seq",
                    f"incarnation {report.incarnation}, seq {report.seq}",
                    "the same content as before under this incarnation and seq, or a new seq",
                )
            return acknowledge(process, report, duplicate=True)
        if wait := self._ledger.admit(report):
            raise BusyError(wait)
        plan = self._ledger.plan(report)
        if plan.before is not None and plan.before.attempt != report.attempt:
            raise ConflictError(
                "attempt",
                report.attempt,
                f"{plan.before.attempt}, as in earlier reports of incarnation {report.incarnation}",
            )
        if plan.too_many_gaps:  # earlier reports that the client still holds will close some
            raise BusyError(_RETRY_SECONDS)
        if self._make_room(len(report.steps) + len(report.offenders) + len(report.replicas)):
            plan = self._ledger.plan(report)
        return self._commit(plan, digest).answer()

    def _make_room(self, records: int = 0) -> bool:
        """Make room for more records. Returns whether old records were deleted, which changes the ledger."""
        lost = self._store.make_room(records)
        self._ledger.count_not_stored(lost)
        return bool(lost)

    def _commit(self, plan: Plan, digest: bytes | None = None) -> Plan:
        revision, plan = self._store.commit(plan, digest)
        self._ledger.apply(plan)
        committed = Committed(revision, frozenset({plan.run.run}))
        for listener in self._listeners:
            try:
                listener(committed)
            except Exception:  # the commit stands even if a listener fails
                _log.exception("a listener of commits failed")
        return plan

    def _safe_tick(self) -> None:
        try:
            self._on_tick()
        except StoreUnavailableError:  # logged when it began
            pass
        except Exception as error:  # the next tick tries again
            _log.warning("could not store changes of health or delete old data; will try again: %s", error)

    def _on_tick(self, *, unlimited: bool = False) -> None:
        stores = self._store.look()
        self._make_room()
        if not stores:
            self._ledger.clocks.pause()
            return
        self._ledger.clocks.resume()
        for plan in self._ledger.pass_time():
            self._commit(plan)
        if self._retention.seconds is None:
            return
        before = self._ledger.clocks.age() - self._retention.seconds
        until = time.monotonic() + _RETIRE_SECONDS
        while self._store.retire(before) and (unlimited or time.monotonic() < until):
            pass
        for run in self._ledger.idle(before):
            self._forget(run)

    def _forget(self, run: str) -> bool:
        found = self._store.forget(run)
        self._ledger.forget(run)
        return found
