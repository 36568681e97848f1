"""The ledger: what is committed, folded, in memory. Pure: no input, no output, the clock is given.

Only the ingest's writer thread changes it, and only after the store has committed. Everything it answers may be asked
from any thread at any time; an answer is one consistent state, never a half of a report.
"""

import dataclasses
from collections.abc import Callable, Mapping

from optwrap_exporter.counts import Counts
from optwrap_exporter.wire import DroppedTotals, Gauges, Health, Page, ParameterRow, RunDetail, RunSummary, Source

Clock = Callable[[], float]
"""Seconds since 1970, as `time.time`."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessView:
    """One process of one run, as of now: all that a scrape needs. Times by the exporter's clock."""

    run: str
    process: int
    epoch: str
    attempt: str
    health: Health
    since: float
    """When that health began."""
    totals: Counts
    """Seen to run: monotonic."""
    state: Counts
    """What the optimizer's state says: absolute, may go back. `state.steps` is optwrap_state_steps."""
    parameters: Mapping[str, int]
    """Steps by metric label: the run's first ten parameters to go bad by their path, the sum of all others as "other".
    Only labels that exist; a path that happens to be "other" counts there."""
    dropped: DroppedTotals
    gauges: Gauges
    gradient_norm: float | None
    """The last finite one."""
    streak_peak: int
    """The longest streak of the last 5 minutes."""
    last_report: float
    last_step: float | None
    """None before this exporter saw the first."""
    last_gradient_step: float | None
    source: Source


class Ledger:
    """What is committed of every run.

    Args:
      clock: the exporter's clock; every time that the ledger answers is by it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def runs(self) -> list[str]:
        """Names of all runs, sorted."""
        raise NotImplementedError

    def views(self) -> list[ProcessView]:
        """Every process of every run, sorted by run and process."""
        raise NotImplementedError

    def lead(self, run: str) -> int | None:
        """The process that speaks for the run where all say the same: the lowest that reports in the newest attempt.

        None where the run is unknown.
        """
        raise NotImplementedError

    def has(self, run: str, process: int) -> bool:
        """Whether this process of this run has ever reported."""
        raise NotImplementedError

    def summary(self, run: str) -> RunSummary | None:
        """The run as GET /v1/runs lists it; None where it is unknown."""
        raise NotImplementedError

    def detail(self, run: str, most_parameters: int | None = None) -> RunDetail | None:
        """The run as GET /v1/runs/{run} answers it; None where it is unknown.

        Args:
          run: its name.
          most_parameters: at most so many of the worst parameters; all of them if None.
        """
        raise NotImplementedError

    def run_page(self, limit: int = 100, cursor: str | None = None) -> Page[RunSummary]:
        """Runs by name.

        Raises:
          CursorError: the cursor is not one of this list.
        """
        raise NotImplementedError

    def parameter_page(self, run: str, limit: int = 100, cursor: str | None = None) -> Page[ParameterRow] | None:
        """Parameters of the run, worst first: by steps, then values, then path. None where the run is unknown.

        Raises:
          CursorError: the cursor is not one of this list.
        """
        raise NotImplementedError
