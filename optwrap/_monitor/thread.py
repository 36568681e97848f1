"""Starts the reporting thread, and ends it with its Monitor or with the process.

`Worker` has no reference to its Monitor, so that an unused Monitor is collected while its thread runs.
"""

import atexit
import dataclasses
import os
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Final

from optwrap._monitor.account import Account
from optwrap._monitor.log import log
from optwrap._monitor.queue import Closing, Ending, Inbox, in_words
from optwrap._monitor.reporter import Clock, Reporter
from optwrap._monitor.settings import Settings
from optwrap._monitor.source import JaxSource, Source
from optwrap._monitor.transport import HttpTransport, Transport
from optwrap._stop.stop import Stop

CLOSE_TIMEOUT: Final = 2.0
"""Seconds for which `close`, and the end of the process, wait for the last report."""
_MARGIN: Final = 0.2
"""The reporting thread stops this many seconds before CLOSE_TIMEOUT, so that it has ended when `close` returns."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """The replaceable parts of a Monitor, for tests."""

    environ: Mapping[str, str] = dataclasses.field(default_factory=lambda: os.environ)
    clock: Clock = dataclasses.field(default_factory=Clock)
    transport: Callable[[Settings], Transport] = lambda settings: HttpTransport(settings.endpoint, settings.token_file)
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
    """

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.inbox = Inbox(parts.queue_size, parts.clock.time)
        self.transport = parts.transport(settings)
        self.reporter = Reporter(
            settings,
            self.inbox,
            Account(parts.new_id),
            transport=self.transport,
            source=parts.source(settings),
            clock=parts.clock,
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
        """Start the thread, unless it was started.

        Raises:
          RuntimeError: the process can start no thread.
        """
        with self._starting:
            if self.thread is None:
                thread = _ReportingThread(self._run, self._settings, self.inbox)
                if any(thread.duplicates(other) for other in threading.enumerate()):
                    log.warning(
                        "optwrap: this process has a second Monitor that reports run %s to %s; the exporter will show "
                        "a conflict; close the first Monitor, or give each its own run",
                        self._settings.run,
                        self._settings.endpoint.text,
                    )
                thread.start()
                self.thread = thread
                atexit.register(self._at_exit)

    def close(self, ending: Ending) -> None:
        """End the thread, and wait at most CLOSE_TIMEOUT for its last report."""
        if self.thread is not None:
            self._request_end(ending, CLOSE_TIMEOUT - _MARGIN)
            self.inbox.done.wait(CLOSE_TIMEOUT)

    def close_soon(self) -> None:
        """End the thread without waiting. Safe in a finalizer, which may run in any thread, even in this one."""
        self._request_end(Ending.of(None, None, self.stop), CLOSE_TIMEOUT)

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

    def __init__(self, target: Callable[[], None], settings: Settings, inbox: Inbox) -> None:
        super().__init__(target=target, name="optwrap-monitor", daemon=True)
        self._settings = settings
        self._inbox = inbox

    def duplicates(self, other: threading.Thread) -> bool:
        """Whether `other` reports the same run, process and endpoint, and is not about to end."""
        if not isinstance(other, _ReportingThread) or other._inbox.closing is not None:
            return False
        mine, others = self._settings, other._settings
        return (mine.run, mine.endpoint, mine.process) == (others.run, others.endpoint, others.process)
