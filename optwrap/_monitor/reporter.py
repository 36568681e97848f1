"""The loop of the reporting thread: counts the observed readings, sends reports, and survives failures of the exporter.

The training loop never waits for anything in here, except in `flush` and `close`, which take a timeout.
"""

from collections.abc import Callable, Sequence
from typing import Final

from optwrap._monitor.account import Account
from optwrap._monitor.intake import Intake
from optwrap._monitor.local.callback import Caller
from optwrap._monitor.log import LogOnce, origin
from optwrap._monitor.queue import Inbox
from optwrap._monitor.sending.encode import Identity
from optwrap._monitor.sending.outbox import Outbox, Report
from optwrap._monitor.sending.schedule import Clock, Schedule
from optwrap._monitor.sending.transport import Answer, Transport, TransportError
from optwrap._monitor.settings import Settings
from optwrap._monitor.source import Source, own_attempt

_REFUSALS: Final = frozenset({401, 409, 413, 415, 422})
"""Statuses with which an exporter refuses a report for good. After any other the report is sent again."""
_CONFLICT: Final = 409
_TOO_LARGE: Final = 413
_MAX_SERVER_ERRORS: Final = 8
"""After this many answers of 500 in a row the report is assumed to be the cause, and is given up."""
_READ_EVERY: Final = 0.1
"""Longest time in seconds between two reads of the inbox, and so before a bad step is noticed."""
_POLL_EVERY: Final = 0.005
"""Seconds between two checks of a device that is still computing, while `flush` or `close` waits."""


