"""The reporting thread: reports what was observed, and outlives whatever the exporter does.

Nothing in here is called by the training loop, and nothing that the training loop calls waits for anything in here,
except `flush` and `close`, which say for how long.
"""

import dataclasses
import json
import math
import random
from collections.abc import Callable
from time import monotonic, sleep, time
from typing import Final

from optwrap._monitor import bases
from optwrap._monitor.account import Account
from optwrap._monitor.intake import Intake
from optwrap._monitor.log import Once, log, place_of
from optwrap._monitor.outbox import Identity, Outbox, Report
from optwrap._monitor.queue import Inbox
from optwrap._monitor.settings import Settings
from optwrap._monitor.source import Source
from optwrap._monitor.transport import Answer, Transport, TransportError

LONGEST_BACKOFF: Final = 30.0
"""Seconds between two attempts to reach an exporter, at most and unless it asks for more."""
LONGEST_RETRY_AFTER: Final = 3600.0
_MOST_FAULTS: Final = 8
"""Answers of 500 in a row after which it must be the report that the exporter cannot digest."""
_BUSY: Final = frozenset({408, 429})
_LOOK: Final = 0.1
"""Seconds between two looks at what was observed: how long a bad step may stay unseen."""
_HURRY: Final = 0.2
"""Seconds after a report before one that cannot wait for its turn."""
_POLL: Final = 0.005


@dataclasses.dataclass(frozen=True)
class Clock:
    """Time and chance, as the Monitor asks for them."""

    time: Callable[[], float] = time
    """Seconds since 1970."""
    monotonic: Callable[[], float] = monotonic
    sleep: Callable[[float], None] = sleep
    jitter: Callable[[], float] = dataclasses.field(default_factory=lambda: random.Random().random)
    """A number from 0 to 1; not from the generator of the training program, which counts on its own draws."""


