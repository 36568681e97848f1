"""The lists of events: of one run, or of all."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from optwrap_exporter.wire.answers import ANSWER_BYTES, Event, Page
from optwrap_exporter.wire.cursor import decode, encode
from optwrap_exporter.wire.vocabulary import SKIP_REASONS, EventKind, Outcome

_EVENT_BYTES: Final = 512
"""The most bytes of an event without its detail."""
_PAGE_BYTES: Final = ANSWER_BYTES - 8192
"""The most bytes of the items of a page."""
_EXAMINED: Final = 20_000
"""The most events that are read for one page."""

EventRow = tuple[int, str, int, EventKind, float, int | None, str, str]
COLUMNS: Final = "event.id, run.run, process, kind, time, step, attempt, detail"
"""The columns that `fitting` needs."""


class Position(NamedTuple):
    """The place of an event in the order of commits."""

    revision: int
    id: int


class Logged(NamedTuple):
    """An event, and where the next one is looked for."""

    position: Position
    event: Event


class EventFilter(NamedTuple):
    """Which events to list. What is empty or None does not filter."""

    kinds: tuple[EventKind, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    """Events of steps with one of these outcomes."""
    process: int | None = None
    """List every event of this process. By default an event that several processes report is listed once."""
    since: float | None = None
    """The earliest time of an event, in seconds since 1970."""
    until: float | None = None
    """The time before which events are."""

    @property
    def name(self) -> str:
        """The filter in a cursor. The times are not in it: they may be given relative to now."""
        process = "" if self.process is None else self.process
        return f"{','.join(self.kinds)}:{','.join(self.outcomes)}:{process}"


def events(
    db: sqlite3.Connection, run_id: int | None, run: str | None, chosen: EventFilter, *, limit: int, cursor: str | None
) -> Page[Event]:
    """`Store.events`. With `run` None, of all runs."""
    of = f"events:{run or ''}:{chosen.name}"
    before = int(decode(of, cursor, (int,))[0]) if cursor is not None else None
    if run is not None and run_id is None:
        return Page(items=[], cursor=None)
    numbers = _candidates(db, run_id, chosen, before, limit)
    which, values = _of_outcomes(chosen.outcomes)
    rows = db.execute(
        f"SELECT {COLUMNS} FROM json_each(?) AS chosen CROSS JOIN event ON event.id = chosen.value "
        f"JOIN run ON run.id = event.run_id WHERE {which} ORDER BY event.id DESC LIMIT ?",
        (json.dumps(numbers), *values, limit + 1),
    )
    items, more = fitting(rows, limit, _PAGE_BYTES)
    if more:
        last = items[-1].id
    elif chosen.outcomes and len(numbers) == _EXAMINED:  # the others may be further down
        last = numbers[-1]
    else:
        return Page(items=items, cursor=None)
    return Page(items=items, cursor=encode(of, [last]))


def logged(db: sqlite3.Connection, after: Position, most: int) -> list[Logged]:
    """`Store.logged_events`."""
    rows = db.execute(
        f"SELECT event.revision, {COLUMNS} FROM event JOIN run ON run.id = event.run_id "
        "WHERE (event.revision, event.id) > (?, ?) AND NOT repeated ORDER BY event.revision, event.id LIMIT ?",
        (*after, most),
    )
    return [Logged(Position(revision, row[0]), _event(row)) for revision, *row in rows]


def _candidates(
    db: sqlite3.Connection, run_id: int | None, chosen: EventFilter, before: int | None, limit: int
) -> Sequence[int]:
    """The ids of the newest events that pass all filters but that by outcome, newest first.

    They are read from an index alone, because a run may have a million events.
    """
    kinds = _kinds(chosen)
    if kinds == []:
        return []
    where: list[str] = []
    values: list[int | float | str] = []
    if run_id is not None:
        where.append("run_id = ?")
        values.append(run_id)
    if kinds is not None:
        where.append(f"kind IN ({', '.join('?' * len(kinds))})")
        values += kinds
    for condition, value in (("time >= ?", chosen.since), ("time < ?", chosen.until)):
        if value is not None:
            where.append(condition)
            values.append(value)
    source = "event"
    if chosen.process is not None:
        where.append("process = ?")
        values.append(chosen.process)
    else:
        where.append("repeated = 0")
        if len(where) > 1:  # else the newest ones are at the end of the table
            source = "event INDEXED BY event_time"
    if before is not None:
        where.append("id < ?")
        values.append(before)
    most = _EXAMINED if chosen.outcomes else limit + 1
    rows = db.execute(f"SELECT id FROM {source} WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?", (*values, most))
    return [number for (number,) in rows]


def _kinds(chosen: EventFilter) -> list[EventKind] | None:
    """The kinds that may pass; None for all. Only skipped and accepted_not_finite events have an outcome."""
    if not chosen.outcomes:
        return list(chosen.kinds) or None
    having: dict[EventKind, None] = {}
    for outcome in chosen.outcomes:
        having["skipped" if outcome in SKIP_REASONS else "accepted_not_finite"] = None
    return [kind for kind in having if not chosen.kinds or kind in chosen.kinds]


def _of_outcomes(outcomes: Iterable[Outcome]) -> tuple[str, list[str]]:
    """The condition that an event is of a step with one of these outcomes, and its values."""
    parts: list[str] = []
    values: list[str] = []
    for outcome in outcomes:
        if outcome in SKIP_REASONS:
            parts.append("kind = 'skipped' AND json_extract(detail, '$.reason') = ?")
            values.append(SKIP_REASONS[outcome])
        else:
            parts.append("kind = ?")
            values.append(outcome)
    return f"({' OR '.join(parts)})" if parts else "1", values


def fitting(rows: Iterable[EventRow], most: int, room: int) -> tuple[list[Event], bool]:
    """The first events, at most `most` of them and about `room` bytes but at least one; whether there are more."""
    items: list[Event] = []
    for row in rows:
        room -= _EVENT_BYTES + len(row[-1].encode())
        if len(items) == most or (items and room < 0):
            return items, True
        items.append(_event(row))
    return items, False


def _event(row: EventRow) -> Event:
    number, run, process, kind, time, step, attempt, detail = row
    return Event(
        id=number,
        run=run,
        process=process,
        kind=kind,
        time=time,
        step=step,
        attempt=attempt,
        detail=json.loads(detail),
    )
