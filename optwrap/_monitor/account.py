"""Adds up the counts of readings by incarnation. Pure: no clock, no I/O, no thread.

An *incarnation* is a stretch of training in which the optimizer's counters only rise. A new one begins when the process
starts, and whenever the counters fall because an older state was restored. The total of a run is the sum over its
incarnations of the last totals minus the totals at the start. That sum is right once the last report of each
incarnation has arrived, even if others were lost, repeated or late. So totals are never dropped here, only step
records.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from optwrap._monitor.backlog import Backlog, Entry, Record
from optwrap._monitor.queue import MOST_DIAGNOSES, Diagnosis, Ending
from optwrap._monitor.worst import MAX_PARAMETERS, name_worst
from optwrap._reading.counters import GOOD_OUTCOMES, OUTCOMES, is_bad
from optwrap._reading.replicas import OTHERS, NonfiniteReplicas, Replica
from optwrap._reading.unpack import Layout, Reading, Totals

MAX_REPLICAS: Final = 64
"""Replicas that the totals of one incarnation list; steps of any further replica are counted under OTHERS."""

ZERO: Final = Totals(outcomes=dict.fromkeys(OUTCOMES, 0), not_finite_steps=0, parameters={})

_NO_SHARES: Final[Mapping[str, float]] = MappingProxyType({})

_Key = TypeVar("_Key")


def add(a: Totals, b: Totals) -> Totals:
    """`a + b`, count by count."""
    return _combine(a, b, 1)


def subtract(a: Totals, b: Totals) -> Totals:
    """`a - b`, count by count, and at least 0."""
    return _combine(a, b, -1)


def before_step(reading: Reading) -> Totals:
    """The totals just before the step of `reading`."""
    if reading.outcome is None:
        return reading.totals
    own = Totals(
        outcomes={reading.outcome: 1},
        not_finite_steps=int(not reading.finite),
        parameters=dict.fromkeys(reading.nonfinite_parameters, 1),
    )
    return subtract(reading.totals, own)


def _combine(a: Totals, b: Totals, sign: int) -> Totals:
    def counts(a: Mapping[_Key, int], b: Mapping[_Key, int]) -> dict[_Key, int]:
        return {key: max(0, a.get(key, 0) + sign * b.get(key, 0)) for key in [*a, *(key for key in b if key not in a)]}

    return Totals(
        outcomes=counts(a.outcomes, b.outcomes),
        not_finite_steps=max(0, a.not_finite_steps + sign * b.not_finite_steps),
        parameters={path: steps for path, steps in counts(a.parameters, b.parameters).items() if steps},
        replicas={replica: steps for replica, steps in counts(a.replicas, b.replicas).items() if steps},
    )


def _continues(last: Reading, reading: Reading) -> bool:
    """Whether `reading` can be a later step of the same incarnation: there are more steps, and no count fell."""
    before, now = last.totals, reading.totals
    return (
        now.steps > before.steps
        and now.not_finite_steps >= before.not_finite_steps
        and all(now.outcomes[outcome] >= count for outcome, count in before.outcomes.items())
        and all(now.parameters.get(path, 0) >= count for path, count in before.parameters.items())
    )


def _bad_steps(totals: Totals) -> int:
    """A lower bound of the number of bad steps. Non-finite steps that were accumulated have a good outcome."""
    by_outcome = sum(count for outcome, count in totals.outcomes.items() if outcome not in GOOD_OUTCOMES)
    return max(by_outcome, totals.not_finite_steps)


@dataclasses.dataclass(eq=False)
class Incarnation:
    """The counts of one incarnation, and the state of its reports. Compared by identity."""

    id: str
    at_start: Totals
    """The totals when it began; never changes."""
    totals: Totals
    """The latest totals."""
    state: str = "starting"
    ending: Ending | None = None
    """How it ended; None while it goes on."""
    gauges: Mapping[str, float | int] = dataclasses.field(default_factory=dict)
    diagnoses: tuple[Diagnosis, ...] = ()
    """Those that are not in a report yet."""
    seq: int = 0
    """Number of the latest report; 0 if there is none."""
    dropped_steps: int = 0
    """Records of good steps that were dropped."""
    dropped_bad_steps: int = 0
    """Records of bad steps that were dropped."""
    unreported: bool = False
    """Whether anything except step records has changed since the last report."""
    held: int = 0
    """Number of its reports that are built and not acknowledged."""
    maybe_stored: bool = False
    """Whether the exporter may have stored one of its reports."""
    refusals: int = 0
    """Number of reports refused in a row."""

    @property
    def counted(self) -> Totals:
        """The part of the run's totals that this incarnation counted."""
        return subtract(self.totals, self.at_start)

    def diagnose(self, diagnoses: Iterable[Diagnosis]) -> None:
        """Add diagnoses to those that wait; the oldest go first."""
        self.diagnoses = (*self.diagnoses, *diagnoses)[-MOST_DIAGNOSES:]
        self.unreported = True

    def count_dropped(self, steps: int, bad_steps: int) -> None:
        """Add to the counts of dropped records."""
        if steps or bad_steps:
            self.dropped_steps += steps
            self.dropped_bad_steps += bad_steps
            self.unreported = True


