"""When to report next, as the exporter's answers and failures say."""

import dataclasses
import json
import math
import random
from collections.abc import Callable
from time import monotonic, sleep, time
from typing import Final

from optwrap._monitor.log import log
from optwrap._monitor.sending.transport import Answer
from optwrap._monitor.settings import Settings

MAX_BACKOFF: Final = 30.0
"""Longest time in seconds between two attempts to reach the exporter, unless its Retry-After is longer."""
_URGENT_AFTER: Final = 0.2
"""Shortest time in seconds between a report and an urgent one."""
_MAX_INTERVAL: Final = 3600.0
"""Longest interval that is followed, in seconds."""
_FORGET_AFTER: Final = 60.0
"""Seconds without an exporter after which the interval that it asked for is forgotten."""


@dataclasses.dataclass(frozen=True)
class Clock:
    """The time, and the jitter of retries; tests replace them."""

    time: Callable[[], float] = time
    """Returns seconds since 1970."""
    monotonic: Callable[[], float] = monotonic
    sleep: Callable[[float], None] = sleep
    jitter: Callable[[], float] = dataclasses.field(default_factory=lambda: random.Random().random)
    """Returns a number from 0 to 1. Its generator is its own, so the training program's random draws do not change."""


class Schedule:
    """When the next report is due. It logs when the exporter is lost, and when it is back.

    Args:
      settings: the Monitor's settings.
      clock: the time.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._due = clock.monotonic()
        """When the next report or the next retry is due."""
        self._sent = -math.inf
        self._blocked_until = self._due
        """No report is sent before this time, because of the exporter's Retry-After."""
        self.failures = 0
        """Attempts in a row without a usable answer."""
        self._lost_at: float | None = None
        """When the exporter was lost; None while it can be reached."""
        self._interval = settings.interval
        """Seconds between two reports: what the exporter asked for, and at least what the Monitor was set to."""

    @property
    def blocked(self) -> bool:
        """Whether no report may be sent now, because the exporter has asked for a pause."""
        return self._clock.monotonic() < self._blocked_until

    @property
    def seconds_left(self) -> float:
        """Seconds until the next report; negative if it is late."""
        return max(self._due, self._blocked_until) - self._clock.monotonic()

    def is_due(self, *, urgent: bool) -> bool:
        """Whether a report is due. An urgent one is due soon after the last, if the exporter answers."""
        now = self._clock.monotonic()
        return now >= self._due or (urgent and not self.failures and now >= self._sent + _URGENT_AFTER)

    def retry_now(self) -> None:
        """Make one attempt due at once, however long the exporter has been away."""
        self.failures = 0
        self._due = self._clock.monotonic()

    def postpone(self) -> None:
        """Make the next report due after the interval that was set."""
        self._due = self._clock.monotonic() + self._settings.interval

    def begin(self) -> None:
        """Note that a report is being sent."""
        self._sent = self._clock.monotonic()

    def sent_all(self) -> None:
        """Everything was sent: the next report is due an interval after the last began.

        With jitter, if the exporter has asked for fewer reports: it has many clients, and their reports must not all
        arrive together.
        """
        asked = self._interval != self._settings.interval
        self._due = self._sent + self._interval * (0.75 + 0.5 * self._clock.jitter() if asked else 1.0)

    def follow(self, answer: Answer) -> None:
        """Take the interval that an answer asks for. Anything but a number in range is ignored."""
        asked = json.loads(answer.body).get("interval")
        if (
            isinstance(asked, int | float)
            and not isinstance(asked, bool)
            and self._settings.interval <= asked <= _MAX_INTERVAL
        ):
            self._interval = float(asked)

    def failed(self, why: str, retry_after: float | None) -> None:
        """Schedule a retry; logs the first failure in a row."""
        now = self._clock.monotonic()
        # Full jitter: all processes of a job lose their exporter together, and must not all retry at once.
        self._due = now + self._clock.jitter() * min(MAX_BACKOFF, 2.0 ** min(self.failures, 10))
        self._blocked_until = now + (retry_after or 0.0)
        self.failures += 1
        if self._lost_at is None:
            self._lost_at = now
            log.warning(
                "optwrap: cannot report run %s to the exporter at %s (%s); training goes on, and counts are kept and "
                "sent later",
                self._settings.run,
                self._settings.endpoint.text,
                why,
            )

    def forget_if_long_lost(self) -> None:
        """Return to the interval that was set, if the exporter has been away for long."""
        if self._lost_at is not None and self._clock.monotonic() >= self._lost_at + _FORGET_AFTER:
            self._interval = self._settings.interval

    def reached(self) -> None:
        """Reset the backoff; logs that the exporter is back if it was lost."""
        self.failures = 0
        if self._lost_at is not None:
            away = self._clock.monotonic() - self._lost_at
            self._lost_at = None
            log.warning(
                "optwrap: the exporter at %s accepts reports of run %s again, after %.0f s",
                self._settings.endpoint.text,
                self._settings.run,
                away,
            )
