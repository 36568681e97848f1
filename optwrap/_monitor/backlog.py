"""Step records, and the bounded queue in which they wait for a report. Pure: no clock, no I/O."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from optwrap._monitor.worst import Named
from optwrap._reading.counters import is_bad
from optwrap._reading.replicas import NonfiniteReplicas

Owner = TypeVar("Owner")

_SCALARS_IN_A_ROW: Final = 8
"""So many scalars are about as long in a report as one parameter."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """The record of one step."""

    step: int
    time: float
    """Seconds since 1970, when the step was observed."""
    interpolated: bool
    """Whether `time` is an estimate, because several steps were observed at once."""
    outcome: str
    finite: bool
    """Whether all incoming gradients were finite."""
    norm: float
    """Global L2 norm of the incoming gradients."""
    mini_step: int | None
    nonfinite_parameters: Named
    """Number of non-finite values in the gradient by parameter, of at most MAX_PARAMETERS."""
    nonfinite_replicas: NonfiniteReplicas | None = None
    """The replicas whose own gradients were non-finite; None if there were none, or if that is unknown."""
    largest_parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Of a bad step with finite gradients, the largest shares of the squared norm."""
    update_norm: float | None = None
    """Global L2 norm of the update that was applied; None if there was none, or if it is unknown."""
    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The loss and other numbers of the step, and injected hyperparameters."""

    @property
    def bad(self) -> bool:
        """Whether it is the record of a bad step."""
        return is_bad(self.outcome, self.finite)

    @property
    def weight(self) -> int:
        """Its size in table rows, the unit of the limits of memory and of reports."""
        named, others, _ = self.nonfinite_parameters
        return (
            1
            + len(named)
            + (others > 0)
            + (self.nonfinite_replicas is not None)
            + len(self.largest_parameters)
            + -(-len(self.scalars) // _SCALARS_IN_A_ROW)
        )


class Entry(NamedTuple, Generic[Owner]):
    """A waiting record and its owner."""

    order: int
    """Position among all records ever added."""
    owner: Owner
    record: Record


class Backlog(Generic[Owner]):
    """Records that are in no report yet. Bounded: the oldest good record is dropped first, then the oldest bad one.

    `take` returns an owner's records in the order in which they were added. `add` and `put_back` return the records
    that were dropped, so that the caller can count them.

    Args:
      max_weight: limit of the sum of all records' weights.
    """

    def __init__(self, max_weight: int) -> None:
        self.weight = 0
        self._max_weight = max_weight
        self._added = 0
        self._queues: dict[Owner, _Queues[Owner]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queues in self._queues.values() for queue in queues)

    def add(self, owner: Owner, record: Record) -> list[Entry[Owner]]:
        """Append a record; returns the records dropped to make room, possibly this one."""
        self._added += 1
        self._queue(owner, record).append(Entry(self._added, owner, record))
        self.weight += record.weight
        return self._drop_excess()

    def take(self, owner: Owner, max_weight: int) -> list[Entry[Owner]]:
        """Remove and return the oldest records of `owner`, up to `max_weight`; at least one if there is any."""
        taken: list[Entry[Owner]] = []
        room = max_weight
        while queues := [queue for queue in self._queues.get(owner, ()) if queue]:
            queue = min(queues, key=_oldest)
            weight = queue[0].record.weight
            if taken and weight > room:
                return taken
            room -= weight
            taken.append(self._pop(queue))
        return taken

    def put_back(self, entries: Iterable[Entry[Owner]]) -> list[Entry[Owner]]:
        """Undo the latest `take`; returns the records dropped because new ones were added meanwhile."""
        for entry in reversed(list(entries)):
            self._queue(entry.owner, entry.record).appendleft(entry)
            self.weight += entry.record.weight
        return self._drop_excess()

    def has(self, owner: Owner) -> bool:
        """Whether records of `owner` are waiting."""
        return owner in self._queues

    def _queue(self, owner: Owner, record: Record) -> deque[Entry[Owner]]:
        queues = self._queues.setdefault(owner, _Queues(deque(), deque()))
        return queues.bad if record.bad else queues.good

    def _pop(self, queue: deque[Entry[Owner]]) -> Entry[Owner]:
        entry = queue.popleft()
        self.weight -= entry.record.weight
        if not any(self._queues[entry.owner]):
            del self._queues[entry.owner]
        return entry

    def _drop_excess(self) -> list[Entry[Owner]]:
        dropped: list[Entry[Owner]] = []
        while self.weight > self._max_weight:
            good = [queues.good for queues in self._queues.values() if queues.good]
            dropped.append(self._pop(min(good or [queues.bad for queues in self._queues.values()], key=_oldest)))
        return dropped


class _Queues(NamedTuple, Generic[Owner]):
    """The waiting records of one owner; at least one of the queues is not empty."""

    good: deque[Entry[Owner]]
    bad: deque[Entry[Owner]]


def _oldest(queue: deque[Entry[Any]]) -> int:
    return queue[0].order
