"""Ingest: one writer thread that takes reports, commits them, folds them into the ledger, and tells who listens.

submit -> bounded line -> [writer thread: known? -> plan -> store.commit -> ledger] -> answer, listeners
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from optwrap_exporter.ledger import Clock, Ledger
from optwrap_exporter.store import Store
from optwrap_exporter.wire import Acknowledgement, Report


class Conflict(Exception):
    """This epoch and seq are stored with other content (409). Nothing was changed."""


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
    """Age beyond which step records and events go, and runs that have not reported for so long go whole; None: never."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What a listener is told: read the rest with `store.changes`."""

    revision: int
    runs: frozenset[str]


Listener = Callable[[Committed], None]
"""Called in the writer thread after each commit: must return at once and not raise."""


def digest_of(report: Report) -> bytes:
    """16 bytes that are the same for two reports of the same content, however their JSON was written."""
    raise NotImplementedError


class Ingest:
    """Takes reports. `start()` it, `close()` it; or use it as a context manager.

    On construction the ledger is filled from the store.

    Args:
      store: where reports are committed; belongs to this ingest's thread as far as writing goes.
      ledger: an empty one.
      clock: the exporter's.
      waiting: how many reports may wait for the writer.
      tick: seconds between looks at the clock (stale, stalled, starved; retention once a minute); 0: only `tick()`.
      retention: what to forget.
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
        raise NotImplementedError

    def start(self) -> None:
        """Start the writer thread."""
        raise NotImplementedError

    def offer(self, report: Report, digest: bytes | None = None) -> "Future[Acknowledgement]":
        """Put a report in the line; from any thread, never blocks.

        Args:
          report: what came.
          digest: of its content, where the caller has it already (`digest_of`).

        Returns:
          The answer, once the report is committed; or the exception Conflict, StoreFull or Closed.

        Raises:
          Busy: the line is full.
          Closed: the ingest is closed.
        """
        raise NotImplementedError

    def submit(self, report: Report, digest: bytes | None = None) -> Acknowledgement:
        """`offer`, and wait for the answer.

        Raises:
          Busy, Closed, Conflict, StoreFull: as `offer` says.
        """
        raise NotImplementedError

    def tick(self) -> None:
        """Look at the clock now: commit the events that time alone brings. Waits for the writer."""
        raise NotImplementedError

    def forget(self, run: str) -> bool:
        """Delete all that is stored of a run. Waits for the writer. False where the run is unknown."""
        raise NotImplementedError

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each commit from now on; returns what ends that."""
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        """Whether the writer thread runs: what /-/healthy asks."""
        raise NotImplementedError

    def close(self) -> None:
        """Answer what waits, then stop. The store stays open."""
        raise NotImplementedError
