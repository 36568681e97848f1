"""Measures what a report costs the exporter, and derives how often each process should report.

The capacity is the number of reports per second that would take all of one core, or all of the writer's time if the
disk is slower. The exporter asks for half of it. The rest is for bursts, scrapes and queries.
"""

import math
import random
import time
from collections.abc import Callable
from typing import Final

TARGET: Final = 0.5
"""The part of the capacity that the exporter asks for."""
LONGEST_INTERVAL: Final = 3600.0
"""The longest interval that is asked for, in seconds."""
_LONGEST_RETRY: Final = 5.0
"""The longest Retry-After in seconds: half of the shortest time after which a process is stale."""
_DECAY_SECONDS: Final = 10.0
"""Older measurements count less: after this time by a factor of e."""
_PRIOR_REPORTS: Final = 50.0
_PRIOR_SECONDS: Final = 0.001
"""The measurements begin as if this many reports had cost this many seconds each."""


class Load:
    """What the exporter has to do and what it can do. `interval` and `retry_after` may be read from any thread.

    Args:
      cpu: the CPU seconds of this process.
      monotonic: seconds.
      random: returns a number from 0 to 1.
    """

    def __init__(
        self,
        *,
        cpu: Callable[[], float] = time.process_time,
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._cpu = cpu
        self._monotonic = monotonic
        self._random = random
        self._at = (monotonic(), cpu())
        self._committed = self._refused = 0
        """Reports since the last measurement."""
        self._busy = 0.0
        """Seconds since the last measurement in which the writer was busy with reports."""
        self._seconds = self._demand = self._reports = self._cpu_seconds = self._busy_seconds = 0.0
        self._processes = 0
        self.interval = 0.0
        """Seconds between two reports of a process that the exporter asks for; 0 if it can take any number."""

    def committed(self, reports: int, busy: float) -> None:
        """Count reports, and the seconds in which the writer was busy with them. For the writer's thread only."""
        self._committed += reports
        self._busy += busy

    def refused(self) -> None:
        """Count a report that was refused because too many are waiting. For the event loop only."""
        self._refused += 1

    def joined(self) -> None:
        """Count a process that reports for the first time, before the next measurement."""
        self._processes += 1
        self._ask()

    def measure(self, processes: int) -> int:
        """Take stock of the time since the last call. Returns the number of reports that were refused in it.

        Args:
          processes: the number of processes that report.
        """
        now, cpu = self._monotonic(), self._cpu()
        seconds, used = now - self._at[0], cpu - self._at[1]
        if seconds <= 0:
            return 0
        reports, refused, busy = self._committed, self._refused, self._busy
        self._at = (now, cpu)
        self._committed = self._refused = 0
        self._busy = 0.0
        kept = math.exp(-seconds / _DECAY_SECONDS)
        self._seconds = kept * self._seconds + seconds
        self._demand = kept * self._demand + reports + refused
        if reports:
            self._reports = kept * self._reports + reports
            self._cpu_seconds = kept * self._cpu_seconds + used
            self._busy_seconds = kept * self._busy_seconds + busy
        self._processes = processes
        self._ask()
        return refused

    @property
    def capacity(self) -> float:
        """Reports per second that the exporter can take."""
        seconds = max(self._cpu_seconds, self._busy_seconds) + _PRIOR_REPORTS * _PRIOR_SECONDS
        return (self._reports + _PRIOR_REPORTS) / seconds

    @property
    def used_ratio(self) -> float:
        """Reports that arrived, refused ones included, as a part of the capacity; above 1 if there are too many."""
        return self._demand / self._seconds / self.capacity if self._seconds else 0.0

    def retry_after(self) -> int:
        """Seconds after which a refused client may try again. Random, so that they do not all come back together."""
        return 1 + int(self._random() * min(self.interval, _LONGEST_RETRY - 1))

    def _ask(self) -> None:
        self.interval = min(self._processes / (TARGET * self.capacity), LONGEST_INTERVAL)
