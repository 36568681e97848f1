"""What readings add up to, incarnation by incarnation. Pure: no clock, no I/O, no thread.

An *incarnation* is a stretch of training in which the optimizer's counters only rise: it begins with the process, with a
state restored from a checkpoint, and with every rollback. Its share of the run is its largest totals less those it
began with, and the run's is the sum of the shares: whatever is lost, repeated or late between here and the exporter,
that sum is right once the last report of each incarnation arrived. So nothing here ever drops totals, only step records.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from optwrap._monitor.backlog import GOOD_OUTCOMES, Backlog, Entry, Record
from optwrap._reading.counters import OUTCOMES
from optwrap._reading.replicas import OTHERS, Brought, Replica
from optwrap._reading.unpack import Layout, Reading, Totals

MOST_REPLICAS: Final = 64
"""Replicas that an incarnation tells apart in its totals. Where more have been the first it is none of them in particular."""

ZERO: Final = Totals(outcomes=dict.fromkeys(OUTCOMES, 0), not_finite_steps=0, parameters={})


_Key = TypeVar("_Key")


def less_own_step(reading: Reading) -> Totals:
    """Where the counters stood before the step that `reading` shows."""
    totals = reading.totals
    if reading.outcome is None:
        return totals
    outcomes = dict(totals.outcomes)
    outcomes[reading.outcome] = max(0, outcomes[reading.outcome] - 1)
    parameters = {path: steps - (path in reading.nonfinite_parameters) for path, steps in totals.parameters.items()}
    return Totals(
        outcomes=outcomes,
        not_finite_steps=max(0, totals.not_finite_steps - (not reading.finite)),
        parameters={path: steps for path, steps in parameters.items() if steps > 0},
    )


def _combine(a: Totals, b: Totals, sign: int) -> Totals:
    def counts(a: Mapping[_Key, int], b: Mapping[_Key, int]) -> dict[_Key, int]:
        return {key: max(0, a.get(key, 0) + sign * b.get(key, 0)) for key in [*a, *(key for key in b if key not in a)]}

    return Totals(
        outcomes=counts(a.outcomes, b.outcomes),
        not_finite_steps=max(0, a.not_finite_steps + sign * b.not_finite_steps),
        parameters={path: steps for path, steps in counts(a.parameters, b.parameters).items() if steps},
        replicas={replica: steps for replica, steps in counts(a.replicas, b.replicas).items() if steps},
    )


def plus(a: Totals, b: Totals) -> Totals:
    """`a + b`, count by count."""
    return _combine(a, b, 1)


def minus(a: Totals, b: Totals) -> Totals:
    """`a - b`, count by count, and not below zero."""
    return _combine(a, b, -1)


def _with_step(replicas: Mapping[Replica, int], brought: Brought | None) -> Mapping[Replica, int]:
    """Steps by the first replica that was not finite, with one step more."""
    if brought is None:
        return replicas
    named = brought.first in replicas or len(replicas) < MOST_REPLICAS
    first = brought.first if named else OTHERS
    return {**replicas, first: replicas.get(first, 0) + 1}


def _went_on(last: Reading, reading: Reading) -> bool:
    """Whether the optimizer that was at `last` can have come to `reading` by stepping: no count fell, steps rose."""
    before, now = last.totals, reading.totals
    return (
        now.steps > before.steps
        and now.not_finite_steps >= before.not_finite_steps
        and all(now.outcomes[outcome] >= count for outcome, count in before.outcomes.items())
        and all(now.parameters.get(path, 0) >= count for path, count in before.parameters.items())
    )


def _bad_steps(totals: Totals) -> int:
    """How many steps were bad, at least: steps accumulated although not finite show in the second figure only."""
    by_outcome = sum(count for outcome, count in totals.outcomes.items() if outcome not in GOOD_OUTCOMES)
    return max(by_outcome, totals.not_finite_steps)


@dataclasses.dataclass(eq=False)
class Incarnation:
    """One incarnation, as far as it got. Its identity is the object's: two incarnations are never equal."""

    id: str
    at_start: Totals
    """Where the counters stood when it began; never changes."""
    totals: Totals
    state: str = "starting"
    gauges: Mapping[str, float | int] = dataclasses.field(default_factory=dict)
    base: Mapping[str, Any] | None = None
    """What was counted before this incarnation as far as the exporter has said so, in the wire's form."""
    added: Totals = ZERO
    """What this process has counted before it that is not in `base`."""
    seq: int = 0
    """The last report's number; 0 while there is none."""
    dropped_steps: int = 0
    """Ordinary step records that had to go."""
    dropped_bad_steps: int = 0
    """Bad ones; a record is counted here or there."""
    unreported: bool = False
    """Whether it holds anything, records aside, that no report has carried, or none that was not refused."""
    held: int = 0
    """How many reports of it are built and not acknowledged."""
    known: bool = False
    """Whether the exporter may have stored a report of it."""
    refusals: int = 0
    """How many reports in a row the exporter refused."""

    @property
    def share(self) -> Totals:
        """What this incarnation adds to the run."""
        return minus(self.totals, self.at_start)

    def drop(self, steps: int, bad_steps: int) -> None:
        """Count records that had to go."""
        if steps or bad_steps:
            self.dropped_steps += steps
            self.dropped_bad_steps += bad_steps
            self.unreported = True


