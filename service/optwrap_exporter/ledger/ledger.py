"""The ledger: everything committed about every run, in memory. No I/O; the clock is passed in.

Only the ingest's writer thread changes it, and only after the store has committed, but for a clock that was set back
(`pass_time`): `plan` computes what a report would change, `stage` lets the next plan see that, the store writes them
all at once, and `adopt` shows them to the readers. States are immutable, so any thread may read at any time.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from optwrap_exporter.ledger import bounds, ranges
from optwrap_exporter.ledger.bounds import Limits, Quota
from optwrap_exporter.ledger.change import health
from optwrap_exporter.ledger.change.apply_report import apply_report, merge, pass_time
from optwrap_exporter.ledger.change.divergence import StepOutcomes
from optwrap_exporter.ledger.clocks import JUMP, Clock, Clocks
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.incidents import plans
from optwrap_exporter.ledger.incidents.divergence import voters
from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.ledger.shown import figures, labels, run_list, views
from optwrap_exporter.ledger.shown.figures import ProcessView, RunView
from optwrap_exporter.ledger.shown.views import Shown, Verdict
from optwrap_exporter.ledger.state.compaction import NOTHING_COMPACTED
from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.wire.answers import ANSWER_BYTES, Page, ParameterRow, RunDetail, RunSummary
from optwrap_exporter.wire.cursor import decode, encode
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import Health, Scope

MOST_SHOWN: Final = 1000
"""The most runs in /metrics."""
NEW_PROCESSES: Final = 10_000
"""The most new processes of known runs per minute."""
_PAGE_BYTES: Final = ANSWER_BYTES - 10_000
"""The most bytes of the items of a page, without the cursor."""


class Ledger:
    """Everything committed about every run.

    Args:
      clock: the exporter's clock. Every time in an answer is of this clock.
      monotonic: a clock in seconds that never jumps. By default the same clock.
      limits: how many names it takes.
      scope: what it hears: with "job" a process that has not reported is missing.
    """

    def __init__(
        self,
        clock: Clock,
        monotonic: Clock | None = None,
        limits: Limits | None = None,
        scope: Scope = "host",
    ) -> None:
        self.clocks = Clocks(clock, monotonic or clock)
        self._scope = scope
        self._limits = limits or Limits()
        self._new_runs = Quota(self._limits.new_runs, monotonic or clock)
        self._new_processes = Quota(NEW_PROCESSES, monotonic or clock)
        self._incarnations = 0
        self._staged_incarnations = 0
        self._runs: dict[str, RunState] = {}
        self._staged: dict[str, RunState] = {}
        """Runs as they will be once the store has committed what is staged. Readers do not see them."""
        self._outcomes = StepOutcomes()
        self._next_incident = 1

    # --- the writer's side ---

    def restore(self, runs: Iterable[RunState], newest: float | None = None, last_incident: int = 0) -> None:
        """Adopt the runs of a store. Processes that were not stale become stale only after `stale_after` from now.

        Args:
          runs: the runs.
          newest: the age clock at the newest change in the store; None if there is none.
          last_incident: the largest id that an incident in the store has had.
        """
        self._runs = {run.run: run for run in runs}
        parts = [part for run in self._runs.values() for process in run.processes.values() for part in process.parts]
        self._incarnations = _incarnations(self._runs.values())
        known = (one.id for run in self._runs.values() for one in (*run.incidents, *run.past_incidents))
        self._next_incident = max([last_incident, *known]) + 1
        ages = [part.aged_at for part in parts] + ([] if newest is None else [newest])
        self.clocks.restart(max(ages, default=None))

    def admit(self, report: Report) -> float:
        """Check what only a forged report can have wrong, and the number of new names.

        Args:
          report: a report that is not stored yet.

        Returns:
          0.0, or the seconds after which the report may be sent again, because there are too many new names.

        Raises:
          ImplausibleError: its seq or a count jumps too far.
        """
        process, known = self.known(report)
        bounds.check(known, report, self.clocks.now())
        if self._latest(report.run) is None:
            most = self._limits.incarnations
            return 60.0 if most is not None and self._incarnations >= most else self._new_runs.take()
        return 0.0 if process is not None else self._new_processes.take()

    def known(self, report: Report) -> tuple[ProcessState | None, IncarnationState | None]:
        """The report's process and its incarnation, with what is staged; None for what has not reported yet."""
        run = self._latest(report.run)
        process = run.processes.get(report.process) if run else None
        return process, process.incarnations.get(report.incarnation) if process else None

    def find(self, report: Report) -> ProcessState | None:
        """The report's process if the report, by incarnation and seq, is already in it or staged; None otherwise."""
        process, incarnation = self.known(report)
        if incarnation is None:  # a late report of a compacted incarnation changes nothing
            return process if process is not None and report.incarnation in process.compacted_ids else None
        return process if ranges.contains(incarnation.received, report.seq) else None

    def plan(self, report: Report, asked: float = 0.0) -> Plan:
        """What a new report would change after all that is staged. Changes nothing itself.

        Args:
          report: the report.
          asked: the interval in seconds that the answer asks for, if it is longer than the report's.
        """
        now, age, listening = self.clocks.now(), self.clocks.age(), self.clocks.listening
        run = self._latest(report.run) or RunState(report.run, {})
        process = run.processes.get(report.process)
        before = process.incarnations.get(report.incarnation) if process is not None else None
        merged = merge(process, report, now, age)
        compared = self._outcomes.compare(report, merged.incarnation.generation, lambda: voters(run, report, now))
        after, events = apply_report(run, merged, report, asked=asked, now=now, listening=listening)
        after, compaction = after.compact(report.incarnation, now) if before is None else (after, NOTHING_COMPACTED)
        plan = Plan(
            time=age,
            run=run.with_process(
                after,
                labels=labels.with_parameters(run.labels, report, after),
                replica_labels=labels.with_replicas(run.replica_labels, report, after),
                past=run.past_with(after, compaction.left) if compaction.left else run.past,
            ),
            process=after,
            events=tuple(events),
            report=report,
            before=before,
            compared=compared,
            compaction=compaction,
        )
        return plans.of_report(plan, in_order=merged.followed is not None, now=now, next_id=self._next_incident)

    def pass_time(self) -> list[Plan]:
        """What time alone has changed since the last call. Itself it only sets `last_report` back with the clock."""
        now, age = self.clocks.now(), self.clocks.age()
        found: list[Plan] = []
        next_incident = self._next_incident
        for run in list(self._runs.values()):
            after = run
            of_run: list[Plan] = []
            for known in run.processes.values():
                process = known
                if process.last_report > now + JUMP:  # the clock was set back
                    process = evolved(process, last_report=now)
                    after = self._runs[run.run] = after.with_process(process)
                if not health.changes(process, now, self.clocks.listening):
                    continue
                later, events = pass_time(after, process, now, self.clocks.listening)
                if events:
                    after = after.with_process(later)
                    of_run.append(Plan(age, after, later, tuple(events)))
            of_run = plans.of_time(after, of_run, now, age, next_incident)
            next_incident = max([next_incident, *(one.id + 1 for plan in of_run for one in plan.incidents)])
            found += of_run
        return found

    def acknowledge(self, run: str, incident: IncidentRecord) -> Plan:
        """What changes if somebody acknowledges an incident of a run. Changes nothing itself."""
        return plans.acknowledge(self._runs[run], incident, self.clocks.now(), self.clocks.age())

    def archive(self, run: str, archived: bool) -> Plan | None:
        """What changes if somebody hides a run, or shows it again; None if it is unknown. Changes nothing itself."""
        state = self._runs.get(run)
        return None if state is None else plans.of_run(evolved(state, archived=archived), self.clocks.age())

    def reporting(self) -> int:
        """The number of processes that have neither ended nor become stale."""
        return sum(
            process.conditions.ended is None and process.conditions.stale is None
            for run in list(self._runs.values())
            for process in run.processes.values()
        )

    def stage(self, plan: Plan) -> None:
        """Let later plans see this one. Readers see it after `adopt`."""
        self._staged[plan.run.run] = plan.run
        if plan.report is not None:
            self._staged_incarnations += (plan.before is None) - len(plan.compaction.compacted)
            self._outcomes.stage(plan.report, plan.incarnation.generation, plan.compared)
        self._next_incident = max([self._next_incident, *(one.id + 1 for one in plan.incidents)])

    def adopt(self) -> None:
        """Show the readers what is staged, which the store has committed."""
        self._runs.update(self._staged)
        self._staged.clear()
        self._incarnations += self._staged_incarnations
        self._staged_incarnations = 0
        self._outcomes.adopt()

    def discard(self) -> None:
        """Forget what is staged, because the store could not commit it."""
        self._staged.clear()
        self._staged_incarnations = 0
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
        gone = self._runs.pop(run, None)
        if gone is not None:
            self._incarnations -= _incarnations([gone])
        self._outcomes.forget(run)

    def idle(self, since: float) -> list[str]:
        """Runs from which no report arrived at or after that time, by the clock that data ages by."""
        return [
            run.run
            for run in list(self._runs.values())
            if all(part.aged_at < since for process in run.processes.values() for part in process.parts)
        ]

    # --- the readers' side, from any thread ---

    def runs(self) -> list[str]:
        """Names of all runs, sorted."""
        return sorted(self._runs)

    def shown(self) -> list[RunState]:
        """The runs that /metrics shows, by name: at most MOST_SHOWN, those that report first, the older first."""
        return sorted(views.chosen(self._runs.copy().values(), MOST_SHOWN), key=lambda run: run.run)

    def process_views(self) -> Iterator[ProcessView]:
        """Every process of the runs that are shown, sorted by run and process, computed one by one."""
        now = self.clocks.now()
        for run in self.shown():
            members = {process.process for process in health.relevant(run, now)}
            for index, process in sorted(run.processes.items()):
                yield figures.view(run, process, now, self.clocks.listening, left=index not in members)

    def views(self) -> list[ProcessView]:
        """`process_views` as a list."""
        return list(self.process_views())

    def run_views(self) -> Iterator[RunView]:
        """The runs that are shown as they are now, by name, computed one by one."""
        now = self.clocks.now()
        for run in self.shown():
            yield figures.run_view(run, now, self.clocks.listening, self._scope)

    def lead(self, run: str) -> int | None:
        """The process whose gauges the run shows (`views.lead`); None if the run is unknown."""
        state = self._runs.get(run)
        return views.lead(state, self.clocks.now()).process if state else None

    def has(self, run: str, process: int) -> bool:
        """Whether this process of this run has ever reported."""
        state = self._runs.get(run)
        return state is not None and process in state.processes

    def health(self, run: str) -> Health | None:
        """The run's health, without computing its totals; None if the run is unknown."""
        found = self.verdict(run)
        return found[0] if found is not None else None

    def verdict(self, run: str) -> Verdict | None:
        """The verdict on the run, without computing its totals; None if the run is unknown."""
        state = self._runs.get(run)
        return views.verdict(state, self.clocks.now(), self.clocks.listening, self._scope) if state else None

    def summary(self, run: str) -> RunSummary | None:
        """The run as GET /v1/runs lists it; None if the run is unknown."""
        state = self._runs.get(run)
        return views.summary(state, self.clocks.now(), self.clocks.listening, self._scope) if state else None

    def detail(self, run: str, most_parameters: int | None = None, shown: Shown | None = None) -> RunDetail | None:
        """The answer of GET /v1/runs/{run}; None if the run is unknown.

        Args:
          run: its name.
          most_parameters: how many of the worst parameters to include; None includes all.
          shown: the process rows that the caller was shown last. If given, only other rows are included, and `shown` is
            updated.
        """
        state = self._runs.get(run)
        if state is None:
            return None
        now, listening = self.clocks.now(), self.clocks.listening
        return views.detail(state, now, listening, self._scope, most_parameters=most_parameters, shown=shown)

    def run_page(
        self, chosen: run_list.RunFilter = run_list.EVERY_RUN, *, limit: int = 100, cursor: str | None = None
    ) -> Page[RunSummary]:
        """The runs that a filter chooses, in its order.

        Raises:
          CursorError: the cursor belongs to another list.
        """
        now, listening = self.clocks.now(), self.clocks.listening
        return run_list.page(
            self._runs.copy().values(), chosen, now, listening, self._scope, limit=limit, cursor=cursor
        )

    def parameter_page(self, run: str, limit: int = 100, cursor: str | None = None) -> Page[ParameterRow] | None:
        """Parameters of the run, worst first: by non-finite steps, non-finite values, path. None if it is unknown.

        A page has at most `limit` of them, and at most ANSWER_BYTES.

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
        items, _ = views.fitting(rows[:limit], _PAGE_BYTES)
        more = encode(of, list(views.worst_first(items[-1]))) if len(rows) > len(items) else None
        return Page(items=items, cursor=more)

    def _latest(self, run: str) -> RunState | None:
        """The run with what is staged."""
        return self._staged.get(run) or self._runs.get(run)


def _incarnations(runs: Iterable[RunState]) -> int:
    """The number of incarnations that are kept one by one."""
    return sum(len(process.incarnations) for run in runs for process in run.processes.values())
