"""Reads the observed readings for a `Tally`, in the thread that asks, and as late as the policy allows."""

import functools
from collections import deque
from collections.abc import Callable

import numpy as np

from optwrap._reading.counters import Words, fields, sizes_of
from optwrap._reading.replicas import nonfinite_replicas
from optwrap._reading.unpack import Layout, unpack
from optwrap._stop.policy import StopPolicy
from optwrap._stop.stop import BadStep, Stop
from optwrap._stop.tally import Counts, Tally


class Decision:
    """The decision of one Monitor.

    It holds at most `lag + 1` readings. Each is read once it is `lag` readings old, or at once after a stop. `observe`
    reads only if the loop observes several times between two calls of `decide`.

    Args:
      policy: when to stop.
      rows: reads an observed array, and waits for it: uint32[n, words], one row for each step.
    """

    def __init__(self, policy: StopPolicy, rows: Callable[[object], Words]) -> None:
        self.policy = policy
        self._rows = rows
        self._tally = Tally(policy)
        self._waiting: deque[object] = deque()
        self._error: Exception | None = None
        """What `observe` has kept for `decide` to raise."""
        self._layout: Layout | None = None
        self._last: bytes | None = None
        """The words of the last row."""
        self._head: bytes | None = None
        """The first words of the last readings, which say what made them: version, sizes and fingerprint."""

    def describe(self, layout: Layout, *, stepping: bool) -> None:
        """Receive the parameters' names, as `Observer.describe` does."""
        if stepping or self._layout is None:
            self._layout = layout

    def observe(self, observed: object) -> None:
        """Take a reading, possibly still being computed."""
        # The caller may reuse its array.
        self._waiting.append(observed.copy() if isinstance(observed, np.ndarray) else observed)
        if len(self._waiting) > self.policy.lag + 1:
            try:
                self._read(self._waiting.popleft())
            except Exception as error:
                self._error = error

    def decide(self) -> Stop | None:
        """Decide from all readings but the last `lag` ones; once there is a stop, from all readings.

        Raises:
          ValueError: one of them is no reading, or that of another instrumentation.
          Exception: JAX raises because the step that made it failed, or because it was donated.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        # After a stop the loop may have restored an older state, whose first reading ends the stop. If that reading had
        # to wait for `lag` further ones, the loop would be asked to restore `lag` times more.
        kept = self.policy.lag if self._tally.stop is None else 0
        while len(self._waiting) > kept:
            self._read(self._waiting.popleft())
        return self._tally.stop

    def _read(self, observed: object) -> None:
        words = self._new_rows(self._rows(observed))
        if not len(words):
            return
        layout = self._layout
        if (head := words[0, :4].tobytes()) != self._head:
            unpack(words[0], layout)  # raises if it is no reading, or not one of this instrumentation
            self._head = head
        columns = fields(words, sizes_of(words[0]), Counts._fields)
        counts = [Counts(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        steps = [one.step for one in counts]
        if steps != list(range(steps[0], steps[0] + len(steps))):
            raise ValueError(
                f"observe: got {len(steps)} rows of steps {', '.join(map(str, steps[:8]))}; allowed with a leading "
                "axis: consecutive steps (from lax.scan), or equal rows (from pmap)"
            )
        self._last = words[-1].tobytes()
        for row, one in zip(words, counts, strict=True):
            self._tally.add(one, functools.partial(_bad_step, row, layout, observed))

    def _new_rows(self, words: Words) -> Words:
        """The rows after the one that was counted last; all of them if it is not among them."""
        for i in range(len(words), 0, -1):
            if words[i - 1].tobytes() == self._last:
                return words[i:]
        return words


def _bad_step(words: Words, layout: Layout | None, observed: object) -> BadStep:
    reading = unpack(words, layout)
    replicas = None
    if reading.replica is not None and reading.replicas_not_finite:
        placed = layout.replicas if layout else None
        replicas = nonfinite_replicas(reading.replica, reading.replicas_not_finite, placed, observed)
    return BadStep(
        step=reading.step,
        outcome=str(reading.outcome),
        parameter=next(iter(reading.nonfinite_parameters or reading.largest_parameters), None),
        parameter_count=len(reading.nonfinite_parameters),
        replica=None if replicas is None else replicas.first,
        replica_count=0 if replicas is None else replicas.affected,
    )
