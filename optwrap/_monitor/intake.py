"""Moves readings from the inbox to the account, in the reporting thread, without waiting for a device."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import jax
import numpy as np

from optwrap._monitor.account import Account, Observation
from optwrap._monitor.log import LogOnce, origin
from optwrap._monitor.queue import Inbox, Item
from optwrap._reading.counters import Words
from optwrap._reading.replicas import NonfiniteReplicas, nonfinite_replicas
from optwrap._reading.scalars import ALLOWED, MAX_SCALARS, is_name, values_of
from optwrap._reading.unpack import Layout, Reading, unpack

_YIELD_EVERY: Final = 4
"""After this many readings the thread sleeps for 10 us, so that the training loop gets the interpreter lock.

`time.sleep(0)` is not enough: this thread would take the lock again before the waiting one wakes up, and keep it for
Python's switch interval of 5 ms."""


class Intake:
    """Reads the observed arrays in order, as soon as the device has computed them, and adds them to the account.

    While a step hangs on the device, later readings wait, but this thread does not: it goes on reporting, without new
    steps.

    Args:
      inbox: where readings come from.
      account: where they are counted.
      once: logs readings that could not be read.
      yield_: lets other threads run; called after every few readings.
    """

    def __init__(
        self, inbox: Inbox, account: Account, once: LogOnce, *, yield_: Callable[[], None] = lambda: time.sleep(1e-5)
    ) -> None:
        self._inbox = inbox
        self._account = account
        self._once = once
        self._yield = yield_
        self._head: Item | None = None
        """The oldest reading: taken out of the inbox, but not computed yet."""
        self._scalars = Scalars(once)
        self._last_number = 0
        self._last_time: float | None = None

    def drain(self) -> bool:
        """Count every reading that the device has computed; returns whether none is left."""
        while True:
            if self._head is None:
                self._head = self._next()
            if self._head is None:
                return True
            if not all(map(is_ready, (self._head.observed, *self._head.scalars.values()))):
                return False
            item, self._head = self._head, None
            evicted = item.number - self._last_number - 1
            self._last_number = item.number
            self._count(item, evicted)
            if item.number % _YIELD_EVERY == 0:
                self._yield()

    def abandon(self) -> None:
        """Count all waiting readings as dropped."""
        waiting = len(self._inbox.items) + (self._head is not None)
        self._account.abandon(waiting)

    def _next(self) -> Item | None:
        first = self._inbox.first
        if first is not None and not self._last_number:
            # Release the arrays, but keep the item: it shows that a reading was observed.
            self._inbox.first = first._replace(observed=None, scalars={})
            return first
        item = self._inbox.take()
        return self._inbox.take() if item is not None and item.number == 1 else item

    def _new_rows(self, words: Words) -> Words:
        """The rows after the row that was counted last; all rows if it is not among them."""
        for i in range(len(words), 0, -1):
            if self._account.repeats(words[i - 1].tobytes()):
                return words[i:]
        return words

    def _count(self, item: Item, evicted: int) -> None:
        layout = self._inbox.layout
        try:
            every = on_host(item.observed)
            rows = as_rows(every)
            words = self._new_rows(rows)
            if not len(words):
                return
            observed = math.prod(every.shape[:-1])
            scalars = self._scalars.columns(item.scalars, observed, replicas=len(rows) < observed)
            skipped = len(rows) - len(words)
            steps = read_steps(words, lambda row: unpack(row, layout), item.time, self._last_time)
            self._last_time = item.time
            for i, step in enumerate(steps):
                self._account.add(
                    Observation(
                        reading=self._with_scalars(
                            step.reading, {name: values[skipped + i] for name, values in scalars.items()}
                        ),
                        identity=step.words.tobytes(),
                        time=step.time,
                        layout=layout,
                        interpolated=step.interpolated,
                        nonfinite_replicas=_nonfinite_replicas(step.reading, layout, item.observed),
                        # An evicted reading is assumed to have had as many steps as this one.
                        lost=evicted * len(steps) if i == 0 else 0,
                    )
                )
        except Exception as error:
            # A ValueError is ours and a RuntimeError is JAX's; for any other log the traceback.
            unexpected = None if isinstance(error, ValueError | RuntimeError) else error
            self._once.warn(
                origin(error),
                "optwrap: a reading was ignored; further readings with this problem are ignored silently: %s",
                error,
                error=unexpected,
            )

    def _with_scalars(self, reading: Reading, observed: Mapping[str, float]) -> Reading:
        """The reading with the scalars that were observed with it."""
        if not (reading.scalars or observed):
            return reading
        # Observed ones first: they have the loss. An observed one replaces a hyperparameter of the same name.
        injected = {name: value for name, value in reading.scalars.items() if name not in observed}
        return dataclasses.replace(reading, scalars=self._scalars.admitted({**observed, **injected}))


