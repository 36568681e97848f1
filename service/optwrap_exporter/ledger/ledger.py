"""The ledger: what is committed, folded, in memory. No input, no output, the clock is given.

Only the ingest's writer thread changes it, and only after the store has committed: `plan` says what a report would make
of it, the store writes that, `apply` makes it so. States are values that are only ever replaced, so everything may be
asked from any thread at any time, and an answer is one consistent state, never a half of a report.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from optwrap_exporter.ledger import conflict as conflicts
from optwrap_exporter.ledger import events, ranges
from optwrap_exporter.ledger import views as answers
from optwrap_exporter.ledger.apply_report import fold, pass_time
from optwrap_exporter.ledger.counters import Replica
from optwrap_exporter.ledger.divergence import Said
from optwrap_exporter.ledger.events import Occurrence
from optwrap_exporter.ledger.health import of_run
from optwrap_exporter.ledger.incarnation import IncarnationState
from optwrap_exporter.ledger.run import ProcessState, RunState
from optwrap_exporter.ledger.views import ProcessView
from optwrap_exporter.wire.answers import Acknowledgement, Page, ParameterRow, RunDetail, RunSummary
from optwrap_exporter.wire.cursor import decode, encode
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import Health

__all__ = ["Clock", "Ledger", "Plan", "ProcessView"]

Clock = Callable[[], float]
"""Seconds since 1970, as `time.time`."""

LABELS: Final = 10
"""Parameters of a run that get a metric label of their own, and replicas."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a report, or time, will have changed once it is committed."""

    time: float
    run: RunState
    """With the process in it."""
    process: ProcessState
    occurrences: tuple[Occurrence, ...]
    report: Report | None = None
    """None where only time has passed."""
    before: IncarnationState | None = None
    """The report's incarnation as it was, if it was known."""
    records: bool = True
    """Whether there is room for its step records."""

    @property
    def incarnation(self) -> IncarnationState:
        """The report's incarnation as it will be; the process's current one where there is no report."""
        return self.process.incarnations[self.report.incarnation] if self.report else self.process.incarnation

    @property
    def scattered(self) -> bool:
        """Whether there are more gaps between the incarnation's reports than can be kept: it must not be committed."""
        return len(self.incarnation.received) > ranges.MOST

    def answer(self) -> Acknowledgement:
        """What the client will be told."""
        if self.report is None:
            raise ValueError("only a report is answered")
        return acknowledge(self.process, self.report)

    def without_records(self) -> "Plan":
        """The same where there is no room for step records: they are counted instead."""
        if self.report is None or not (len(self.report.steps) or self.report.offenders):
            return self
        incarnation = dataclasses.replace(
            self.incarnation, not_stored=self.incarnation.not_stored + len(self.report.steps)
        )
        process = dataclasses.replace(
            self.process, incarnations={**self.process.incarnations, incarnation.incarnation: incarnation}
        )
        run = dataclasses.replace(self.run, processes={**self.run.processes, process.process: process})
        return dataclasses.replace(self, run=run, process=process, records=False)


def acknowledge(process: ProcessState, report: Report, *, duplicate: bool = False) -> Acknowledgement:
    """The answer to a report that is in `process`: up to which seq the client may forget."""
    return Acknowledgement(
        acknowledged=ranges.up_to(process.incarnations[report.incarnation].received, report.oldest_held),
        duplicate=duplicate,
    )


