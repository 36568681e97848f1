"""Step records, and the bounded place where they wait for a report. Pure: no clock, no I/O."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from optwrap._reading.replicas import Brought

GOOD_OUTCOMES: Final = frozenset({"applied", "accumulated"})
"""Outcomes of a step that did what it was meant to do."""

Owner = TypeVar("Owner")


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What one step did."""

    step: int
    time: float
    """Seconds since 1970, when the step was observed."""
    interpolated: bool
    """Whether that time is an estimate: the step is one of several that were observed together."""
    outcome: str
    finite: bool
    norm: float
    mini_step: int | None
    nonfinite_parameters: Mapping[str, int]
    brought: Brought | None = None
    """Which replicas' own gradients were not finite; None where none were, or it was not asked."""

    @property
    def bad(self) -> bool:
        """Whether it is a step that somebody will want to know of: skipped, accepted not finite, or not finite."""
        return self.outcome not in GOOD_OUTCOMES or not self.finite

    @property
    def weight(self) -> int:
        """Its share of memory and of a report, in table rows."""
        return 1 + len(self.nonfinite_parameters) + (self.brought is not None)


class Entry(NamedTuple, Generic[Owner]):
    """A record that waits, and whose it is."""

    order: int
    """Position among all records ever added."""
    owner: Owner
    record: Record


class Backlog(Generic[Owner]):
    """Records that no report has carried yet, bounded by weight; ordinary records give way to bad ones.

    An owner's records leave in the order in which they came. A record that has to go is the oldest ordinary one, or
    where there is none the oldest bad one; `add` and `put_back` return what went, for their caller to count.
    """

    def __init__(self, most: int) -> None:
        self.weight = 0
        self._most = most
        self._added = 0
        self._queues: dict[Owner, _Queues[Owner]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queues in self._queues.values() for queue in queues)

    def add(self, owner: Owner, record: Record) -> list[Entry[Owner]]:
        """Let `record` wait; returns the records that had to go for it, itself among them perhaps."""
        self._added += 1
        self._queue(owner, record).append(Entry(self._added, owner, record))
        self.weight += record.weight
        return self._shed()

    def take(self, owner: Owner, most: int) -> list[Entry[Owner]]:
        """The oldest records of `owner`; at least one if there is any, and at most `most` rows of several."""
        taken: list[Entry[Owner]] = []
        room = most
        while queues := [queue for queue in self._queues.get(owner, ()) if queue]:
            queue = min(queues, key=_age)
            weight = queue[0].record.weight
            if taken and weight > room:
                return taken
            room -= weight
            taken.append(self._pop(queue))
        return taken

    def put_back(self, entries: Iterable[Entry[Owner]]) -> list[Entry[Owner]]:
        """Undo a `take` of this owner's latest; returns the records that had to go."""
        for entry in reversed(list(entries)):
            self._queue(entry.owner, entry.record).appendleft(entry)
            self.weight += entry.record.weight
        return self._shed()

    def has(self, owner: Owner) -> bool:
        """Whether records of `owner` wait."""
        return owner in self._queues

    def _queue(self, owner: Owner, record: Record) -> deque[Entry[Owner]]:
        queues = self._queues.setdefault(owner, _Queues(deque(), deque()))
        return queues.bad if record.bad else queues.ordinary

    def _pop(self, queue: deque[Entry[Owner]]) -> Entry[Owner]:
        entry = queue.popleft()
        self.weight -= entry.record.weight
        if not any(self._queues[entry.owner]):
            del self._queues[entry.owner]
        return entry

    def _shed(self) -> list[Entry[Owner]]:
        gone: list[Entry[Owner]] = []
        while self.weight > self._most:
            ordinary = [queues.ordinary for queues in self._queues.values() if queues.ordinary]
            gone.append(self._pop(min(ordinary or [queues.bad for queues in self._queues.values()], key=_age)))
        return gone


class _Queues(NamedTuple, Generic[Owner]):
    """Where one owner's records wait; not both are empty."""

    ordinary: deque[Entry[Owner]]
    bad: deque[Entry[Owner]]


def _age(queue: deque[Entry[Any]]) -> int:
    return queue[0].order