class Reporter:
    """The state and the work of the reporting thread. `run` is the thread's target, `cycle` one turn of its loop.

    Args:
      settings: the Monitor's settings.
      inbox: where readings come from.
      accounts: where readings are counted: one for each of the runs in `settings`.
      transport: sends reports.
      source: finds the identity of the process.
      clock: the time.
      caller: gets the record of each step; None if nobody asked for them.
    """

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox,
        accounts: Sequence[Account],
        *,
        transport: Transport,
        source: Source,
        clock: Clock,
        caller: Caller | None = None,
    ) -> None:
        self._settings = settings
        self._inbox = inbox
        self._transport = transport
        self._source = source
        self._accounts = accounts
        self._clock = clock
        self._caller = caller
        self._once = LogOnce()
        self._intake = Intake(settings, inbox, accounts, self._once, caller=caller)
        self._outboxes: list[Outbox] = []
        """One for each account; empty until the process index and the attempt are known."""
        self._schedule = Schedule(settings, clock)
        self._started = clock.time() - clock.monotonic()
        """Time at which the monotonic clock was 0."""
        self._known_lost = 0
        """Step records that were lost when a flush last ended."""

    @property
    def delivered(self) -> bool:
        """Whether the exporter has acknowledged all counts, and all records that were not dropped."""
        return bool(self._outboxes) and all(outbox.empty and not outbox.refused for outbox in self._outboxes)

    @property
    def flushed(self) -> bool:
        """Whether everything is delivered, and no step record was dropped since a flush last ended."""
        return self.delivered and self._lost == self._known_lost

    @property
    def _lost(self) -> int:
        return sum(account.lost for account in self._accounts)

    def run(self) -> None:
        """Report until the inbox is closed."""
        try:
            while self._inbox.closing is None:
                self._guarded(self.cycle)
                self._inbox.wakeup.wait(self.pause())
            self._guarded(self.finish)
            if self._caller is not None and self._inbox.closing is not None:
                self._caller.close(self._inbox.closing.deadline - self._clock.monotonic())
        finally:
            self._transport.close()
            self._inbox.done.set()
            while self._inbox.flushes:
                self._inbox.flushes.popleft().done.set()

    def cycle(self) -> None:
        """Count the observed readings, and send a report if one is due."""
        flushes = [flush for flush in list(self._inbox.flushes) if not flush.done.is_set()]
        if any(not flush.started for flush in flushes):
            # A new flush gets one attempt at once, however long the exporter has been away.
            self._schedule.retry_now()
            for flush in flushes:
                flush.started = True
        # Read the inbox even while the process index is unknown: a bad step must not be evicted from it.
        drained = self._intake.drain()
        outboxes = self._prepare_outboxes()
        if not outboxes:
            return
        due = self._schedule.is_due(urgent=any(account.urgent for account in self._accounts))
        waiting = flushes and not self._schedule.failures and not all(outbox.empty for outbox in outboxes)
        if not self._schedule.blocked and (due or waiting):
            self._send(heartbeat=due)
        if flushes and drained and all(outbox.empty or outbox.refused for outbox in outboxes):
            for flush in flushes:
                flush.succeeded = self.flushed
                flush.done.set()
            self._known_lost = self._lost

    def pause(self) -> float:
        """Seconds until the next cycle, unless the inbox wakes the thread earlier."""
        if not self._outboxes:
            return _READ_EVERY
        if self._inbox.flushes and not self._schedule.failures:
            return _POLL_EVERY
        # Even with a long interval, read the inbox often: readings hold device memory, and a bad step is urgent.
        return min(max(self._schedule.seconds_left, _POLL_EVERY), _READ_EVERY)

    def finish(self) -> None:
        """Send the last reports, until the deadline of closing."""
        closing, outboxes, clock = self._inbox.closing, self._prepare_outboxes(), self._clock
        if closing is None or not outboxes:
            return
        # Half of the time is for the device to finish the observed readings, half for the exporter.
        half = (clock.monotonic() + closing.deadline) / 2
        while not self._intake.drain() and clock.monotonic() < half:
            clock.sleep(_POLL_EVERY)
        self._intake.abandon()
        for account in self._accounts:
            account.finish(closing.ending)
        pause = 0.02
        while True:
            self._send(heartbeat=False, deadline=closing.deadline)
            left = closing.deadline - clock.monotonic()
            if all(outbox.empty or outbox.refused for outbox in outboxes) or left <= pause:
                return
            clock.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _now(self) -> float:
        """Seconds since 1970 for `sent_at`: the time at the start, continued by the monotonic clock.

        The exporter orders incarnations and measures the time between reports with it, so it must never go backwards.
        """
        return self._started + self._clock.monotonic()

    def _guarded(self, work: Callable[[], object]) -> None:
        """Call `work`. An exception is a bug in optwrap: it is logged and does not end the thread."""
        try:
            work()
        except Exception as error:
            self._schedule.postpone()
            self._once.warn(
                origin(error),
                "optwrap: an internal error while reporting run %s; reporting goes on",
                self._settings.run,
                error=error,
            )

    def _read_inbox(self) -> None:
        self._guarded(self._intake.drain)

    def _prepare_outboxes(self) -> list[Outbox]:
        """The outboxes, whose first reports are the hellos; none while the process index or the attempt is unknown."""
        if not self._outboxes:
            if self._inbox.first is not None:
                self._source.note_step()
            process = self._source.process()
            first = self._accounts[0].incarnations[0].id
            attempt = self._source.attempt(self._settings.run, first, self._clock.monotonic())
            if process is None or attempt is None:
                return []
            for run, account in zip(self._settings.runs, self._accounts, strict=True):
                # An attempt that is only this process's own is named after the run's own incarnation.
                own = own_attempt(account.incarnations[0].id) if attempt == own_attempt(first) else attempt
                outbox = Outbox(
                    account, Identity(run, process, own, self._settings.interval, self._settings.replicated)
                )
                outbox.build_hello(self._source.describe(), self._now())
                self._outboxes.append(outbox)
        return self._outboxes

    def _send(self, *, heartbeat: bool, deadline: float | None = None) -> None:
        """Send what every outbox has; a refused report of one does not hold up the others."""
        self._schedule.begin()
        for account in self._accounts:
            account.urgent = False
        all_sent = True
        for outbox in self._outboxes:
            if not self._send_from(outbox, heartbeat=heartbeat, deadline=deadline):
                all_sent = False
                if self._schedule.failures:
                    return  # the exporter does not answer; a refusal of one run says nothing of the others
        if all_sent:
            self._schedule.sent_all()

    def _send_from(self, outbox: Outbox, *, heartbeat: bool, deadline: float | None) -> bool:
        """Send the held reports again, then new ones. If there are none and `heartbeat` is true, send a heartbeat.

        Returns:
          Whether all of them were accepted.
        """
        for held in list(outbox.held):
            heartbeat = False
            if held in outbox.held and not self._deliver(outbox, held, deadline):
                return False
        source = self._source.describe()
        while (report := outbox.build(source, self._now(), heartbeat=heartbeat)) is not None:
            heartbeat = heartbeat and report.incarnation is not outbox.current
            if not self._deliver(outbox, report, deadline):
                return False
        return True

    def _deliver(self, outbox: Outbox, report: Report, deadline: float | None) -> bool:
        """Send one report; returns whether the next one can be sent now."""
        within = None if deadline is None else deadline - self._clock.monotonic()
        if within is not None and within <= 0:
            return False
        try:
            # While the exporter hangs, keep reading the inbox: a bad step must not be evicted from it. At the end of
            # the run nothing is left to read.
            answer = self._transport.post(
                report.body, within=within, meanwhile=self._read_inbox if deadline is None else None
            )
            if answer.status == 200:
                outbox.acknowledge(report.incarnation, answer.acknowledged(report.incarnation.seq))
                self._schedule.follow(answer)
                self._schedule.reached()
                return True
        except TransportError as error:
            outbox.mark_uncertain(report)
            self._schedule.failed(str(error), None)
            self._schedule.forget_if_long_lost()
            return False
        if answer.status not in _REFUSALS and not self._is_broken_by_report(answer):
            outbox.mark_uncertain(report)
            self._schedule.failed(answer.message, answer.retry_after)
            return False
        self._schedule.reached()
        if answer.status == _TOO_LARGE and outbox.shrink(report):
            return True
        outbox.give_up(report, seq_is_taken=answer.status == _CONFLICT)
        self._schedule.postpone()
        self._once.warn(
            (answer.status, *answer.fields),
            "optwrap: the exporter at %s refused a report of run %s, whose step records are lost: %s",
            self._settings.endpoint.text,
            outbox.run,
            answer.message,
        )
        return False

    def _is_broken_by_report(self, answer: Answer) -> bool:
        return answer.status == 500 and self._schedule.failures >= _MAX_SERVER_ERRORS
