"""The table of incidents: its rows, its lists, and how many of them are kept."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from optwrap_exporter.ledger.incidents.changes import KEPT
from optwrap_exporter.ledger.incidents.summary import answer
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.store.bulk import Row
from optwrap_exporter.wire.answers import ANSWER_BYTES, Page
from optwrap_exporter.wire.cursor import decode, encode
from optwrap_exporter.wire.incident import Incident
from optwrap_exporter.wire.vocabulary import OUTCOMES, IncidentKind, IncidentState, Outcome

MOST_OF_RUN: Final = 1000
"""Incidents of one run that are kept; the live ones in any case."""
_PAGE_BYTES: Final = ANSWER_BYTES - 8192
"""The most bytes of the items of a page."""
_BIT: Final = {outcome: 1 << index for index, outcome in enumerate(OUTCOMES)}

UPSERT: Final = (
    "INSERT INTO incident (id, run_id, revision, kind, state, live, opened, closed, outcomes, record) VALUES ? "
    "ON CONFLICT DO UPDATE SET revision = excluded.revision, kind = excluded.kind, state = excluded.state, "
    "live = excluded.live, opened = excluded.opened, closed = excluded.closed, outcomes = excluded.outcomes, "
    "record = excluded.record"
)


def row(one: IncidentRecord, run_id: int, revision: int, text: str) -> Row:
    """The row of an incident. `text` is `one.durable()` as JSON."""
    mask = sum(_BIT[outcome] for outcome in one.outcomes)
    return (one.id, run_id, revision, one.kind, one.state, one.live, one.opened, one.closed, mask, text)


def bound(db: sqlite3.Connection, run_ids: Iterable[int]) -> None:
    """Delete the oldest incidents of runs that have too many."""
    for run_id in run_ids:
        db.execute(
            "DELETE FROM incident WHERE run_id = ? AND NOT live AND id <= "
            "(SELECT id FROM incident WHERE run_id = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (run_id, run_id, MOST_OF_RUN),
        )


def last_id(db: sqlite3.Connection) -> int:
    """The largest id that an incident has had; 0 if there was none."""
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'incident'").fetchone()
    return int(found[0]) if found else 0


class OfRun(NamedTuple):
    """What the ledger keeps of a run's incidents."""

    live: tuple[IncidentRecord, ...] = ()
    over: tuple[IncidentRecord, ...] = ()


def restored(db: sqlite3.Connection) -> Mapping[int, OfRun]:
    """By run, the live incidents and the last others."""
    found: dict[int, tuple[list[IncidentRecord], list[IncidentRecord]]] = defaultdict(lambda: ([], []))
    for run_id, number, text in db.execute(
        "SELECT run_id, id, record FROM (SELECT *, row_number() OVER (PARTITION BY run_id, live ORDER BY id DESC) "
        "AS place FROM incident) WHERE live OR place <= ? ORDER BY id",
        (KEPT,),
    ):
        one = IncidentRecord.from_durable(number, json.loads(text))
        found[run_id][not one.live].append(one)
    return {run_id: OfRun(tuple(live), tuple(over)) for run_id, (live, over) in found.items()}


def find(db: sqlite3.Connection, number: int) -> tuple[str, IncidentRecord] | None:
    """An incident and its run, by its id; None if there is none."""
    for run, text in db.execute(
        "SELECT run.run, record FROM incident JOIN run ON run.id = run_id WHERE incident.id = ?", (number,)
    ):
        return run, IncidentRecord.from_durable(number, json.loads(text))
    return None


class IncidentFilter(NamedTuple):
    """Which incidents to list. What is empty or None does not filter."""

    kinds: tuple[IncidentKind, ...] = ()
    states: tuple[IncidentState, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    """Incidents with bad steps of one of these outcomes."""
    since: float | None = None
    """Incidents that lasted until this time or longer, in seconds since 1970."""
    until: float | None = None
    """Incidents that began before this time."""

    @property
    def name(self) -> str:
        """The filter in a cursor. The times are not in it: they may be given relative to now."""
        return ":".join(",".join(part) for part in (self.kinds, self.states, self.outcomes))


def kept(db: sqlite3.Connection, numbers: Sequence[int]) -> frozenset[int]:
    """Those of some ids that incidents have."""
    rows = db.execute(f"SELECT id FROM incident WHERE id IN ({', '.join('?' * len(numbers))})", numbers)
    return frozenset(row[0] for row in rows)


def incidents(
    db: sqlite3.Connection, run: str | None, chosen: IncidentFilter, *, limit: int, cursor: str | None
) -> Page[Incident]:
    """`Store.incidents`."""
    of = f"incidents:{run or ''}:{chosen.name}"
    where, values = ["1"], list[int | float | str]()

    def add(condition: str, *of_it: int | float | str) -> None:
        where.append(condition)
        values.extend(of_it)

    if cursor is not None:
        add("incident.id < ?", *decode(of, cursor, (int,)))
    if run is not None:
        add("run.run = ?", run)
    if chosen.kinds:
        add(f"kind IN ({', '.join('?' * len(chosen.kinds))})", *chosen.kinds)
    if chosen.states:
        add(f"state IN ({', '.join('?' * len(chosen.states))})", *chosen.states)
    if chosen.outcomes:
        add("outcomes & ?", sum(_BIT[outcome] for outcome in set(chosen.outcomes)))
    if chosen.since is not None:
        add("(closed IS NULL OR closed >= ?)", chosen.since)
    if chosen.until is not None:
        add("opened < ?", chosen.until)
    rows = db.execute(
        f"SELECT incident.id, run.run, record FROM incident JOIN run ON run.id = run_id WHERE {' AND '.join(where)} "
        "ORDER BY incident.id DESC LIMIT ?",
        (*values, limit + 1),
    )
    items: list[Incident] = []
    room = _PAGE_BYTES
    for item in _read(rows):
        room -= len(item.model_dump_json().encode()) + 1
        if len(items) == limit or (items and room < 0):
            return Page(items=items, cursor=encode(of, [items[-1].id]))
        items.append(item)
    return Page(items=items, cursor=None)


def _read(rows: Iterable[tuple[int, str, str]]) -> Iterator[Incident]:
    for number, run, text in rows:
        yield answer(run, IncidentRecord.from_durable(number, json.loads(text)))
