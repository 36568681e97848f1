"""The Prometheus collector: builds every metric of the table at scrape time from the ledger."""

import dataclasses
import math
import platform
from collections.abc import Callable, Iterable
from typing import Any, Final

from prometheus_client.core import InfoMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from optwrap_exporter.ledger.clocks import Clock
from optwrap_exporter.ledger.counters import Replica
from optwrap_exporter.ledger.ledger import MOST_SHOWN, Ledger
from optwrap_exporter.ledger.views import OTHER, OTHER_REPLICAS, ProcessView
from optwrap_exporter.load import Load
from optwrap_exporter.metrics.own import Statistics
from optwrap_exporter.metrics.table import DROPPED, METRICS, UNKNOWN
from optwrap_exporter.store.condition import CONDITIONS, Condition
from optwrap_exporter.wire.vocabulary import HEALTHS, SKIP_REASONS

GAUGES_GO_AFTER: Final = 15 * 60.0
"""Seconds after its last report until the gauges of an ended or stale process disappear."""
COUNTERS_GO_AFTER: Final = 60 * 60.0
"""Seconds after its last report until its counters disappear. A late scrape must still see the last increase."""

_ENDED: Final = frozenset({"finished", "failed", "stale"})

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


@dataclasses.dataclass(frozen=True)
class StoreFigures:
    """The figures of the store that /metrics shows."""

    size: Callable[[], int]
    """Returns the bytes in use."""
    limit: int | None
    """The most bytes it may use; None if unlimited."""
    condition: Callable[[], Condition]
    """Returns its condition."""


class OptwrapCollector(Collector):
    """Yields the metric families of `table.METRICS`, in that order.

    Args:
      ledger: the committed state of all runs.
      statistics: the exporter's counts of its own work.
      store: the figures of the store.
      load: how busy the exporter is.
      clock: the exporter's clock.
      version: the exporter's version.
    """

    def __init__(
        self,
        ledger: Ledger,
        statistics: Statistics,
        store: StoreFigures,
        *,
        load: Load,
        clock: Clock,
        version: str,
    ) -> None:
        self._ledger = ledger
        self._statistics = statistics
        self._store = store
        self._load = load
        self._clock = clock
        self._version = version

    def describe(self) -> Iterable[Family]:
        """No families, so that registering does not collect."""
        return []

    def collect(self) -> Iterable[Family]:
        """Every family. A family without values has no samples."""
        families = {metric.name: metric.family() for metric in METRICS}

        def add(name: str, value: float, *labels: str) -> None:
            # The value of an info family is its further labels, and there are none.
            family: Any = families[name]
            family.add_metric(labels, {} if isinstance(family, InfoMetricFamily) else value)

        now = self._clock()
        views = self._ledger.views()
        for view in views:
            age = now - view.last_report if view.health in _ENDED else 0.0
            if age <= COUNTERS_GO_AFTER:
                _add_counters(view, add)
            if age <= GAUGES_GO_AFTER:
                _add_gauges(view, add)
        self._add_own(families, add)
        return families.values()

    def _add_own(self, families: dict[str, Any], add: Callable[..., None]) -> None:
        add("optwrap_exporter_build_info", 1, self._version, platform.python_version())
        for outcome, count in self._statistics.reports().items():
            add("optwrap_exporter_reports_total", count, outcome)
        add("optwrap_exporter_store_bytes", self._store.size())
        if self._store.limit is not None:
            add("optwrap_exporter_store_limit_bytes", self._store.limit)
        now = self._store.condition()
        add("optwrap_exporter_store_healthy", now == "ok")
        for condition in CONDITIONS:
            add("optwrap_exporter_store_condition", now == condition, condition)
        buckets, seconds = self._statistics.scrapes()
        families["optwrap_exporter_scrape_duration_seconds"].add_metric((), buckets, seconds)
        runs = len(self._ledger.runs())
        add("optwrap_exporter_runs", runs)
        add("optwrap_exporter_hidden_runs", max(0, runs - MOST_SHOWN))
        add("optwrap_exporter_capacity_used_ratio", self._load.used_ratio)


def _add_counters(view: ProcessView, add: Callable[..., None]) -> None:
    run, process, totals = view.run, str(view.process), view.totals
    add("optwrap_steps_total", totals.steps, run, process)
    add("optwrap_gradient_steps_total", totals.gradient_steps, run, process)
    for outcome, reason in SKIP_REASONS.items():
        add("optwrap_skipped_steps_total", getattr(totals.outcomes, outcome), run, process, reason)
    add("optwrap_not_finite_steps_total", totals.not_finite_steps, run, process)
    add("optwrap_accepted_not_finite_steps_total", totals.outcomes.accepted_not_finite, run, process)
    for kind in DROPPED:
        add("optwrap_client_dropped_total", getattr(view.dropped, kind), run, process, kind)
    for parameter, steps in view.parameters.items():
        add("optwrap_parameter_not_finite_steps_total", steps, run, process, parameter)
    for replica, steps in view.replicas.items():
        add("optwrap_replica_not_finite_steps_total", steps, run, process, *_replica(replica))


def _replica(replica: Replica) -> tuple[str, str, str]:
    """The labels of a replica."""
    if replica == OTHER_REPLICAS:
        return OTHER, OTHER, OTHER
    process = UNKNOWN if replica.process is None else str(replica.process)
    return str(replica.number), process, replica.device or UNKNOWN


def _add_gauges(view: ProcessView, add: Callable[..., None]) -> None:
    run, process = view.run, str(view.process)

    def gauge(name: str, value: float | None) -> None:
        # An absent value has no series: a zero would be wrong, and a NaN would spoil every average.
        if value is not None and math.isfinite(value):
            add(name, value, run, process)

    for name, field in _PLAIN_GAUGES.items():
        gauge(name, getattr(view.gauges, field))
    gauge("optwrap_not_finite_streak_peak", view.streak_peak)
    gauge("optwrap_gradient_norm", view.gradient_norm)
    gauge("optwrap_state_steps", view.state.steps)
    gauge("optwrap_last_report_timestamp_seconds", view.last_report)
    gauge("optwrap_last_step_timestamp_seconds", view.last_step)
    gauge("optwrap_last_gradient_step_timestamp_seconds", view.last_gradient_step)
    source = view.source
    described = (source.host, source.platform, source.device_kind, source.jax_version, source.optwrap_version)
    add("optwrap_process_info", 1, run, process, *described)
    gauge("optwrap_process_count", view.source.process_count)
    for health in HEALTHS:
        add("optwrap_process_health", float(health == view.health), run, process, health)
