"""Moves readings from the inbox to the account, in the reporting thread, without waiting for a device."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from optwrap._monitor.account import Account, Observation, before_step
from optwrap._monitor.local.callback import Caller
from optwrap._monitor.local.record import StepRecord
from optwrap._monitor.log import LogOnce, origin
from optwrap._monitor.queue import Inbox, Item
from optwrap._monitor.scalars import Scalars
from optwrap._monitor.settings import Settings
from optwrap._reading.counters import Words
from optwrap._reading.replicas import NonfiniteReplicas, nonfinite_replicas
from optwrap._reading.rows import (
    Values,
    as_members,
    is_ready,
    mean_by_step,
    on_host,
    read_steps,
    rows_by_step,
    steps_in,
)
from optwrap._reading.unpack import Layout, Reading, unpack

_YIELD_EVERY: Final = 4
"""After this many readings the thread sleeps for 10 us, so that the training loop gets the interpreter lock.

`time.sleep(0)` is not enough: this thread would take the lock again before the waiting one wakes up, and keep it for
Python's switch interval of 5 ms."""


class Part(NamedTuple):
    """What was observed of one optimizer: all, or one member of an ensemble."""

    words: Words
    """uint32[..., words]."""
    scalars: Mapping[str, Values]
    """By name, float64[rows]: one value for each row of `words`."""


class Intake:
    """Reads the observed arrays in order, as soon as the device has computed them, and adds them to the accounts.

    While a step hangs on the device, later readings wait, but this thread does not: it goes on reporting, without new
    steps.

    Args:
      settings: the Monitor's settings. With `members`, the first axis of a reading is that of the accounts.
      inbox: where readings come from.
      accounts: where they are counted: one, or one for each member.
      once: logs readings that could not be read.
      caller: gets the record of each counted step; None if nobody asked for them.
      yield_: lets other threads run; called after every few readings.
    """

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox,
        accounts: Sequence[Account],
        once: LogOnce,
        *,
        caller: Caller | None = None,
        yield_: Callable[[], None] = lambda: time.sleep(1e-5),
    ) -> None:
        self._settings = settings
        self._inbox = inbox
        self._accounts = accounts
        self._once = once
        self._caller = caller
        self._yield = yield_
        self._head: Item | None = None
        """The oldest reading: taken out of the inbox, but not computed yet."""
        self._scalars = Scalars()
        self._last_number = 0
        self._last_time: float | None = None

    def drain(self) -> bool:
        """Count every reading that the device has computed; returns whether none is left."""
        while self._inbox.diagnoses:
            number, diagnosis = self._inbox.diagnoses.popleft()
            self._accounts[number].current.diagnose([diagnosis])
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
        for account in self._accounts:
            account.abandon(waiting)

    def _next(self) -> Item | None:
        first = self._inbox.first
        if first is not None and not self._last_number:
            # Release the arrays, but keep the item: it shows that a reading was observed.
            self._inbox.first = first._replace(observed=None, scalars={})
            return first
        item = self._inbox.take()
        return self._inbox.take() if item is not None and item.number == 1 else item

    def _count(self, item: Item, evicted: int) -> None:
        observed = item.observed
        try:
            observed = on_host(observed)
            parts = [observed] if self._settings.members is None else as_members(observed, self._settings.members)
            scalars = self._scalars.values(item.scalars, math.prod(observed.shape[:-1]))
        except Exception as error:
            self._refuse(error, observed, self._accounts, evicted)
            return
        for number, (account, words) in enumerate(zip(self._accounts, parts, strict=True)):
            try:
                mine = {name: values.reshape(len(parts), -1)[number] for name, values in scalars.items()}
                self._add(account, self._settings.run_of(number), Part(words, mine), item, evicted)
            except Exception as error:
                self._refuse(error, words, [account], evicted)
        self._last_time = item.time

    def _add(self, account: Account, run: str, part: Part, item: Item, evicted: int) -> None:
        layout = self._inbox.layout
        rows, step_of = rows_by_step(part.words)
        words = new_rows(rows, account)
        if not len(words):
            return
        skipped = len(rows) - len(words)
        means = {name: mean_by_step(values, step_of)[skipped:] for name, values in part.scalars.items()}
        steps = read_steps(words, lambda row: unpack(row, layout), item.time, self._last_time)
        if account.latest is None:
            self._mention_earlier_steps(run, steps[0].reading)
        for i, step in enumerate(steps):
            reading = self._with_scalars(step.reading, {name: float(values[i]) for name, values in means.items()})
            account.add(
                Observation(
                    reading=reading,
                    identity=step.words.tobytes(),
                    time=step.time,
                    layout=layout,
                    interpolated=step.interpolated,
                    nonfinite_replicas=_nonfinite_replicas(step.reading, layout, item.observed),
                    # An evicted reading is assumed to have had as many steps as this one.
                    lost=evicted * len(steps) if i == 0 else 0,
                )
            )
            if self._caller is not None and reading.outcome is not None:
                self._caller.put(StepRecord(run, step.time, step.interpolated, reading))

    def _mention_earlier_steps(self, run: str, first: Reading) -> None:
        """Log that the steps before the first reading are not counted, unless `counts_from` says whether they are."""
        if self._settings.counts_from is None and first.step > 1:
            before = before_step(first)
            self._once.warn(
                "counts_from",
                "optwrap: the first reading of run %s is that of step %d; %d steps before it, %d of them non-finite, "
                "were not observed and are not counted. If this process took them, as in a loop that returns its last "
                'state, pass Monitor(counts_from="zero"); if the training was resumed, counts_from="first_reading" '
                "says so, and this line is not logged",
                run,
                first.step,
                before.steps,
                before.not_finite_steps,
            )

    def _refuse(self, error: Exception, observed: object, accounts: Sequence[Account], evicted: int) -> None:
        """Log why a reading is refused, and count the step records that are lost with it."""
        steps = steps_in(observed)
        for account in accounts:
            account.abandon(evicted + steps // len(accounts))
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


def new_rows(words: Words, account: Account) -> Words:
    """The rows after the row that was counted last; all rows if it is not among them."""
    for i in range(len(words), 0, -1):
        if account.repeats(words[i - 1].tobytes()):
            return words[i:]
    return words


def _nonfinite_replicas(reading: Reading, layout: Layout | None, observed: object) -> NonfiniteReplicas | None:
    if reading.replica is None or not reading.replicas_not_finite:
        return None
    return nonfinite_replicas(
        reading.replica, reading.replicas_not_finite, layout.replicas if layout else None, observed
    )
