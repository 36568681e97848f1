"""The ledger: everything committed about every run, in memory. No I/O; the clock is passed in.

Only the ingest's writer thread changes it, and only after the store has committed: `plan` computes what a report would
change, `stage` lets the next plan see that, the store writes them all at once, and `adopt` shows them to the readers.
States are immutable, so any thread may read at any time and never sees half a report.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from optwrap_exporter.ledger import health, ranges, views
from optwrap_exporter.ledger.apply_report import apply_report, merge, pass_time
from optwrap_exporter.ledger.counters import Replica
from optwrap_exporter.ledger.divergence import StepOutcomes
from optwrap_exporter.ledger.events import NewEvent
from optwrap_exporter.ledger.incarnation import IncarnationState
from optwrap_exporter.ledger.run import ProcessState, RunState
from optwrap_exporter.ledger.views import ProcessView, Shown
from optwrap_exporter.wire.answers import Acknowledgement, Page, ParameterRow, RunDetail, RunSummary
from optwrap_exporter.wire.cursor import decode, encode
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import Health

Clock = Callable[[], float]
"""Seconds since 1970, like `time.time`."""

LABELS: Final = 10
"""The number of parameters of a run, and of replicas, that get metric labels of their own."""

_RUNS: Final = "runs"
"""The name of the list of runs in cursors."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a report, or time alone, changes once it is committed."""

    time: float
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
        run = self.run.with_not_stored(self.report.process, self.report.incarnation, len(self.report.steps))
        return dataclasses.replace(self, run=run, process=run.processes[self.report.process], records=False)


def acknowledge(process: ProcessState, report: Report, *, duplicate: bool = False) -> Acknowledgement:
    """The answer to a report. `process` must include the report."""
    received = process.incarnations[report.incarnation].received
    acknowledged = ranges.end_of_run(received, report.oldest_held)
    return Acknowledgement(acknowledged=acknowledged, interval=process.interval, duplicate=duplicate)