class Reporter:
    """Everything the reporting thread knows and does; `run` is the thread, `cycle` one turn of it.

    Args:
      settings: what the Monitor was told.
      inbox: where readings come from.
      account: what readings add up to.
      transport: how reports go.
      source: who reports.
      clock: the time.
    """

    def __init__(
        self, settings: Settings, inbox: Inbox, account: Account, *, transport: Transport, source: Source, clock: Clock
    ) -> None:
        self._settings = settings
        self._inbox = inbox
        self._transport = transport
        self._source = source
        self._account = account
        self._clock = clock
        self._once = Once()
        self._intake = Intake(inbox, account, self._once)
        self._outbox: Outbox | None = None
        self._due = clock.monotonic()
        self._began = clock.time() - self._due
        self._sent = -math.inf
        self._blocked_until = self._due
        self._failures = 0
        self._lost_at: float | None = None
        self._refused = False

    @property
    def delivered(self) -> bool:
        """Whether the exporter has everything that was counted."""
        return self._outbox is not None and self._outbox.settled and not self._refused

    def run(self) -> None:
        """Report until the inbox is closed."""
        try:
            while self._inbox.closing is None:
                self._guarded(self.cycle)
                self._inbox.bell.wait(self.pause())
            self._guarded(self.finish)
        finally:
            self._transport.close()
            self._inbox.over.set()
            while self._inbox.flushes:
                self._inbox.flushes.popleft().over.set()

    def cycle(self) -> None:
        """Take what was observed, and report if it is time."""
        flushes = [flush for flush in list(self._inbox.flushes) if not flush.over.is_set()]
        if any(not flush.begun for flush in flushes):
            # Whoever waits is worth one attempt at once, however long the exporter has been away.
            self._failures = 0
            self._due = self._clock.monotonic()
            for flush in flushes:
                flush.begun = True
        # Also while nobody knows yet who reports: what overflows may be a bad step.
        drained = self._intake.drain(last=bool(flushes))
        outbox = self._greet()
        if outbox is None:
            return
        now = self._clock.monotonic()
        due = now >= self._due or (self._account.news and not self._failures and now >= self._sent + _HURRY)
        if now >= self._blocked_until and (due or (flushes and not self._failures and not outbox.settled)):
            self._send(outbox, beat=due)
        if drained and (outbox.settled or self._refused):
            for flush in flushes:
                flush.reached = not self._refused
                flush.over.set()

    def pause(self) -> float:
        """Seconds until the next cycle, unless the inbox wakes the thread earlier."""
        if self._outbox is None:
            return 0.1
        if self._inbox.flushes and not self._failures:
            return _POLL
        until = max(self._due, self._blocked_until) - self._clock.monotonic()
        # However seldom is reported: readings leave the device's memory, and what is news does not wait.
        return min(max(until, _POLL), _LOOK)

    def finish(self) -> None:
        """Report the end, until the time for it is over."""
        closing, outbox, clock = self._inbox.closing, self._greet(), self._clock
        if closing is None or outbox is None:
            return
        # The device gets half of the time to come to the end of what was observed, the exporter the rest.
        half = (clock.monotonic() + closing.deadline) / 2
        while not self._intake.drain(last=True) and clock.monotonic() < half:
            clock.sleep(_POLL)
        self._intake.abandon()
        self._account.finish(closing.state)
        pause = 0.02
        while True:
            self._send(outbox, beat=False, deadline=closing.deadline)
            left = closing.deadline - clock.monotonic()
            if outbox.settled or self._refused or left <= pause:
                return
            clock.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _now(self) -> float:
        """Seconds since 1970, by a clock that nobody sets back after the start.

        The exporter tells by it which incarnation of a process is the later one, and how far apart its reports were sent.
        """
        return self._began + self._clock.monotonic()

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            # A fault of ours. The thread lives on: what is cumulative may still get through.
            self._due = self._clock.monotonic() + self._settings.interval
            self._once.warn(
                place_of(error), "optwrap: reporting of run %s failed; trying on", self._settings.run, error=error
            )

    def _take_in(self) -> None:
        self._guarded(self._intake.drain)

    def _greet(self) -> Outbox | None:
        """The outbox, which begins with a report of zeros; None while it is not known who reports."""
        if self._outbox is None:
            if self._inbox.first is not None:
                self._source.stepped()
            process = self._source.process()
            first = self._account.incarnations[0].id
            attempt = self._source.attempt(self._settings.run, first, self._clock.monotonic())
            if process is None or attempt is None:
                return None
            outbox = Outbox(self._account, Identity(self._settings.run, process, attempt, self._settings.interval))
            outbox.greet(self._source.describe(), self._now())
            self._outbox = outbox
        return self._outbox

    def _send(self, outbox: Outbox, *, beat: bool, deadline: float | None = None) -> None:
        """Send what is held, then what is new, then if there is neither and `beat` a sign of life."""
        self._sent = now = self._clock.monotonic()
        self._account.news = False
        for held in list(outbox.held):
            beat = False
            if held in outbox.held and not self._deliver(outbox, held, deadline):
                return
        source = self._source.describe()
        while (report := outbox.build(source, self._now(), beat=beat)) is not None:
            beat = beat and report.incarnation is not self._account.current
            if not self._deliver(outbox, report, deadline):
                return
        self._due = now + self._settings.interval

    def _deliver(self, outbox: Outbox, report: Report, deadline: float | None) -> bool:
        """Send one report; whether it makes sense to send more."""
        within = None if deadline is None else deadline - self._clock.monotonic()
        if within is not None and within <= 0:
            return False
        try:
            # While the exporter hangs the inbox must not overflow: what goes there may be a bad step. At the very end
            # there is nothing more to take in.
            answer = self._transport.post(
                report.body, within=within, meanwhile=self._take_in if deadline is None else None
            )
        except TransportError as error:
            outbox.fail(report)
            return self._failed(str(error), None)
        if answer.status == 200:
            return self._accepted(outbox, report, answer)
        if answer.status in _BUSY or (answer.status >= 500 and not self._hopeless(answer)):
            outbox.fail(report)
            return self._failed(answer.message, answer.retry_after)
        self._reached()
        if answer.status == 413 and outbox.split(report):
            return True
        outbox.refuse(report)
        self._refused = True
        self._due = self._clock.monotonic() + self._settings.interval
        self._once.warn(
            (answer.status, *answer.fields),
            "optwrap: the exporter at %s refused a report of run %s, the step records in which are lost: %s",
            self._settings.endpoint.text,
            self._settings.run,
            answer.message,
        )
        return False

    def _hopeless(self, answer: Answer) -> bool:
        return answer.status == 500 and self._failures >= _MOST_FAULTS

    def _accepted(self, outbox: Outbox, report: Report, answer: Answer) -> bool:
        try:
            said = json.loads(answer.body)
            acknowledged, base = said["acknowledged"], bases.checked(said.get("base"))
            if not isinstance(acknowledged, int):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError):
            outbox.fail(report)
            return self._failed(f"answered as no exporter does: {answer.message}", None)
        self._reached()
        self._refused = False
        outbox.acknowledge(report.incarnation, acknowledged, base)
        return True

    def _failed(self, why: str, retry_after: float | None) -> bool:
        now = self._clock.monotonic()
        # Full jitter: the processes of a job lose their exporter together and must not come back together.
        self._due = now + self._clock.jitter() * min(LONGEST_BACKOFF, 2.0 ** min(self._failures, 10))
        self._blocked_until = now + min(retry_after or 0.0, LONGEST_RETRY_AFTER)
        self._failures += 1
        if self._lost_at is None:
            self._lost_at = now
            log.warning(
                "optwrap: no report of run %s gets through to the exporter at %s (%s); training goes on, and what it "
                "counts is kept and sent later",
                self._settings.run,
                self._settings.endpoint.text,
                why,
            )
        return False

    def _reached(self) -> None:
        self._failures = 0
        if self._lost_at is not None:
            away = self._clock.monotonic() - self._lost_at
            self._lost_at = None
            log.warning(
                "optwrap: the exporter at %s takes reports of run %s again, after %.0f s",
                self._settings.endpoint.text,
                self._settings.run,
                away,
            )
