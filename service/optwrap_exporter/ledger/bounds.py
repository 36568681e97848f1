"""Refuses what no Monitor sends: a seq or totals that jump further than time allows. Limits new names. Pure.

A forged report could otherwise hide a live process behind a seq that it never reaches, or leave a total for ever. The
bounds are far above what training does. If a true report is refused all the same, time alone makes it acceptable.
"""

import dataclasses
from collections.abc import Callable
from typing import Final

from optwrap_exporter.ledger.state.incarnation import IncarnationState
from optwrap_exporter.wire.errors import FieldError
from optwrap_exporter.wire.requests import Report

SEQ_BURST: Final = 64
"""How far seq may jump at once. A Monitor holds at most 8 reports, and builds no others meanwhile."""
SEQ_RATE: Final = 20.0
"""How far seq may jump in addition, per second since the report with the highest seq."""
STEPS_BURST: Final = 10_000_000
"""How many steps one report may add at once: a jitted loop may take millions between two readings."""
STEPS_RATE: Final = 1e6
"""How many steps it may add in addition, per second since the steps last rose, by the client's clock."""
AWAY_SECONDS: Final = 2 * 86_400.0
"""How much longer than the exporter knows an incarnation the steps may have taken: it was away, or did not hear it."""


class ImplausibleError(FieldError):
    """A seq or a count is further from the last one than the time in between allows (HTTP 422)."""


def check(known: IncarnationState | None, report: Report, now: float) -> None:
    """Check a report that is not stored yet.

    Args:
      known: its incarnation before it; None if it is new.
      report: the report.
      now: the exporter's clock.

    Raises:
      ImplausibleError: no Monitor sends it.
    """
    if known is not None:
        most = known.highest_seq + SEQ_BURST + int(SEQ_RATE * max(0.0, now - known.latest_arrival))
        if report.seq > most:
            allowed = (
                f"at most {most}: the last one was {known.highest_seq}, and a Monitor counts its reports one by one"
            )
            raise ImplausibleError("seq", report.seq, allowed)
    steps = _steps_allowed(known, report, now)
    before = report.at_start.steps if known is None else known.totals.steps
    # What an exporter hears first with oldest_held above 1 is where it begins to count.
    if report.totals.steps > before + steps and (known is not None or report.oldest_held == 1):
        allowed = f"at most {before + steps}: {before} before, and {steps} in the time since"
        raise ImplausibleError("totals.steps", report.totals.steps, allowed)
    for name in ("steps", "bad_steps"):
        dropped, value = 0 if known is None else getattr(known.dropped, name), getattr(report.dropped, name)
        if value > dropped + steps:
            allowed = f"at most {dropped + steps}: {dropped} before, and {steps} steps in the time since"
            raise ImplausibleError(f"dropped.{name}", value, allowed)


def _steps_allowed(known: IncarnationState | None, report: Report, now: float) -> int:
    if known is None:
        seconds = AWAY_SECONDS
    else:
        by_client = report.sent_at - known.rose.sent_at
        seconds = max(0.0, min(by_client, max(0.0, now - known.rose.arrived) + AWAY_SECONDS))
    return STEPS_BURST + int(STEPS_RATE * seconds)


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """How many names the exporter takes."""

    new_runs: int = 300
    """New runs per minute."""
    incarnations: int | None = None
    """New runs are refused while it knows more incarnations than this. None: never."""


class Quota:
    """At most so many new names per minute; as many at once.

    Args:
      per_minute: how many.
      monotonic: a clock that never jumps.
    """

    def __init__(self, per_minute: int, monotonic: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._monotonic = monotonic
        self._left = float(per_minute)
        self._at = monotonic()

    def take(self) -> float:
        """Take one. Returns 0.0, or the seconds after which there is one again."""
        now = self._monotonic()
        self._left = min(self._per_minute, self._left + max(0.0, now - self._at) * self._per_minute / 60)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return 60 * (1 - self._left) / self._per_minute
