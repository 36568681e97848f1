"""Counts steps for a `StopPolicy`. Pure: plain numbers in, a `Stop` out; no device, no clock, no I/O."""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from optwrap._reading.counters import GOOD_OUTCOMES, OUTCOMES, is_bad
from optwrap._stop.policy import StopPolicy
from optwrap._stop.stop import BadStep, Stop

MAX_BAD_STEPS: Final = 4096
"""Bad steps that are kept for a `Stop`."""

_BAD: Final = tuple(index for index, outcome in enumerate(OUTCOMES) if outcome not in GOOD_OUTCOMES)
_SKIPPED: Final = tuple(index for index, outcome in enumerate(OUTCOMES) if outcome.startswith("skipped"))
_ACCEPTED: Final = OUTCOMES.index("accepted_not_finite")


class Counts(NamedTuple):
    """The `Counters` of one reading that the decision needs, under their names, as Python integers."""

    outcomes: list[int]
    """Steps by outcome, in the order of OUTCOMES."""
    not_finite_steps: int
    not_finite_streak: int
    """Steps in a row with non-finite gradients, up to the last one."""
    not_finite_streak_peak: int
    """The largest value that the streak has had."""
    outcome: int
    """The last step's outcome, an index into OUTCOMES; -1 before the first step."""
    finite: bool
    """Whether the last step's gradients were finite."""

    @property
    def step(self) -> int:
        """The number of the last step."""
        return sum(self.outcomes)

    @property
    def is_bad(self) -> bool:
        """Whether the last step was a bad one; False before the first step."""
        return self.outcome >= 0 and is_bad(OUTCOMES[self.outcome], self.finite)

    def before_step(self) -> "Counts":
        """The counts just before the last step, with the streaks after it."""
        if self.outcome < 0:
            return self
        outcomes = list(self.outcomes)
        outcomes[self.outcome] -= 1
        return self._replace(outcomes=outcomes, not_finite_steps=self.not_finite_steps - (not self.finite))

    def continues(self, before: "Counts") -> bool:
        """Whether these can be the counts of a later step: there are more steps, and no count fell."""
        return (
            self.step > before.step
            and self.not_finite_steps >= before.not_finite_steps
            and all(now >= then for now, then in zip(self.outcomes, before.outcomes, strict=True))
        )


class _Trouble(NamedTuple):
    """Bad steps in a row."""

    clean: int
    """The last good step before them."""
    number: int
    """Number of bad steps before them."""