class Scalars:
    """The scalars of one Monitor. What is not allowed is ignored, with one line in the log.

    Args:
      once: logs what is ignored.
    """

    def __init__(self, once: LogOnce) -> None:
        self._once = once
        self._names: dict[str, None] = {}
        """Every name so far, at most MAX_SCALARS."""

    def columns(self, scalars: Mapping[str, object], rows: int, *, replicas: bool) -> dict[str, list[float]]:
        """The values of each scalar, one for each step of the reading.

        Args:
          scalars: the arguments of `observe`.
          rows: the number of rows that the reading has.
          replicas: whether the rows are replicas of one step; then a scalar is their mean.
        """
        found = {}
        for name, value in scalars.items():
            try:
                if not is_name(name):
                    raise ValueError(f"scalar {name!r}: allowed: {ALLOWED}")
                values = values_of(name, value, rows)
            except Exception as error:  # JAX raises if the step failed, or if the array was donated
                self._once.warn("scalar", "optwrap: a scalar was ignored; further ones are ignored silently: %s", error)
                continue
            if self._admits(name):
                found[name] = [sum(values) / rows] if replicas else values
        return found

    def admitted(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        """The scalars whose names are within the limit."""
        return {name: value for name, value in scalars.items() if self._admits(name)}

    def _admits(self, name: str) -> bool:
        if name in self._names or len(self._names) < MAX_SCALARS:
            self._names[name] = None
            return True
        self._once.warn("scalars", "optwrap: the scalar %s is ignored; allowed: %s", name, ALLOWED)
        return False


class Step(NamedTuple):
    """One step of a block of steps that were observed at once."""

    reading: Reading
    words: Words
    time: float
    """Seconds since 1970."""
    interpolated: bool
    """Whether `time` is an estimate, as in a block of several steps."""


def is_ready(observed: object) -> bool:
    """Whether `on_host` can read `observed` without waiting for a device."""
    if isinstance(observed, jax.Array) and not isinstance(observed, jax.core.Tracer):
        # `is_ready` is not in jax.Array's interface, but all of JAX's arrays have it. On a deleted array it crashes
        # (jaxlib 0.10.2: a null pointer). Where the computation failed it may raise; `on_host` then raises, too.
        ready = getattr(observed, "is_ready", None)
        with contextlib.suppress(Exception):
            return ready is None or observed.is_deleted() or bool(ready())
    return True


def on_host(observed: object) -> Words:
    """A copy of `observed` in host memory, uint32[words] or uint32[n, words].

    Raises:
      ValueError: it is not a uint32 array of one or two axes.
      Exception: JAX raises because the step that made the array failed, or because its buffer was donated.
    """
    if isinstance(observed, jax.core.Tracer):
        raise ValueError(
            "observe: got a traced value; allowed: an array; return the reading from the jitted step, then observe it"
        )
    if not isinstance(observed, jax.Array | np.ndarray):
        raise ValueError(f"observe: got a {type(observed).__name__}; allowed: what optwrap.reading() returns")
    if observed.dtype != np.uint32 or observed.ndim not in (1, 2) or not observed.size:
        raise ValueError(
            f"observe: got {observed.dtype}{list(observed.shape)}; allowed: uint32[words], as optwrap.reading() "
            "returns it, or uint32[n, words]: n consecutive steps, or n replicas of one step"
        )
    if isinstance(observed, jax.Array):
        # device_get is an explicit transfer, which jax.transfer_guard("disallow") permits.
        if observed.is_fully_addressable or observed.is_fully_replicated:
            return np.array(jax.device_get(observed))
        # Each process holds some of the rows. They are replicas of one step; `read_steps` raises if they are not.
        parts = {str(shard.index): shard.data for shard in observed.addressable_shards}
        return np.concatenate([jax.device_get(part) for part in parts.values()])
    return observed


def as_rows(words: Words) -> Words:
    """One row for each step, uint32[n, words]: equal rows are replicas of one step (from pmap) and become one row."""
    if words.ndim == 1:
        return words[None]
    return words[:1] if (words == words[0]).all() else words


def read_steps(
    words: Words, unpack: Callable[[Words], Reading], time: float, previous_time: float | None
) -> list[Step]:
    """Unpack consecutive steps, and spread their times evenly since the previous reading.

    Args:
      words: uint32[n, words], one row for each step.
      unpack: reads one row.
      time: when the last of them was observed, in seconds since 1970.
      previous_time: when the reading before them was observed, in seconds since 1970.

    Raises:
      ValueError: the rows are not consecutive steps, or `unpack` raises.
    """
    if len(words) == 1:
        return [Step(unpack(words[0]), words[0], time, False)]
    found = [unpack(row) for row in words]
    steps = [reading.step for reading in found]
    if steps != list(range(steps[0], steps[0] + len(steps))):
        shown = ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
        raise ValueError(
            f"observe: got {len(steps)} rows of steps {shown}; allowed with a leading axis: consecutive steps "
            "(from lax.scan), or equal rows (from pmap)"
        )
    n = len(steps)
    since = time if previous_time is None else min(previous_time, time)
    return [
        Step(reading, row, since + (time - since) * (i + 1) / n, True)
        for i, (reading, row) in enumerate(zip(found, words, strict=True))
    ]


def _nonfinite_replicas(reading: Reading, layout: Layout | None, observed: object) -> NonfiniteReplicas | None:
    if reading.replica is None or not reading.replicas_not_finite:
        return None
    return nonfinite_replicas(
        reading.replica, reading.replicas_not_finite, layout.replicas if layout else None, observed
    )
