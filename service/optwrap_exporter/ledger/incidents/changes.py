"""The incidents of a run while a report, or time alone, changes them."""

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from optwrap_exporter.ledger import ranges
from optwrap_exporter.ledger.evolve import evolved
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.wire.vocabulary import IncidentKind

MOST_OPEN: Final = 16
"""The most open incidents of one kind. Further trouble of that kind joins the last of them."""
KEPT: Final = 20
"""Incidents that are over and are kept in memory: late reports still belong to them."""

Incidents = tuple[IncidentRecord, ...]
_ID: Final = operator.attrgetter("id")


class ChangedIncidents(NamedTuple):
    """The incidents of a run after a change."""

    live: Incidents = ()
    """Those that are open, and the acknowledged ones whose cause still holds. By id."""
    over: Incidents = ()
    """The last KEPT others, by id."""
    to_store: Incidents = ()
    """Those that are new or have changed."""


class IncidentChanges:
    """Changes incidents, and remembers which ones have changed.

    Args:
      live: the live incidents.
      over: the last ones that are over.
      now: the exporter's clock.
      next_id: the id of the next new incident.
      launches: returns the number of launches of the run so far.
    """

    def __init__(
        self, live: Incidents, over: Incidents, now: float, next_id: int, launches: Callable[[], int] = lambda: 0
    ) -> None:
        self.now = now
        self.launches = launches
        self._found = {one.id: one for one in sorted((*over, *live), key=_ID)}
        """By id, and in its order: a new incident has the largest."""
        self._before = dict(self._found)
        self._live = {one.id for one in live}
        self._next_id = next_id

    def result(self) -> ChangedIncidents:
        """The incidents as they are now."""
        found = self._found.values()
        over = [one for one in found if not one.live]
        return ChangedIncidents(
            tuple(one for one in found if one.live),
            tuple(over[-KEPT:]),
            tuple(one for one in found if self._before.get(one.id) is not one),
        )

    def all(self) -> Iterator[IncidentRecord]:
        """Every incident, the newest first."""
        return reversed(self._found.values())

    def live(self, kinds: Iterable[IncidentKind]) -> Iterator[IncidentRecord]:
        """The live incidents of some kinds, the newest first."""
        return (one for key in sorted(self._live, reverse=True) if (one := self._found[key]).kind in kinds)

    def open(self, kind: IncidentKind, attempt: str, generation: int, opened: float, **fields: Any) -> IncidentRecord:
        """A new incident; or the last open one of its kind, if there are too many."""
        same = [one for one in self.live([kind]) if one.state == "open"]
        if len(same) >= MOST_OPEN:
            return same[0]
        made = IncidentRecord(self._next_id, kind, attempt, generation, min(opened, self.now), self.now, **fields)
        self._next_id += 1
        self._found[made.id] = made
        self._live.add(made.id)
        return made

    def put(self, before: IncidentRecord, **fields: Any) -> IncidentRecord:
        """Change fields of an incident."""
        return self.keep(evolved(before, **fields))

    def keep(self, after: IncidentRecord) -> IncidentRecord:
        """Keep a new value of an incident, unless it equals the old one."""
        if self._found[after.id] != after:
            self._found[after.id] = after
            (self._live.add if after.live else self._live.discard)(after.id)
        return self._found[after.id]

    def join(self, one: IncidentRecord, process: int, **fields: Any) -> IncidentRecord:
        """Add a process to an incident."""
        return self.put(one, processes=ranges.add(one.processes, process), **fields)

    def end(self, one: IncidentRecord, *, at: float | None = None, **fields: Any) -> IncidentRecord:
        """The cause of an incident has ended, now or `at` a time before. An acknowledged one stays acknowledged."""
        closed = {"state": "closed"} if one.state == "open" else {}
        return self.put(one, lasts=False, active=(), closed=one.closed or at or self.now, **closed, **fields)
