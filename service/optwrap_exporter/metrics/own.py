"""The exporter's counts of its own work: in memory, since its start."""

import bisect
import threading
from collections.abc import Mapping
from typing import Final

from optwrap_exporter.metrics.table import REPORT_OUTCOMES

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the scrape duration buckets in seconds, without `+Inf`."""


class Statistics:
    """Counts of reports, scrapes and failures; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes = dict.fromkeys(REPORT_OUTCOMES, 0)
        self._scrapes = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0
        self._log_failures = 0
        self._webhook_failures = 0

    def report(self, outcome: str) -> None:
        """Count a report by its outcome, one of `table.REPORT_OUTCOMES`."""
        with self._lock:
            self._outcomes[outcome] += 1

    def scrape(self, seconds: float) -> None:
        """Count a scrape and its duration."""
        with self._lock:
            self._scrapes[bisect.bisect_left(BUCKETS, seconds)] += 1
            self._seconds += seconds

    def event_log_failed(self) -> None:
        """Count a write of the event log that failed."""
        with self._lock:
            self._log_failures += 1

    @property
    def event_log_failures(self) -> int:
        """Number of writes of the event log that failed."""
        return self._log_failures

    def webhook_failed(self) -> None:
        """Count a message to the webhook that was given up."""
        with self._lock:
            self._webhook_failures += 1

    @property
    def webhook_failures(self) -> int:
        """Number of messages to the webhook that were given up."""
        return self._webhook_failures

    def reports(self) -> Mapping[str, int]:
        """Number of reports by outcome, zeros included."""
        with self._lock:
            return dict(self._outcomes)

    def scrapes(self) -> tuple[list[tuple[str, float]], float]:
        """Scrape durations as a Prometheus histogram: cumulative buckets, `+Inf` last, and the sum in seconds."""
        with self._lock:
            counts, total = list(self._scrapes), self._seconds
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), counts, strict=True):
            below += count
            buckets.append((bound, below))
        return buckets, total
