"""What /metrics shows of a process and of a run, and for how long: values and labels, without any text."""

import math
from typing import Final, Protocol

from optwrap_exporter.ledger.shown.figures import OTHER, OTHER_REPLICAS, ProcessView, RunView
from optwrap_exporter.ledger.state.counters import Replica
from optwrap_exporter.metrics.incidents import of_incidents
from optwrap_exporter.metrics.table import DROPPED, UNKNOWN
from optwrap_exporter.wire.vocabulary import HEALTHS, SKIP_REASONS

GAUGES_GO_AFTER: Final = 15 * 60.0
"""Seconds after its last report until the gauges of a process that is over disappear."""
COUNTERS_GO_AFTER: Final = 60 * 60.0
"""Seconds after its last report until its counters disappear. A late scrape must still see the last increase."""

# Metrics that show a gauge of the wire as it is, by the name of the metric.
_PLAIN_GAUGES: Final = {
    "optwrap_not_finite_streak": "not_finite_streak",
    "optwrap_guard_not_finite_count": "guard_not_finite_count",
    "optwrap_guard_not_finite_limit": "guard_not_finite_limit",
    "optwrap_accumulation_mini_step": "mini_step",
    "optwrap_accumulation_every_k": "every_k",
    "optwrap_gradient_norm_limit": "gradient_norm_limit",
    "optwrap_lookahead_steps_since_sync": "steps_since_sync",
    "optwrap_lookahead_sync_period": "sync_period",
}

# Counters that the wire has as gauges: absent where the optimizer has no skip_spikes.
_GUARD_COUNTERS: Final = {
    "optwrap_guard_rebases_total": "guard_rebases",
    "optwrap_guard_would_skip_steps_total": "guard_would_skip_steps",
}


class Add(Protocol):
    """Takes one sample."""

    def __call__(self, name: str, value: float, *labels: str) -> None:
        """Add a sample of the metric `name`. `labels` are those after `run`, or after `run` and `process`."""


def of_process(view: ProcessView, now: float, add: Add) -> None:
    """Add every sample of a process."""
    age = now - view.last_report if view.over else 0.0
    if age <= COUNTERS_GO_AFTER:
        _counters(view, add)
    if age <= GAUGES_GO_AFTER and not (view.over and view.acknowledged):
        _gauges(view, add)


def of_run(view: RunView, now: float, add: Add) -> None:
    """Add every sample of a run."""
    age = now - view.last_report if view.over else 0.0
    if age <= COUNTERS_GO_AFTER:
        _run_counters(view, add)
    if age > GAUGES_GO_AFTER or (view.over and view.acknowledged):
        return
    for health in HEALTHS:
        add("optwrap_run_health", float(health == view.health), health)
    add("optwrap_processes_expected", view.expected)
    add("optwrap_processes_reporting", view.reporting)
    if view.missing is not None:
        add("optwrap_processes_missing", view.missing)
    of_incidents(view.incidents, add)


def _run_counters(view: RunView, add: Add) -> None:
    totals = view.totals
    add("optwrap_run_steps_total", totals.steps)
    add("optwrap_run_gradient_steps_total", totals.gradient_steps)
    for outcome, reason in SKIP_REASONS.items():
        add("optwrap_run_skipped_steps_total", getattr(totals.outcomes, outcome), reason)
    add("optwrap_run_not_finite_steps_total", totals.not_finite_steps)
    add("optwrap_run_accepted_not_finite_steps_total", totals.outcomes.accepted_not_finite)
    for parameter, steps in view.parameters.items():
        add("optwrap_run_parameter_not_finite_steps_total", steps, parameter)
    for kind in DROPPED:
        add("optwrap_run_client_dropped_total", getattr(view.dropped, kind), kind)
    add("optwrap_attempts_total", view.attempts)


def _counters(view: ProcessView, add: Add) -> None:
    totals = view.totals
    add("optwrap_steps_total", totals.steps)
    add("optwrap_gradient_steps_total", totals.gradient_steps)
    for outcome, reason in SKIP_REASONS.items():
        add("optwrap_skipped_steps_total", getattr(totals.outcomes, outcome), reason)
    add("optwrap_not_finite_steps_total", totals.not_finite_steps)
    add("optwrap_accepted_not_finite_steps_total", totals.outcomes.accepted_not_finite)
    for kind in DROPPED:
        add("optwrap_client_dropped_total", getattr(view.dropped, kind), kind)
    for name, field in _GUARD_COUNTERS.items():
        if (count := getattr(view.gauges, field)) is not None:
            add(name, count)
    for why, steps in view.lost.steps.items():
        add("optwrap_lost_steps_total", steps, why)
    for why, seconds in view.lost.seconds.items():
        add("optwrap_lost_seconds_total", seconds or 0, why)  # the text of an integer is cached
    for parameter, steps in view.parameters.items():
        add("optwrap_parameter_not_finite_steps_total", steps, parameter)
    for replica, steps in view.replicas.items():
        add("optwrap_replica_not_finite_steps_total", steps, *_replica(replica))


def _replica(replica: Replica) -> tuple[str, str, str]:
    """The labels of a replica."""
    if replica == OTHER_REPLICAS:
        return OTHER, OTHER, OTHER
    process = UNKNOWN if replica.process is None else str(replica.process)
    return str(replica.number), process, replica.device or UNKNOWN


def _gauges(view: ProcessView, add: Add) -> None:
    def gauge(name: str, value: float | None) -> None:
        # An absent value has no series: a zero would be wrong, and a NaN would spoil every average.
        if value is not None and math.isfinite(value):
            add(name, value)

    for name, field in _PLAIN_GAUGES.items():
        gauge(name, getattr(view.gauges, field))
    gauge("optwrap_not_finite_streak_peak", view.streak_peak)
    gauge("optwrap_gradient_norm", view.gradient_norm)
    gauge("optwrap_update_norm", view.update_norm)
    for scalar, value in view.scalars.items():
        add("optwrap_scalar", value, scalar)
    gauge("optwrap_state_steps", view.state.steps)
    gauge("optwrap_last_report_timestamp_seconds", view.last_report)
    gauge("optwrap_last_step_timestamp_seconds", view.last_step)
    gauge("optwrap_last_gradient_step_timestamp_seconds", view.last_gradient_step)
    source = view.source
    add(
        "optwrap_process_info",
        1,
        source.host,
        source.platform,
        source.device_kind,
        source.jax_version,
        source.optwrap_version,
    )
    gauge("optwrap_process_count", source.process_count)
    add("optwrap_process_health", 1, view.health)
