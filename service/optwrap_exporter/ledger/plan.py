"""What a report, or time alone, changes once it is committed, and the answer to the report."""

import dataclasses

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.change.divergence import Compared
from optwrap_exporter.ledger.change.events import NewEvent
from optwrap_exporter.ledger.state.compaction import NOTHING_COMPACTED, Compaction
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.wire.answers import Acknowledgement
from optwrap_exporter.wire.requests import Report


@dataclasses.dataclass(frozen=True)  # without slots, for `evolved`
class Plan:
    """What a report, or time alone, changes once it is committed."""

    time: float
    """By the clock that data ages by."""
    run: RunState
    """The run after the change."""
    process: ProcessState
    """The process after the change."""
    events: tuple[NewEvent, ...]
    report: Report | None = None
    """None if only time has passed."""
    before: IncarnationState | None = None
    """The report's incarnation before the report; None if it is new."""
    records: bool = True
    """Whether the report's step records are stored."""
    not_stored: int = 0
    """How many step records are not."""
    incidents: tuple[IncidentRecord, ...] = ()
    """The incidents that are new or have changed."""
    compared: Compared | None = None
    """What the comparison with other processes found."""
    compaction: Compaction = NOTHING_COMPACTED
    """What is no longer kept one by one, because the report's incarnation is new."""

    @property
    def incarnation(self) -> IncarnationState:
        """The report's incarnation after the report; without a report the current incarnation."""
        return self.process.incarnations[self.report.incarnation] if self.report else self.process.incarnation

    @property
    def too_many_gaps(self) -> bool:
        """Whether the received seqs have too many gaps. If so, the plan must not be committed."""
        return len(self.incarnation.received) > ranges.MOST

    def answer(self) -> Acknowledgement:
        """The answer to the report."""
        if self.report is None:
            raise ValueError("this plan has no report to answer")
        return acknowledge(self.process, self.report)

    def without_records(self) -> "Plan":
        """The plan without the report's step records, which are counted as not stored."""
        if self.report is None or not (len(self.report.steps) or self.report.offenders):
            return self
        records = len(self.report.steps)
        run = self.run.with_not_stored(self.report.process, self.report.incarnation, records)
        process = run.processes[self.report.process]
        return dataclasses.replace(self, run=run, process=process, records=False, not_stored=records)


def acknowledge(process: ProcessState, report: Report, *, duplicate: bool = False) -> Acknowledgement:
    """The answer to a report. `process` must include the report, or have compacted its incarnation."""
    if report.incarnation in process.compacted_ids:
        return Acknowledgement(acknowledged=report.seq, interval=process.interval, duplicate=duplicate)
    received = process.incarnations[report.incarnation].received
    acknowledged = ranges.end_of_contiguous(received, report.oldest_held)
    return Acknowledgement(acknowledged=acknowledged, interval=process.interval, duplicate=duplicate)
