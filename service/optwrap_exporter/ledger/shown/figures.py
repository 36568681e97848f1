"""What /metrics shows of processes and runs: pure functions of their states and the time."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Final

from optwrap_exporter.ledger.change import health
from optwrap_exporter.ledger.change.apply_report import PEAK_SECONDS
from optwrap_exporter.ledger.state.counters import Counts, Replica
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.ledger.state.lost import Lost
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.wire.answers import DroppedTotals
from optwrap_exporter.wire.requests import Gauges, Source
from optwrap_exporter.wire.vocabulary import Health, Scope

OTHER: Final = "other"
"""The metric label that sums up all parameters without a label of their own. Replicas use it too."""
OTHER_REPLICAS: Final = Replica(None, None, None)
"""Stands for all replicas without labels of their own."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessView:
    """What a scrape needs of one process. Times by the exporter's clock."""

    run: str
    process: int
    incarnation: str
    attempt: str
    health: Health
    since: float
    """When that health began."""
    over: bool
    """Whether it sends no more reports, and nobody has to look: it finished, its end is acknowledged, or the run goes
    on without it. If the series of any other process went, its alert would resolve although nothing is."""
    acknowledged: bool
    """Whether somebody has acknowledged the incidents of its health."""
    totals: Counts
    """Counted over all attempts; never falls."""
    state: Counts
    """The counters of the optimizer's state now; falls after a rollback."""
    parameters: Mapping[str, int]
    """Steps by metric label: OTHER, then the first ten parameters of the run. A path "other" is added to OTHER."""
    replicas: Mapping[Replica, int]
    """Steps by replica: OTHER_REPLICAS, then the first ten replicas of the run."""
    dropped: DroppedTotals
    lost: Lost
    gauges: Gauges
    gradient_norm: float | None
    """The last finite gradient norm."""
    update_norm: float | None
    """The last finite norm of an applied update."""
    scalars: Mapping[str, float]
    """The last finite value of each scalar."""
    streak_peak: int
    """The longest streak of the last 5 minutes."""
    last_report: float
    last_step: float | None
    """None until this exporter has received a step."""
    last_gradient_step: float | None
    source: Source


@dataclasses.dataclass(frozen=True, slots=True)
class RunView:
    """What a scrape needs of one run. Times by the exporter's clock."""

    run: str
    health: Health
    expected: int
    """Number of processes of the job, as the job reports it."""
    reporting: int
    """Number of processes that report or have finished: not failed, stopped or stale."""
    live: int
    """Number of processes that report: not ended and not stale."""
    over: bool
    """Whether it has finished, or no process reports and its end is acknowledged."""
    last_report: float
    totals: Counts
    """Counted over all attempts, of the process with the most in each; never falls."""
    parameters: Mapping[str, int]
    """As in ProcessView."""
    dropped: DroppedTotals
    """Of all processes together."""
    attempts: int
    """Number of launches so far."""
    missing: int | None
    """Number of processes of the job that have not reported; None if the exporter does not expect all of them."""
    incidents: tuple[IncidentRecord, ...]
    """The live ones, by id."""
    acknowledged: bool
    """Whether somebody has acknowledged every incident of its health."""


def _labelled(run: RunState, total: Counts) -> dict[str, int]:
    """Steps by the parameters that have metric labels."""
    parameters = {OTHER: 0} | {label: total.parameters.get(label, 0) for label in run.labels}
    # Named counts may be older than the sum, or the sum older than they, if reports arrive out of order.
    parameters[OTHER] += max(total.parameter_steps, sum(total.parameters.values())) - sum(parameters.values())
    return parameters


def run_view(run: RunState, now: float, listening: float, scope: Scope) -> RunView:
    """What a scrape needs of one run."""
    members = health.judged(run, now, listening)
    current = health.of_run(run, members, scope).health
    processes = [one.process for one in members]
    silent = [process for process in processes if _silent(process, now, listening)]
    acknowledged = health.acknowledged(run, current)
    expected = health.process_count(processes)
    return RunView(
        run=run.run,
        health=current,
        expected=expected,
        reporting=len(processes) - sum(process.incarnation.state != "finished" for process in silent),
        live=len(processes) - len(silent),
        over=current == "finished" or (acknowledged and len(silent) == len(processes)),
        last_report=max(one.process.last_report for one in members),
        totals=run.total,
        parameters=_labelled(run, run.total),
        dropped=dropped(run.processes.values()),
        attempts=run.attempts_total,
        missing=max(0, expected - len(members)) if scope == "job" else None,
        incidents=run.incidents,
        acknowledged=acknowledged,
    )


def _silent(process: ProcessState, now: float, listening: float) -> bool:
    """Whether a process has ended or is stale. Its health may be worse than that."""
    return process.conditions.ended is not None or health.stale_since(process, now, listening) is not None


def view(run: RunState, process: ProcessState, now: float, listening: float, *, left: bool) -> ProcessView:
    """What a scrape needs of one process.

    Args:
      run: its run.
      process: the process.
      now: the exporter's clock.
      listening: when this exporter began to accept reports.
      left: whether the run goes on without it: it is not in `health.relevant`.
    """
    current = health.of_process(run, process, now, listening)
    acknowledged = health.acknowledged(run, current.health, process.process)
    settled = left or current.health == "finished" or acknowledged
    total = process.total
    replicas = {OTHER_REPLICAS: 0} | {label: total.replicas.get(label, 0) for label in run.replica_labels}
    replicas[OTHER_REPLICAS] += sum(total.replicas.values()) - sum(replicas.values())
    peaks = [peak.length for peak in process.peaks if peak.time > now - PEAK_SECONDS]
    return ProcessView(
        run=run.run,
        process=process.process,
        incarnation=process.current,
        attempt=process.incarnation.attempt,
        health=current.health,
        since=current.since,
        over=settled and _silent(process, now, listening),
        acknowledged=acknowledged,
        totals=total,
        state=process.incarnation.totals,
        parameters=_labelled(run, total),
        replicas=replicas,
        dropped=dropped([process]),
        lost=process.lost,
        gauges=process.gauges,
        gradient_norm=process.gradient_norm.value if process.gradient_norm is not None else None,
        update_norm=process.update_norm.value if process.update_norm is not None else None,
        scalars={name: seen.value for name, seen in process.scalars.items()},
        streak_peak=max([*peaks, process.gauges.not_finite_streak or 0]),
        last_report=process.last_report,
        last_step=process.last_step,
        last_gradient_step=process.last_gradient_step,
        source=process.source,
    )


def dropped(processes: Iterable[ProcessState]) -> DroppedTotals:
    """Step records that are missing, summed up."""
    parts = [part for process in processes for part in (process.earlier, *process.parts)]
    return DroppedTotals(
        steps=sum(part.dropped.steps for part in parts),
        bad_steps=sum(part.dropped.bad_steps for part in parts),
        not_stored=sum(part.not_stored for part in parts),
    )
