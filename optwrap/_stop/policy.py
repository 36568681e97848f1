"""`StopPolicy`: when a training should stop."""

import dataclasses
import operator
from typing import Any, Final

MAX_LAG: Final = 1024
_MAX_STEPS: Final = 2**31 - 1
_CONDITIONS: Final = ("not_finite_streak", "accepted_not_finite", "skipped")


@dataclasses.dataclass(frozen=True)
class StopPolicy:
    """When `Monitor.should_stop` returns a `Stop`. At least one condition has to be given.

    Only steps after the first reading that the Monitor observed count, so a resumed training does not stop because of
    what its counters already had.

    Args:
      not_finite_streak: stop once this many steps in a row had non-finite gradients.
      accepted_not_finite: stop once a non-finite value has reached the inner optimizer in this many steps (outcome
        `accepted_not_finite`). After the first one the parameters are usually lost.
      skipped: `(n, window)`: stop once `n` of the last `window` steps were skipped, for whatever reason.
      lag: how many readings the decision is behind, from 0 to 1024. `should_stop` decides from all readings but the
        last `lag` ones, so it does not wait for a step unless the loop is more than `lag` readings ahead of the device.
        With 0 it waits for the last step.

    Raises:
      TypeError: an argument is not an integer, or `skipped` is no pair of integers.
      ValueError: an argument is out of range, or no condition is given.
    """

    not_finite_streak: int | None = None
    accepted_not_finite: int | None = None
    skipped: tuple[int, int] | None = None
    lag: int = 8

    def __post_init__(self) -> None:
        def keep(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if all(getattr(self, name) is None for name in _CONDITIONS):
            raise ValueError(
                f"StopPolicy: got no condition; allowed: at least one of {', '.join(_CONDITIONS)}; leave out the "
                "Monitor's stop if the training should never stop"
            )
        for name in ("not_finite_streak", "accepted_not_finite"):
            if getattr(self, name) is not None:
                keep(name, _integer(name, getattr(self, name), 1, _MAX_STEPS))
        if self.skipped is not None:
            pair: Any = self.skipped
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise TypeError(f"StopPolicy: skipped is {pair!r}; allowed: (n, window), such as (5, 100)")
            window = _integer("skipped's window", pair[1], 1, _MAX_STEPS)
            keep("skipped", (_integer("skipped's n", pair[0], 1, window), window))
        keep("lag", _integer("lag", self.lag, 0, MAX_LAG))


def _integer(name: str, value: Any, least: int, most: int) -> int:
    """The value as a Python integer; any Python index will do, such as a numpy integer, but a bool is a mistake."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"StopPolicy: {name} is {value!r}; allowed: an integer from {least} to {most}")
    if not least <= number <= most:
        raise ValueError(f"StopPolicy: {name} is {number}; allowed: an integer from {least} to {most}")
    return number
