"""The reports of one process: built from its account, frozen, and held until they are acknowledged. Pure."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from optwrap._monitor.account import Account, Incarnation
from optwrap._monitor.backlog import Entry
from optwrap._monitor.queue import Diagnosis
from optwrap._monitor.sending.encode import Identity, encode
from optwrap._monitor.worst import MAX_PARAMETERS

_GROW_AFTER: Final = 64
"""Acknowledgements after which reports may be twice as large again, if they had to become smaller."""


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """One report. Its body never changes, so that the exporter recognises a repetition."""

    incarnation: Incarnation
    seq: int
    body: bytes
    entries: tuple[Entry[Incarnation], ...]
    """Its step records. If the exporter refuses the report, they are sent in parts or counted as dropped."""
    named: int
    """The most parameters that its totals name, or the record of one step."""
    diagnoses: tuple[Diagnosis, ...] = ()


class Outbox:
    """Builds reports, and holds them until the exporter acknowledges them.

    A report is built only when it can be sent. While the exporter is away, records wait in the account and not in
    frozen reports, because the account drops good records before bad ones.

    Args:
      account: the counts and records to report.
      identity: the reporting process.
      max_rows: limit of the step records and their parameters in one report.
      max_parameters: limit of the parameters that the totals name, and the record of one step.
      max_held: limit of the reports that are built and not acknowledged.
    """

    def __init__(
        self,
        account: Account,
        identity: Identity,
        *,
        max_rows: int = 8192,
        max_parameters: int = MAX_PARAMETERS,
        max_held: int = 8,
    ) -> None:
        self._account = account
        self._identity = identity
        self._max_rows = self._most_rows = max_rows
        self._max_parameters = self._most_parameters = max_parameters
        self._accepted = 0
        """Acknowledgements since a report was too large, or since the limits grew."""
        self._max_held = max_held
        self.held: list[Report] = []
        """Built and not acknowledged, oldest first."""
        self.refused = False
        """Whether the latest answer was a refusal."""

    @property
    def run(self) -> str:
        """The name of the run that it reports."""
        return self._identity.run

    @property
    def current(self) -> Incarnation:
        """The incarnation that counts now."""
        return self._account.current

    @property
    def empty(self) -> bool:
        """Whether the exporter has acknowledged everything in the account."""
        return not self.held and self._next() is None

    def build_hello(self, source: Mapping[str, Any], now: float) -> Report:
        """Build and hold the first report. All its counters are zero, even if steps have been counted already.

        A counter has to exist at zero before it rises: Prometheus does not see the first increase of a new series.
        """
        incarnation = self._account.incarnations[0]
        blank = Incarnation(incarnation.id, incarnation.at_start, incarnation.at_start)
        return self._hold(incarnation, blank, (), source, now)

    def build(self, source: Mapping[str, Any], now: float, *, heartbeat: bool) -> Report | None:
        """Build and hold the next report; None if there is nothing to report, or if too many are held.

        Args:
          source: the wire's `source`: host, platform, devices and versions.
          now: seconds since 1970.
          heartbeat: report the current incarnation even if nothing has changed.
        """
        incarnation = self._next() or (self._account.current if heartbeat else None)
        if incarnation is None or len(self.held) >= self._max_held:
            return None
        entries = tuple(self._account.backlog.take(incarnation, self._max_rows))
        return self._hold(incarnation, incarnation, entries, source, now)

    def acknowledge(self, incarnation: Incarnation, acknowledged: int) -> None:
        """Release the reports of `incarnation` up to the number that the exporter has acknowledged."""
        self.refused = False
        incarnation.maybe_stored = True
        incarnation.refusals = 0
        self._grow()
        for report in [r for r in self.held if r.incarnation is incarnation and r.seq <= acknowledged]:
            self._release(report)
        for old in self._account.incarnations[:-1]:
            if not (old.unreported or old.held or self._account.backlog.has(old)):
                self._account.incarnations.remove(old)

    def mark_uncertain(self, report: Report) -> None:
        """Note that the exporter may or may not have stored a report. It stays held, to be sent again."""
        report.incarnation.maybe_stored = True

    def give_up(self, report: Report, *, seq_is_taken: bool = False) -> None:
        """Release a report that the exporter refuses for good, and count its records as dropped.

        Its totals go into a later report. If another incarnation has something to report, that one is reported first,
        because the fault may be with this incarnation only.

        Args:
          report: the report.
          seq_is_taken: whether the exporter has stored another report under the same number.
        """
        self.refused = True
        self._withdraw(report, reuse_seq=not seq_is_taken)
        self._account.count_dropped(report.entries)
        report.incarnation.refusals += 1

    def shrink(self, report: Report) -> bool:
        """Release a report that is too large, and make the next ones smaller; False if it cannot be smaller.

        First fewer step records are sent in one report, then fewer parameters are named.
        """
        self._accepted = 0
        if len(report.entries) > 1:
            rows = sum(entry.record.weight for entry in report.entries)
            self._max_rows = max(1, min(self._max_rows, rows) // 2)
        elif report.named:
            self._max_parameters = report.named // 2
        else:
            return False
        self._withdraw(report, reuse_seq=True)
        self._account.count_dropped(self._account.backlog.put_back(report.entries))
        report.incarnation.diagnose(report.diagnoses)
        return True

    def _grow(self) -> None:
        """Allow larger reports again from time to time: the one that was too large may have been an exception.

        The number of parameters grows last, because `shrink` would cut step records first.
        """
        self._accepted += 1
        if self._accepted < _GROW_AFTER:
            return
        self._accepted = 0
        if self._max_rows < self._most_rows:
            self._max_rows = min(self._most_rows, 2 * self._max_rows)
        else:
            self._max_parameters = min(self._most_parameters, 2 * max(1, self._max_parameters))

    def _next(self) -> Incarnation | None:
        """The next incarnation to report: the oldest of those with the fewest refusals; None if there is none."""
        ready = (
            incarnation
            for incarnation in self._account.incarnations
            if incarnation.unreported or self._account.backlog.has(incarnation)
        )
        return min(ready, key=lambda incarnation: incarnation.refusals, default=None)

    def _hold(
        self,
        incarnation: Incarnation,
        shown: Incarnation,
        entries: tuple[Entry[Incarnation], ...],
        source: Mapping[str, Any],
        now: float,
    ) -> Report:
        """Build a report of `incarnation` with the counts of `shown`, and hold it."""
        incarnation.seq += 1
        incarnation.held += 1
        incarnation.unreported = _contents(incarnation) != _contents(shown)
        shown.seq = incarnation.seq
        body = encode(
            self._identity,
            shown,
            [entry.record for entry in entries],
            oldest_held=min([r.seq for r in self.held if r.incarnation is incarnation], default=incarnation.seq),
            source=source,
            sent_at=now,
            max_parameters=self._max_parameters,
        )
        counted = [shown.counted.parameters, *(entry.record.nonfinite_parameters.counts for entry in entries)]
        named = min(self._max_parameters, max(map(len, counted)))
        report = Report(incarnation, incarnation.seq, body, entries, named, shown.diagnoses)
        if shown is incarnation:
            incarnation.diagnoses = ()
        self.held.append(report)
        return report

    def _release(self, report: Report) -> None:
        self.held.remove(report)
        report.incarnation.held -= 1

    def _withdraw(self, report: Report, *, reuse_seq: bool) -> None:
        """Release a report that is not stored; its totals will be reported again."""
        self._release(report)
        incarnation = report.incarnation
        incarnation.unreported = True
        if reuse_seq and report.seq == incarnation.seq:
            # Otherwise the first report that the exporter stores would have oldest_held > 1. The exporter would
            # conclude that it had stored earlier reports and lost them, and would not count the steps before this one.
            incarnation.seq -= 1


def _contents(incarnation: Incarnation) -> tuple[object, ...]:
    dropped = incarnation.dropped_steps, incarnation.dropped_bad_steps
    return incarnation.state, incarnation.totals, incarnation.diagnoses, *dropped
