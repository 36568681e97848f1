"""Step records, and the bounded place where they wait for a report. Pure: no clock, no I/O."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

GOOD_VERDICTS: Final = frozenset({"applied", "accumulated"})
"""Verdicts of a step that did what it was meant to do."""

Owner = TypeVar("Owner")


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What one step did."""

    step: int
    time: float
    """Seconds since 1970, when the step was observed."""
    interpolated: bool
    """Whether that time is an estimate: the step is one of several that were observed together."""
    verdict: str
    finite: bool
    norm: float
    mini_step: int | None
    offenders: Mapping[str, int]

    @property
    def bad(self) -> bool:
        """Whether it is a step that somebody will want to know of: skipped, accepted not finite, or not finite."""
        return self.verdict not in GOOD_VERDICTS or not self.finite

    @property
    def weight(self) -> int:
        """Its share of memory and of a report, in table rows."""
        return 1 + len(self.offenders)


class Entry(NamedTuple, Generic[Owner]):
    """A record that waits, and whose it is."""

    order: int
    """Position among all records ever added."""
    owner: Owner
    record: Record


class Backlog(Generic[Owner]):
    """Records that no report has carried yet, bounded by weight; ordinary records give way to bad ones.

    Every owner's records leave in the order in which they came. A record that has to go is the oldest ordinary one, or
    where there is none the oldest bad one; `add` and `put_back` return what went, for their caller to count.
    """

    def __init__(self, most: int) -> None:
        self.weight = 0
        self._most = most
        self._added = 0
        self._ordinary: deque[Entry[Owner]] = deque()
        self._bad: deque[Entry[Owner]] = deque()

    def __len__(self) -> int:
        return len(self._ordinary) + len(self._bad)

    def add(self, owner: Owner, record: Record) -> list[Entry[Owner]]:
        """Let `record` wait; returns the records that had to go for it, itself among them perhaps."""
        self._added += 1
        self._queue(record).append(Entry(self._added, owner, record))
        self.weight += record.weight
        return self._shed()

    def take(self, owner: Owner, most: int) -> list[Entry[Owner]]:
        """The oldest records of `owner`, who must own the oldest of all; at least one if there is any, `most` rows."""
        taken: list[Entry[Owner]] = []
        room = most
        while True:
            heads = [queue for queue in (self._ordinary, self._bad) if queue and queue[0].owner is owner]
            if not heads:
                return taken
            queue = min(heads, key=lambda queue: queue[0].order)
            weight = queue[0].record.weight
            if taken and weight > room:
                return taken
            room -= weight
            self.weight -= weight
            taken.append(queue.popleft())

    def put_back(self, entries: Iterable[Entry[Owner]]) -> list[Entry[Owner]]:
        """Undo a `take`, nothing having been taken since; returns the records that had to go."""
        for entry in reversed(list(entries)):
            self._queue(entry.record).appendleft(entry)
            self.weight += entry.record.weight
        return self._shed()

    def remove(self, owner: Owner) -> list[Entry[Owner]]:
        """Take out all records of `owner`, wherever they stand."""
        found: list[Entry[Owner]] = []
        for queue in (self._ordinary, self._bad):
            found += [entry for entry in queue if entry.owner is owner]
            rest = [entry for entry in queue if entry.owner is not owner]
            queue.clear()
            queue.extend(rest)
        self.weight -= sum(entry.record.weight for entry in found)
        return found

    def has(self, owner: Owner) -> bool:
        """Whether `owner`, who must own the oldest of all if any, has records here."""
        return any(queue and queue[0].owner is owner for queue in (self._ordinary, self._bad))

    def _queue(self, record: Record) -> deque[Entry[Owner]]:
        return self._bad if record.bad else self._ordinary

    def _shed(self) -> list[Entry[Owner]]:
        gone: list[Entry[Owner]] = []
        while self.weight > self._most:
            gone.append((self._ordinary or self._bad).popleft())
            self.weight -= gone[-1].record.weight
        return gone