class Ledger:
    """What is committed of every run.

    Args:
      clock: the exporter's clock; every time that the ledger answers is by it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listening = clock()
        self._runs: dict[str, RunState] = {}
        self._said = Said()

    # --- the writer's side ---

    def restore(self, runs: Iterable[RunState]) -> None:
        """Take over what a store remembers. A process that was not stale then has from now on to be heard again."""
        self._runs = {run.run: run for run in runs}
        self._listening = self._clock()

    def knows(self, report: Report) -> ProcessState | None:
        """The report's process if exactly this incarnation and seq is in it."""
        process = self._process(report.run, report.process)
        incarnation = process.incarnations.get(report.incarnation) if process else None
        return process if incarnation is not None and ranges.contains(incarnation.received, report.seq) else None

    def plan(self, report: Report) -> Plan:
        """What a report that is not known yet would change. Changes nothing."""
        now = self._clock()
        run = self._runs.get(report.run) or RunState(report.run, {})
        process = run.processes.get(report.process)
        before = process.incarnations.get(report.incarnation) if process else None
        folded = fold(process, report, now, self._listening)
        occurrences, after = folded.occurrences, folded.process
        if report.seq == folded.incarnation.highest:
            after, conflict = conflicts.judge(run, after, folded.incarnation, now)
            occurrences = [*occurrences, conflict] if conflict else occurrences
        if (found := self._said.disagreement(report, folded.incarnation.generation)) is not None:
            step, outcomes, steps = found
            occurrences = [*occurrences, events.of_divergence(report, step, outcomes, steps, now)]
        labels = run.labels
        if len(labels) < LABELS and (before is None or folded.incarnation.share.parameters != before.share.parameters):
            labels = _labels(labels, report, after)
        replicas = run.replica_labels
        if len(replicas) < LABELS and folded.incarnation.share.replicas:
            replicas = _replica_labels(replicas, report, after)
        return Plan(
            time=now,
            run=RunState(run.run, {**run.processes, report.process: after}, labels, replicas),
            process=after,
            occurrences=tuple(occurrences),
            report=report,
            before=before,
        )

    def pass_time(self) -> list[Plan]:
        """What time alone has brought since the last look. Changes nothing."""
        now = self._clock()
        found: list[Plan] = []
        for run in list(self._runs.values()):
            for index, process in run.processes.items():
                later, occurrences = pass_time(process, now, self._listening)
                if occurrences:
                    # Of the run as it will be with the plans before this one.
                    known = found[-1].run if found and found[-1].run.run == run.run else run
                    after = dataclasses.replace(known, processes={**known.processes, index: later})
                    found.append(Plan(now, after, later, tuple(occurrences)))
        return found

    def apply(self, plan: Plan) -> None:
        """Make it so: the store has committed it."""
        self._runs[plan.run.run] = plan.run
        if plan.report is not None:
            self._said.remember(plan.report, plan.incarnation.generation)

    def lose(self, lost: Mapping[tuple[str, int, str], int]) -> None:
        """Count step records that had to make room, by run, process and incarnation; the store has counted them, too."""
        for (name, index, of), count in lost.items():
            run = self._runs[name]
            process = run.processes[index]
            incarnation = dataclasses.replace(
                process.incarnations[of], not_stored=process.incarnations[of].not_stored + count
            )
            process = dataclasses.replace(process, incarnations={**process.incarnations, of: incarnation})
            self._runs[name] = dataclasses.replace(run, processes={**run.processes, index: process})

    def forget(self, run: str) -> None:
        """Forget a run that the store has forgotten."""
        self._runs.pop(run, None)
        self._said.forget(run)

    def idle(self, since: float) -> list[str]:
        """Runs of which nothing was heard after that time."""
        return [
            run.run
            for run in list(self._runs.values())
            if all(
                incarnation.last_report < since
                for process in run.processes.values()
                for incarnation in process.incarnations.values()
            )
        ]

    # --- everybody's side ---

    def runs(self) -> list[str]:
        """Names of all runs, sorted."""
        return sorted(self._runs)

    def views(self) -> list[ProcessView]:
        """Every process of every run, sorted by run and process."""
        now = self._clock()
        return [
            answers.view(run, process, now, self._listening)
            for _, run in sorted(self._runs.copy().items())
            for _, process in sorted(run.processes.items())
        ]

    def lead(self, run: str) -> int | None:
        """The process that speaks for the run where all say the same: the lowest that reports in the newest attempt.

        One that went silent, or ended, long before others does not. None where the run is unknown.
        """
        state = self._runs.get(run)
        return answers.lead(state, self._clock()).process if state else None

    def has(self, run: str, process: int) -> bool:
        """Whether this process of this run has ever reported."""
        return self._process(run, process) is not None

    def health(self, run: str) -> Health | None:
        """The run's health, without adding up what it has counted; None where it is unknown."""
        state = self._runs.get(run)
        return of_run(state, self._clock(), self._listening)[0] if state else None

    def summary(self, run: str) -> RunSummary | None:
        """The run as GET /v1/runs lists it; None where it is unknown."""
        state = self._runs.get(run)
        return answers.summary(state, self._clock(), self._listening) if state else None

    def detail(
        self, run: str, most_parameters: int | None = None, shown: answers.Shown | None = None
    ) -> RunDetail | None:
        """The run as GET /v1/runs/{run} answers it; None where it is unknown.

        Args:
          run: its name.
          most_parameters: at most so many of the worst parameters; all of them if None.
          shown: what the one who asks was told of the processes before, which is brought up to date: then only those of
            which it does not say the same.
        """
        state = self._runs.get(run)
        return answers.detail(state, self._clock(), self._listening, most_parameters, shown) if state else None

    def run_page(self, limit: int = 100, cursor: str | None = None) -> Page[RunSummary]:
        """Runs by name.

        Raises:
          CursorError: the cursor is not one of this list.
        """
        after = decode(_RUNS, cursor, (str,))[0] if cursor is not None else None
        names = [name for name in self.runs() if after is None or name > str(after)]
        found = [self.summary(name) for name in names[:limit]]
        items = [item for item in found if item is not None]  # forgotten meanwhile
        return Page(items=items, cursor=encode(_RUNS, [names[limit - 1]]) if len(names) > limit else None)

    def parameter_page(self, run: str, limit: int = 100, cursor: str | None = None) -> Page[ParameterRow] | None:
        """Parameters of the run, worst first: by steps, then values, then path. None where the run is unknown.

        Raises:
          CursorError: the cursor is not one of this list.
        """
        state = self._runs.get(run)
        of = f"parameters:{run}"
        after = decode(of, cursor, (int, int, str)) if cursor is not None else None
        if state is None:
            return None
        rows = answers.parameters(state)
        if after is not None:
            rows = [row for row in rows if answers.worst_first(row) > tuple(after)]
        more = encode(of, list(answers.worst_first(rows[limit - 1]))) if len(rows) > limit else None
        return Page(items=rows[:limit], cursor=more)

    def _process(self, run: str, process: int) -> ProcessState | None:
        state = self._runs.get(run)
        return state.processes.get(process) if state else None


_RUNS: Final = "runs"


def _replica_labels(labels: tuple[Replica, ...], report: Report, process: ProcessState) -> tuple[Replica, ...]:
    """With those that are the first to go bad for the first time: by step, as far as it is known."""
    first = [Replica(record.replica, record.process, record.device) for record in report.replicas]
    total = process.total.replicas
    fresh = [one for one in dict.fromkeys([*first, *total]) if one in total and one.number is not None]
    return (*labels, *(one for one in fresh if one not in labels))[:LABELS]


def _labels(labels: tuple[str, ...], report: Report, process: ProcessState) -> tuple[str, ...]:
    """With those that go bad for the first time: by step, and within it in the tree's order."""
    total = process.total.parameters
    first = [offender.parameter for offender in sorted(report.offenders, key=lambda offender: offender.step)]
    fresh = [path for path in dict.fromkeys([*first, *report.totals.parameters, *total]) if total.get(path)]
    return (*labels, *(path for path in fresh if path not in labels))[:LABELS]