@dataclasses.dataclass(frozen=True)
class Observed:
    """A reading, and the circumstances."""

    reading: Reading
    identity: bytes
    """The reading's words: the same step seen again has the same."""
    time: float
    """Seconds since 1970."""
    layout: Layout | None = None
    """What its parameters were named by."""
    interpolated: bool = False
    restored: bool = False
    """Whether it shows where the counters stand, and no step that has just run."""
    brought: Brought | None = None
    """Which replicas' gradients were not finite; None where none were, or nobody says."""
    lost: int = 0
    """Readings before it that were never looked at."""


class Account:
    """The incarnations of one process and the step records that wait, within bounds.

    Args:
      new_id: makes the id of an incarnation.
      most_rows: bound of what waits: step records and nonfinite_parameters together.
      most_incarnations: bound of incarnations kept; beyond it one that the exporter cannot know of is added to the one before it,
        so that totals stay exact.
    """

    def __init__(self, new_id: Callable[[], str], *, most_rows: int = 65_536, most_incarnations: int = 32) -> None:
        self._new_id = new_id
        self._most_incarnations = most_incarnations
        self._last: Observed | None = None
        self._standing = (False, False)
        self.news = False
        """Whether a step was the first to go wrong, to be right again, or to be accepted although not finite, since
        whoever reports set this to false."""
        self.backlog: Backlog[Incarnation] = Backlog(most_rows)
        self.incarnations = [Incarnation(new_id(), ZERO, ZERO, unreported=True)]
        """Oldest first, the current one last; whoever reports takes out the others when all of them is reported."""

    @property
    def current(self) -> Incarnation:
        """The incarnation that goes on."""
        return self.incarnations[-1]

    @property
    def untouched(self) -> bool:
        """Whether nothing was observed yet."""
        return self._last is None

    def repeats(self, identity: bytes) -> bool:
        """Whether that reading is the last one observed, once more."""
        return self._last is not None and self._last.identity == identity

    def take(self, observed: Observed) -> None:
        """Count one reading. The last one once more changes nothing."""
        if self.repeats(observed.identity):
            return
        reading, last = observed.reading, self._last
        ran = reading.outcome is not None and not observed.restored
        renamed = last is not None and observed.layout != last.layout
        if last is not None and _went_on(last.reading, reading) and not renamed and not observed.restored:
            if observed.lost:
                # A step record can have been lost only where a step number is missing.
                lost = min(observed.lost, reading.step - last.reading.step - 1)
                bad = min(lost, max(0, _bad_steps(less_own_step(reading)) - _bad_steps(last.reading.totals)))
                self.current.drop(lost - bad, bad)
        else:
            at_start = less_own_step(reading) if ran else reading.totals
            if last is not None or at_start != ZERO:
                self._begin(at_start)
            self.current.drop(observed.lost, 0)
        self._last = observed
        replicas = _with_step(self.current.totals.replicas, observed.brought if ran else None)
        self.current.totals = dataclasses.replace(reading.totals, replicas=replicas)
        self.current.gauges = reading.gauges
        self.current.unreported = True
        if ran:
            self.current.state = "running"
            self._add(observed)

    def finish(self, state: str) -> None:
        """Give the current incarnation its last state, which one more report will carry."""
        self.current.state = state
        self.current.unreported = True

    def discard(self, entries: Iterable[Entry[Incarnation]]) -> None:
        """Count records that no report will carry."""
        for entry in entries:
            entry.owner.drop(not entry.record.bad, entry.record.bad)

    def _begin(self, at_start: Totals) -> None:
        last = self.current
        self.incarnations.append(
            Incarnation(self._new_id(), at_start, at_start, base=last.base, added=plus(last.added, last.share))
        )
        if len(self.incarnations) <= self._most_incarnations:
            return
        over = [(i, incarnation) for i, incarnation in enumerate(self.incarnations[:-1]) if not incarnation.held]
        unknown = [i for i, incarnation in over if i and not incarnation.known]
        if unknown:
            into, gone = self.incarnations[unknown[0] - 1], self.incarnations.pop(unknown[0])
            into.totals = plus(into.totals, gone.share)
            into.state = "running" if "running" in (into.state, gone.state) else into.state
        elif over:
            # It takes an exporter that stores, refuses and loses by turns, and a rollback each time, to get here.
            into, gone = self.current, self.incarnations.pop(over[0][0])
        else:
            return
        for entry in self.backlog.take(gone, sys.maxsize):
            gone.drop(not entry.record.bad, entry.record.bad)
        into.drop(gone.dropped_steps, gone.dropped_bad_steps)
        into.unreported = True

    def _add(self, observed: Observed) -> None:
        reading = observed.reading
        assert reading.outcome is not None
        mini_step = reading.gauges.get("mini_step")
        record = Record(
            step=reading.step,
            time=observed.time,
            interpolated=observed.interpolated,
            outcome=reading.outcome,
            finite=reading.finite,
            norm=reading.norm,
            mini_step=None if mini_step is None else int(mini_step),
            nonfinite_parameters=reading.nonfinite_parameters,
            brought=observed.brought,
        )
        standing = (record.bad, record.outcome == "accepted_not_finite")
        if standing != self._standing:
            self._standing, self.news = standing, True
        self.discard(self.backlog.add(self.current, record))
