"""Starts the reporting thread, and ends it with its Monitor or with the process.

`Worker` has no reference to its Monitor, so that an unused Monitor is collected while its thread runs.
"""

import atexit
import dataclasses
import os
import secrets
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Final

from optwrap._monitor.account import Account
from optwrap._monitor.local.callback import Caller
from optwrap._monitor.local.record import StepRecord
from optwrap._monitor.log import log
from optwrap._monitor.queue import Closing, Ending, Inbox, in_words
from optwrap._monitor.reporter import Reporter
from optwrap._monitor.sending.schedule import Clock
from optwrap._monitor.sending.transport import HttpTransport, NoTransport, Transport
from optwrap._monitor.settings import Settings
from optwrap._monitor.source import JaxSource, Source
from optwrap._stop.stop import Stop

CLOSE_TIMEOUT: Final = 2.0
"""Seconds for which `close`, and the end of the process, wait for the last report."""
_MAX_ROWS: Final = 65_536
"""Limit of the waiting step records of all members together, in table rows."""
_MARGIN: Final = 0.2
"""The reporting thread stops this many seconds before CLOSE_TIMEOUT, so that it has ended when `close` returns."""


def _transport(settings: Settings) -> Transport:
    return NoTransport() if settings.off else HttpTransport(settings.endpoint, settings.token_file)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The replaceable parts of a Monitor, for tests."""

    environ: Mapping[str, str] = dataclasses.field(default_factory=lambda: os.environ)
    clock: Clock = dataclasses.field(default_factory=Clock)
    transport: Callable[[Settings], Transport] = _transport
    source: Callable[[Settings], Source] = lambda settings: JaxSource(settings.process, settings.attempt)
    new_id: Callable[[], str] = lambda: secrets.token_hex(8)
    """Makes the id of an incarnation."""
    queue_size: int = 2048
    """Limit of the readings that wait for the reporting thread."""


class Worker:
    """The reporting thread of one Monitor in one process.

    Args:
      settings: the Monitor's settings.
      parts: the Monitor's parts.
      on_step: called with the record of each step, in another thread.
      superseded: called when a newer Monitor of the same run closes this one.
    """

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        *,
        on_step: Callable[[StepRecord], object] | None = None,
        superseded: Callable[[], None] = lambda: None,
    ) -> None:
        self.inbox = Inbox(parts.queue_size, parts.clock.time)
        self.transport = parts.transport(settings)
        self.superseded = superseded
        members = len(settings.runs)
        self.accounts = [
            Account(parts.new_id, max_rows=max(1024, _MAX_ROWS // members), from_zero=settings.counts_from == "zero")
            for _ in range(members)
        ]
        self._caller = None if on_step is None else Caller(on_step, settings.run)
        self.reporter = Reporter(
            settings,
            self.inbox,
            self.accounts,
            transport=self.transport,
            source=parts.source(settings),
            clock=parts.clock,
            caller=self._caller,
        )
        self.thread: threading.Thread | None = None
        """None until `start`."""
        self.stop: Stop | None = None
        """The decision that the training should stop, for an end without `close`."""
        self._clock = parts.clock
        self._settings = settings
        self._starting = threading.Lock()
        self._pid = os.getpid()

    def start(self) -> None:
        """Start the thread, unless it was started. Other Monitors of the same run in this process are closed first.

        Raises:
          RuntimeError: the process can start no thread.
        """
        with self._starting:
            if self.thread is None:
                for other in threading.enumerate():
                    # A notebook's cell that is run again. Two Monitors of one run would be a conflict.
                    worker = other.worker if isinstance(other, _ReportingThread) else None
                    if worker is not None and self._replaces(worker):
                        log.info("optwrap: a new Monitor of run %s closes the one before it", self._settings.run)
                        worker.superseded()
                        worker.close(Ending.of(None, None, worker.stop))
                thread = _ReportingThread(self)
                thread.start()
                self.thread = thread
                atexit.register(self._at_exit)

    def close(self, ending: Ending) -> None:
        """End the thread, and wait at most CLOSE_TIMEOUT for its last report.

        Within `on_step` it does not wait, because the thread waits for the calls of `on_step` that are left.
        """
        if self.thread is not None:
            self._request_end(ending, CLOSE_TIMEOUT - _MARGIN)
            if self._caller is None or not self._caller.is_calling:
                self.inbox.done.wait(CLOSE_TIMEOUT)

    def close_soon(self) -> None:
        """End the thread without waiting. Safe in a finalizer, which may run in any thread, even in this one."""
        self._request_end(Ending.of(None, None, self.stop), CLOSE_TIMEOUT)

    def _replaces(self, other: "Worker") -> bool:
        """Whether `other` has the same run, process and endpoint, and has not been asked to end."""
        mine, others = self._settings, other._settings
        same = (mine.run, mine.endpoint, mine.process) == (others.run, others.endpoint, others.process)
        return same and not mine.off and other.inbox.closing is None

    def _request_end(self, ending: Ending, within: float) -> None:
        if self.inbox.closing is None:
            self.inbox.closing = Closing(ending, self._clock.monotonic() + within)
        self.inbox.wakeup.set()

    def _run(self) -> None:
        try:
            self.reporter.run()
        finally:
            atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        # A forked child inherits the exit handlers of its parent, but not the thread.
        if os.getpid() == self._pid and not self.inbox.done.is_set():
            uncaught = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
            stopped = Ending.of(None, None, self.stop)
            self.close(stopped if uncaught is None else Ending("failed", in_words(uncaught)))


class _ReportingThread(threading.Thread):
    """The thread. Its class distinguishes it from the other threads of the process."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(target=worker._run, name="optwrap-monitor", daemon=True)
        self._worker = weakref.ref(worker)

    @property
    def worker(self) -> Worker | None:
        """The worker; None once it has ended and nobody else has it."""
        return self._worker()