@dataclasses.dataclass(frozen=True)
class Observation:
    """A reading, and when and how it was observed."""

    reading: Reading
    identity: bytes
    """The reading's words: equal for the same step observed twice."""
    time: float
    """Seconds since 1970."""
    layout: Layout | None = None
    """The layout by which its parameters were named."""
    interpolated: bool = False
    """Whether `time` is an estimate."""
    nonfinite_replicas: NonfiniteReplicas | None = None
    """The replicas whose own gradients were non-finite; None if there were none, or if that is unknown."""
    lost: int = 0
    """Steps before it whose readings were lost in this process."""


class Account:
    """The incarnations of one process, and the step records that are in no report yet.

    Args:
      new_id: makes the id of an incarnation.
      max_rows: limit of the waiting records, in table rows.
      from_zero: whether the process began the training, so that the first reading counts all its steps.
      max_incarnations: limit of the incarnations kept. Beyond it, one without a stored report is merged into the one
        before it, so that the sum over incarnations stays right.
    """

    def __init__(
        self, new_id: Callable[[], str], *, max_rows: int = 65_536, max_incarnations: int = 32, from_zero: bool = False
    ) -> None:
        self._new_id = new_id
        self._from_zero = from_zero
        self._max_incarnations = max_incarnations
        self._last: Observation | None = None
        self._last_condition = (False, False)
        self.urgent = False
        """Whether a step went wrong after a good one, or right after a bad one. The reporter resets it."""
        self.lost = 0
        """Step records dropped so far, over all incarnations."""
        self.backlog: Backlog[Incarnation] = Backlog(max_rows)
        self.incarnations = [Incarnation(new_id(), ZERO, ZERO, unreported=True)]
        """In the order in which they began. The outbox removes those that are reported completely."""

    @property
    def current(self) -> Incarnation:
        """The incarnation that counts now."""
        return self.incarnations[-1]

    @property
    def latest(self) -> Reading | None:
        """The newest reading; None before the first."""
        return None if self._last is None else self._last.reading

    def repeats(self, identity: bytes) -> bool:
        """Whether these are the words of the last reading."""
        return self._last is not None and self._last.identity == identity

    def add(self, observation: Observation) -> None:
        """Count one reading. The same reading again changes nothing."""
        if self.repeats(observation.identity):
            return
        reading, last = observation.reading, self._last
        if last is not None and observation.layout == last.layout and _continues(last.reading, reading):
            if observation.lost:
                # At most the steps between the two readings are lost.
                lost = min(observation.lost, reading.step - last.reading.step - 1)
                bad = min(lost, max(0, _bad_steps(before_step(reading)) - _bad_steps(last.reading.totals)))
                self._lose(self.current, lost - bad, bad)
        else:
            at_start = ZERO if self._from_zero and last is None else before_step(reading)
            if last is not None or at_start != ZERO:
                self._begin(at_start)
            self._lose(self.current, observation.lost, 0)
        self._last = observation
        replicas = _count_replica(self.current.totals.replicas, observation.nonfinite_replicas)
        self.current.totals = dataclasses.replace(reading.totals, replicas=replicas)
        self.current.gauges = reading.gauges
        self.current.unreported = True
        if reading.outcome is not None:
            self.current.state = "running"
            self._add_record(observation, reading.outcome)

    def finish(self, ending: Ending) -> None:
        """Set the final state of the current incarnation, to be reported once more."""
        self.current.state, self.current.ending = ending.state, ending
        self.current.unreported = True

    def count_dropped(self, entries: Iterable[Entry[Incarnation]]) -> None:
        """Count records that no report will carry."""
        for entry in entries:
            self._lose(entry.owner, not entry.record.bad, entry.record.bad)

    def abandon(self, readings: int) -> None:
        """Count step records that were observed and are lost: refused, or never read."""
        self._lose(self.current, readings, 0)

    def _lose(self, incarnation: Incarnation, steps: int, bad_steps: int) -> None:
        self.lost += steps + bad_steps
        incarnation.count_dropped(steps, bad_steps)

    def _begin(self, at_start: Totals) -> None:
        self.incarnations.append(Incarnation(self._new_id(), at_start, at_start))
        if len(self.incarnations) <= self._max_incarnations:
            return
        idle = [(i, incarnation) for i, incarnation in enumerate(self.incarnations[:-1]) if not incarnation.held]
        unknown = [i for i, incarnation in idle if i and not incarnation.maybe_stored]
        if unknown:
            into, removed = self.incarnations[unknown[0] - 1], self.incarnations.pop(unknown[0])
            into.totals = add(into.totals, removed.counted)
            into.state = "running" if "running" in (into.state, removed.state) else into.state
        elif idle:
            # Rare: the exporter alternately stores, refuses and loses reports, with a rollback each time.
            into, removed = self.current, self.incarnations.pop(idle[0][0])
        else:
            return
        self.count_dropped(self.backlog.take(removed, sys.maxsize))
        into.count_dropped(removed.dropped_steps, removed.dropped_bad_steps)
        into.unreported = True

    def _add_record(self, observation: Observation, outcome: str) -> None:
        reading = observation.reading
        mini_step = reading.gauges.get("mini_step")
        record = Record(
            step=reading.step,
            time=observation.time,
            interpolated=observation.interpolated,
            outcome=outcome,
            finite=reading.finite,
            norm=reading.norm,
            mini_step=None if mini_step is None else int(mini_step),
            nonfinite_parameters=name_worst(reading.nonfinite_parameters, MAX_PARAMETERS, keep_first=True),
            nonfinite_replicas=observation.nonfinite_replicas,
            # For good steps they would make reports four times as long.
            largest_parameters=reading.largest_parameters if is_bad(outcome, reading.finite) else _NO_SHARES,
            update_norm=reading.update_norm,
            scalars=reading.scalars,
        )
        condition = (record.bad, outcome == "accepted_not_finite")
        if condition != self._last_condition:
            self._last_condition, self.urgent = condition, True
        self.count_dropped(self.backlog.add(self.current, record))


def _count_replica(replicas: Mapping[Replica, int], found: NonfiniteReplicas | None) -> Mapping[Replica, int]:
    """`replicas` with one step more for the first replica that was non-finite."""
    if found is None:
        return replicas
    listed = found.first in replicas or len(replicas) < MAX_REPLICAS
    first = found.first if listed else OTHERS
    return {**replicas, first: replicas.get(first, 0) + 1}
