"""The Prometheus collector of what the exporter tells about itself. `render` has processes and runs."""

import dataclasses
import platform
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client.core import InfoMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from optwrap_exporter.ingest.load import Load
from optwrap_exporter.ledger.ledger import MOST_SHOWN, Ledger
from optwrap_exporter.metrics.own import Statistics
from optwrap_exporter.metrics.table import METRICS
from optwrap_exporter.store.condition import CONDITIONS, Condition
from optwrap_exporter.wire.vocabulary import HEALTHS


@dataclasses.dataclass(frozen=True)
class StoreFigures:
    """The figures of the store that /metrics shows."""

    size: Callable[[], int]
    """Returns the bytes in use."""
    limit: int | None
    """The most bytes it may use; None if unlimited."""
    condition: Callable[[], Condition]
    """Returns its condition."""


class OwnCollector(Collector):
    """Yields the metric families of `table.METRICS` that describe the exporter, in that order.

    Args:
      ledger: the committed state of all runs.
      statistics: the exporter's counts of its own work.
      store: the figures of the store.
      load: how busy the exporter is.
      version: the exporter's version.
    """

    def __init__(
        self, ledger: Ledger, statistics: Statistics, store: StoreFigures, *, load: Load, version: str
    ) -> None:
        self._ledger = ledger
        self._statistics = statistics
        self._store = store
        self._load = load
        self._version = version

    def describe(self) -> Iterable[Family]:
        """No families, so that registering does not collect."""
        return []

    def collect(self) -> Iterable[Family]:
        """Every family. A family without values has no samples."""
        families = {metric.name: metric.family() for metric in METRICS if metric.labels[:1] != ("run",)}

        def add(name: str, value: float, *labels: str) -> None:
            # The value of an info family is its further labels, and there are none.
            family: Any = families[name]
            family.add_metric(labels, {} if isinstance(family, InfoMetricFamily) else value)

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
        add("optwrap_exporter_event_log_failures_total", self._statistics.event_log_failures)
        add("optwrap_exporter_webhook_failures_total", self._statistics.webhook_failures)
        runs = len(self._ledger.runs())
        add("optwrap_exporter_runs", runs)
        add("optwrap_exporter_hidden_runs", max(0, runs - MOST_SHOWN))
        add("optwrap_exporter_capacity_used_ratio", self._load.used_ratio)
        # Worst first in HEALTHS. A run has finished only when all of its processes have, so "finished" ranks lowest.
        for rank, health in enumerate(["finished", *(name for name in reversed(HEALTHS) if name != "finished")]):
            add("optwrap_exporter_health_rank", rank, health)