class Ledger:
    """Everything committed about every run.

    Args:
      clock: the exporter's clock. Every time in an answer is of this clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listening = clock()
        self._runs: dict[str, RunState] = {}
        self._staged: dict[str, RunState] = {}
        """Runs as they will be once the store has committed what is staged. Readers do not see them."""
        self._outcomes = StepOutcomes()

    # --- the writer's side ---

    def restore(self, runs: Iterable[RunState]) -> None:
        """Adopt the runs of a store. Processes that were not stale become stale only after `stale_after` from now."""
        self._runs = {run.run: run for run in runs}
        self._listening = self._clock()

    def find(self, report: Report) -> ProcessState | None:
        """The report's process if the report, by incarnation and seq, is already in it or staged; None otherwise."""
        run = self._latest(report.run)
        process = run.processes.get(report.process) if run else None
        incarnation = process.incarnations.get(report.incarnation) if process else None
        return process if incarnation is not None and ranges.contains(incarnation.received, report.seq) else None

    def plan(self, report: Report, asked: float = 0.0) -> Plan:
        """What a new report would change after all that is staged. Changes nothing itself.

        Args:
          report: the report.
          asked: the interval in seconds that the answer asks for, if it is longer than the report's.
        """
        now = self._clock()
        run = self._latest(report.run) or RunState(report.run, {})
        process = run.processes.get(report.process)
        before = process.incarnations.get(report.incarnation) if process is not None else None
        merged = merge(process, report, now)
        disagreement = self._outcomes.disagreement(report, merged.incarnation.generation)
        after, events = apply_report(run, merged, report, disagreement, asked=asked, now=now, listening=self._listening)
        return Plan(
            time=now,
            run=run.with_process(
                after,
                labels=_labels(run.labels, report, before, after),
                replica_labels=_replica_labels(run.replica_labels, report, after),
            ),
            process=after,
            events=tuple(events),
            report=report,
            before=before,
        )

    def pass_time(self) -> list[Plan]:
        """What time alone has changed since the last call. Changes nothing itself."""
        now = self._clock()
        plans: list[Plan] = []
        for run in list(self._runs.values()):
            after = run
            for process in run.processes.values():
                if not health.changes(process, now, self._listening):
                    continue
                later, events = pass_time(process, now, self._listening)
                if events:
                    after = after.with_process(later)
                    plans.append(Plan(now, after, later, tuple(events)))
        return plans

    def reporting(self) -> int:
        """The number of processes that have neither ended nor become stale."""
        return sum(
            process.conditions.ended is None and process.conditions.stale is None
            for run in list(self._runs.values())
            for process in run.processes.values()
        )

    def hold_staleness(self) -> None:
        """Let no process become stale until `stale_after` from now: this exporter has refused reports."""
        self._listening = self._clock()

    def stage(self, plan: Plan) -> None:
        """Let later plans see this one. Readers see it after `adopt`."""
        self._staged[plan.run.run] = plan.run
        if plan.report is not None:
            self._outcomes.stage(plan.report, plan.incarnation.generation)

    def adopt(self) -> None:
        """Show the readers what is staged, which the store has committed."""
        self._runs.update(self._staged)
        self._staged.clear()
        self._outcomes.adopt()

    def discard(self) -> None:
        """Forget what is staged, because the store could not commit it."""
        self._staged.clear()
        self._outcomes.discard()

    def apply(self, plan: Plan) -> None:
        """Adopt a single plan that the store has committed."""
        self.stage(plan)
        self.adopt()

    def count_not_stored(self, lost: Mapping[tuple[str, int, str], int]) -> None:
        """Count step records that the store has dropped, by run, process and incarnation."""
        for (name, process, incarnation), records in lost.items():
            self._runs[name] = self._runs[name].with_not_stored(process, incarnation, records)

    def forget(self, run: str) -> None:
        """Forget a run that the store has deleted."""
        self._runs.pop(run, None)
        self._outcomes.forget(run)

    def idle(self, since: float) -> list[str]:
        """Runs from which no report arrived at or after that time."""
        return [
            run.run
            for run in list(self._runs.values())
            if all(
                incarnation.last_report < since
                for process in run.processes.values()
                for incarnation in process.incarnations.values()
            )
        ]

    # --- the readers' side, from any thread ---

    def runs(self) -> list[str]:
        """Names of all runs, sorted."""
        return sorted(self._runs)

    def views(self) -> list[ProcessView]:
        """Every process of every run, sorted by run and process."""
        now = self._clock()
        return [
            views.view(run, process, now, self._listening)
            for _, run in sorted(self._runs.copy().items())
            for _, process in sorted(run.processes.items())
        ]

    def lead(self, run: str) -> int | None:
        """The process whose gauges the run shows (`views.lead`); None if the run is unknown."""
        state = self._runs.get(run)
        return views.lead(state, self._clock()).process if state else None

    def has(self, run: str, process: int) -> bool:
        """Whether this process of this run has ever reported."""
        return self._process(run, process) is not None

    def health(self, run: str) -> Health | None:
        """The run's health, without computing its totals; None if the run is unknown."""
        state = self._runs.get(run)
        return health.of_run(state, self._clock(), self._listening).health if state else None

    def summary(self, run: str) -> RunSummary | None:
        """The run as GET /v1/runs lists it; None if the run is unknown."""
        state = self._runs.get(run)
        return views.summary(state, self._clock(), self._listening) if state else None

    def detail(self, run: str, most_parameters: int | None = None, shown: Shown | None = None) -> RunDetail | None:
        """The answer of GET /v1/runs/{run}; None if the run is unknown.

        Args:
          run: its name.
          most_parameters: how many of the worst parameters to include; None includes all.
          shown: the process rows that the caller was shown last. If given, only other rows are included, and `shown` is
            updated.
        """
        state = self._runs.get(run)
        return views.detail(state, self._clock(), self._listening, most_parameters, shown) if state else None

    def run_page(self, limit: int = 100, cursor: str | None = None) -> Page[RunSummary]:
        """Runs by name.

        Raises:
          CursorError: the cursor belongs to another list.
        """
        after = decode(_RUNS, cursor, (str,))[0] if cursor is not None else None
        names = [name for name in self.runs() if after is None or name > str(after)]
        found = [self.summary(name) for name in names[:limit]]
        items = [item for item in found if item is not None]  # a run may have been forgotten meanwhile
        return Page(items=items, cursor=encode(_RUNS, [names[limit - 1]]) if len(names) > limit else None)

    def parameter_page(self, run: str, limit: int = 100, cursor: str | None = None) -> Page[ParameterRow] | None:
        """Parameters of the run, worst first: by steps, then values, then path. None if the run is unknown.

        Raises:
          CursorError: the cursor belongs to another list.
        """
        state = self._runs.get(run)
        of = f"parameters:{run}"
        after = decode(of, cursor, (int, int, str)) if cursor is not None else None
        if state is None:
            return None
        rows = views.parameters(state)
        if after is not None:
            rows = [row for row in rows if views.worst_first(row) > tuple(after)]
        more = encode(of, list(views.worst_first(rows[limit - 1]))) if len(rows) > limit else None
        return Page(items=rows[:limit], cursor=more)

    def _latest(self, run: str) -> RunState | None:
        """The run with what is staged."""
        return self._staged.get(run) or self._runs.get(run)

    def _process(self, run: str, process: int) -> ProcessState | None:
        state = self._runs.get(run)
        return state.processes.get(process) if state else None


def _labels(
    labels: tuple[str, ...], report: Report, before: IncarnationState | None, process: ProcessState
) -> tuple[str, ...]:
    """The labels with newly non-finite parameters: by step, and within a step in the tree's order."""
    share = process.incarnations[report.incarnation].share
    if len(labels) == LABELS or (before is not None and share.parameters == before.share.parameters):
        return labels
    total = process.total.parameters
    first = [offender.parameter for offender in sorted(report.offenders, key=lambda offender: offender.step)]
    fresh = [path for path in dict.fromkeys([*first, *report.totals.parameters, *total]) if total.get(path)]
    return (*labels, *(path for path in fresh if path not in labels))[:LABELS]


def _replica_labels(labels: tuple[Replica, ...], report: Report, process: ProcessState) -> tuple[Replica, ...]:
    """The labels with replicas that are newly the first non-finite one: by step, as far as it is known."""
    if len(labels) == LABELS or not process.incarnations[report.incarnation].share.replicas:
        return labels
    first = [Replica(record.replica, record.process, record.device) for record in report.replicas]
    total = process.total.replicas
    fresh = [one for one in dict.fromkeys([*first, *total]) if one in total and one.number is not None]
    return (*labels, *(one for one in fresh if one not in labels))[:LABELS]