class Tally:
    """Counts the steps after the first reading. Counts that fall, because of a rollback, begin anew.

    Readings may be missing: their steps are known by the counters alone. A condition holds only if it is certain.

    Args:
      policy: when to stop.
    """

    def __init__(self, policy: StopPolicy) -> None:
        self._policy = policy
        self.stop: Stop | None = None
        """The decision so far. Once there is one, it stays until the counters fall."""
        self._start: Counts | None = None
        """The counts just before the first step."""
        self._last: Counts | None = None
        self._clean = 0
        """The last good step."""
        self._trouble: _Trouble | None = None
        """The bad steps up to now; None if the last step is good."""
        self._accepted: _Trouble | None = None
        """The trouble in which a non-finite value was accepted first."""
        self._bad: deque[tuple[int, BadStep]] = deque(maxlen=MAX_BAD_STEPS)
        """The last bad steps up to the first accepted one, by number."""
        self._bad_count = 0
        """Bad steps up to the first accepted one."""
        kept, _ = policy.skipped or (1, None)
        self._skips: deque[tuple[int, _Trouble]] = deque(maxlen=kept)
        """The last skipped steps, each with the trouble that it belongs to."""

    def add(self, now: Counts, bad_step: Callable[[], BadStep]) -> None:
        """Count one reading.

        Args:
          now: its counters.
          bad_step: describes its step; called only if that is a bad one.
        """
        last = self._last if self._last is not None and now.continues(self._last) else self._begin(now)
        self._last = now
        if self.stop is not None:
            return
        gap = now.step - last.step - (now.outcome >= 0)
        trouble = self._count_gap(last, now.before_step(), gap) if gap > 0 else None
        if now.is_bad:
            trouble = self._count_bad(now, bad_step)
        elif now.outcome >= 0:
            self._clean, self._trouble = now.step, None
        if trouble is not None:
            self._judge(last, now, trouble, gap)

    def _begin(self, now: Counts) -> Counts:
        """Begin with the step of a reading; returns the counts just before it."""
        start = now.before_step()
        self._start, self._clean, self._bad_count = start, start.step, 0
        self.stop = self._trouble = self._accepted = None
        self._bad.clear()
        self._skips.clear()
        return start

    def _enter(self) -> _Trouble:
        if self._trouble is None:
            self._trouble = _Trouble(self._clean, self._bad_count)
        return self._trouble

    def _count_bad(self, now: Counts, bad_step: Callable[[], BadStep]) -> _Trouble:
        """Count the step of a reading, a bad one."""
        trouble = self._enter()
        if self._accepted is None:
            self._bad.append((self._bad_count, bad_step()))
            self._bad_count += 1
        if now.outcome == _ACCEPTED and self._accepted is None:
            self._accepted = trouble
        if now.outcome in _SKIPPED:
            self._skips.append((now.step, trouble))
        return trouble

    def _count_gap(self, last: Counts, until: Counts, steps: int) -> _Trouble | None:
        """Count the steps after `last` whose readings are missing. They are known by their number alone."""
        rise = [now - then for now, then in zip(until.outcomes, last.outcomes, strict=True)]
        bad = max(sum(rise[index] for index in _BAD), until.not_finite_steps - last.not_finite_steps)
        if not bad:
            self._clean, self._trouble = last.step + steps, None
            return None
        trouble = self._enter()
        if self._accepted is None:
            self._bad_count += bad
        if rise[_ACCEPTED] and self._accepted is None:
            self._accepted = trouble
        # They were the first of these steps, or later ones: assume the first, so that no condition holds too early.
        skipped = sum(rise[index] for index in _SKIPPED)
        for i in range(max(0, skipped - (self._skips.maxlen or 0)), skipped):
            self._skips.append((last.step + 1 + i, trouble))
        return trouble

    def _judge(self, last: Counts, now: Counts, trouble: _Trouble, gap: int) -> None:
        """Stop if a condition holds now."""
        policy, start = self._policy, self._start
        assert start is not None
        taken = now.step - start.step
        streak = now.not_finite_streak
        if gap > 0 and now.not_finite_streak_peak > last.not_finite_streak_peak:
            streak = max(streak, now.not_finite_streak_peak)
        streak = min(streak, taken)
        accepted = now.outcomes[_ACCEPTED] - start.outcomes[_ACCEPTED]
        if policy.not_finite_streak is not None and streak >= policy.not_finite_streak:
            self._stop(now, trouble, f"not_finite_streak: {_steps(streak)} in a row had non-finite gradients")
        elif policy.accepted_not_finite is not None and accepted >= policy.accepted_not_finite:
            self._stop(now, trouble, f"accepted_not_finite: non-finite values were accepted in {_steps(accepted)}")
        elif policy.skipped is not None and self._skips:
            n, window = policy.skipped
            step, first = self._skips[0]
            if len(self._skips) == n and now.step - step < window:
                self._stop(now, first, f"skipped: {n} of the last {_steps(window)} were skipped")

    def _stop(self, now: Counts, trouble: _Trouble, reason: str) -> None:
        if self._accepted is not None and self._accepted.number <= trouble.number:
            trouble = self._accepted
        bad_steps = tuple(bad for number, bad in self._bad if number >= trouble.number)
        self.stop = Stop(
            reason=reason,
            step=now.step,
            first_bad_step=trouble.clean + 1,
            last_clean_step=trouble.clean,
            bad_steps=bad_steps,
            unlisted=self._bad_count - trouble.number - len(bad_steps),
        )


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
