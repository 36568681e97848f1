"""The clocks of the ledger: one for what people read, and one for the age of data. No I/O; the clocks are passed in."""

import math
from collections.abc import Callable
from typing import Final

Clock = Callable[[], float]
"""Seconds since 1970, like `time.time`."""

LONGEST_RETRY: Final = 30.0
"""Seconds: the longest pause of a Monitor between two tries to reach the exporter."""
JUMP: Final = 2.0
"""Seconds: if the difference between two clocks has changed by more, one of them was set."""


class Clocks:
    """The time by which the ledger judges. Any thread may read it.

    Args:
      clock: the exporter's clock.
      monotonic: a clock in seconds that never jumps.
    """

    def __init__(self, clock: Clock, monotonic: Clock) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._ahead = clock() - monotonic()
        self._paused_at: float | None = None
        self.listening = clock()
        """No process turns stale because of its silence before this time. Infinite while `now` is paused."""
        self._aged = (clock(), monotonic())
        """The age and the monotonic clock at one moment."""

    def restart(self, newest: float | None) -> None:
        """Begin with the data of a store.

        Args:
          newest: the age clock when the newest data was received; None if there is none.
        """
        self.listening = self._clock()
        self._aged = (self._clock() if newest is None else newest, self._monotonic())

    def age(self) -> float:
        """Seconds by which data ages: they go on from the newest data stored, by the monotonic clock.

        Neither a clock that is set wrong nor the time while no exporter runs makes data older.
        """
        aged, then = self._aged
        return aged + self._monotonic() - then

    def now(self) -> float:
        """The exporter's clock, or when it was paused. If the clock was set, no process turns stale because of that."""
        if self._paused_at is not None:
            return self._paused_at
        now = self._clock()
        ahead = now - self._monotonic()
        if abs(ahead - self._ahead) > JUMP:
            self._ahead = ahead
            self.listening = now
        return now

    def hold(self) -> None:
        """Let no process turn stale for its silence until now, because reports were refused."""
        self.listening = self._clock()

    def pause(self) -> None:
        """Stop `now`, because reports cannot be stored: it is not the processes that are silent."""
        if self._paused_at is None:
            self._paused_at = self.now()
        self.listening = math.inf

    def resume(self) -> None:
        """Let `now` go on. Processes that were not stale have time to report first."""
        if self._paused_at is not None:
            self._paused_at = None
            self.listening = self._clock() + LONGEST_RETRY
