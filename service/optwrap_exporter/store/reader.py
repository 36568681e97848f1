"""The queries of the API. Each runs in a read transaction of the caller, so it sees one state of the database."""

import json
import sqlite3
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple

from optwrap_exporter.store import downsample, rollups, step_columns
from optwrap_exporter.store.downsample import Axis
from optwrap_exporter.store.rollups import IN_SPAN, Span
from optwrap_exporter.wire.answers import (
    ANSWER_BYTES,
    BadSteps,
    Event,
    Gap,
    LeftOutOfReport,
    Page,
    ReportMessage,
    StepsAnswer,
)
from optwrap_exporter.wire.cursor import decode, encode
from optwrap_exporter.wire.requests import Offender, ReplicaRecord
from optwrap_exporter.wire.vocabulary import EventKind

_LAST: Final = 2**62


def run_id(db: sqlite3.Connection, run: str) -> int | None:
    """The run's key; None if the run is unknown."""
    row = db.execute("SELECT id FROM run WHERE run = ?", (run,)).fetchone()
    return row and int(row[0])


BUCKETS: Final = 1000
"""The most buckets of bad steps that are thinned."""


def steps(
    db: sqlite3.Connection,
    run: str,
    process: int,
    *,
    since: int | None,
    until: int | None,
    points: int,
    axis: Axis,
    most_bad: int,
    most_replicas: int,
) -> StepsAnswer:
    """`Store.steps`."""
    key = run_id(db, run)
    found: list[step_columns.Row] = []
    thinned: list[BadSteps] = []
    replicas: list[ReplicaRecord] = []
    good, bad, left_out = 0, 0, 0
    if key is not None:
        span = _narrowed(db, Span(key, process, since or 0, _LAST if until is None else until))
        blocks = rollups.read(db, span)
        good = sum(block.good for block in blocks[rollups.NORM].values())
        bad = sum(block.bad for block in blocks[rollups.NORM].values())
        select = f"SELECT {step_columns.SELECTED} FROM step"
        if good <= points and bad <= most_bad:
            found = db.execute(f"{select} WHERE {IN_SPAN}", span).fetchall()
        else:
            if bad <= most_bad:
                # SQLite uses the partial index only if the query repeats its condition.
                found = db.execute(f"{select} INDEXED BY step_bad WHERE {IN_SPAN} AND bad = 1", span).fetchall()
            else:
                thinned, shown = downsample.bad_steps(db, span, min(BUCKETS, most_bad), axis)
                found = db.execute(
                    f"{select} INDEXED BY step_bad WHERE {_THESE} AND bad = 1 LIMIT ?", (*_these(span, shown), most_bad)
                ).fetchall()
            if good <= points:
                found += db.execute(f"{select} WHERE {IN_SPAN} AND bad = 0", span).fetchall()
            else:
                found += _sampled(db, span, blocks, points, axis)
        found.sort(key=lambda row: row[:2])
        values = _these(span, {row[0] for row in found})
        ((recorded,),) = db.execute(f"SELECT count(*) FROM replica WHERE {_THESE}", values)
        replicas = _replicas(db, _THESE, values, most_replicas)
        left_out = recorded - len(replicas)
    return StepsAnswer(
        run=run,
        process=process,
        since=since,
        until=until,
        total=good + bad,
        sampled=good > points,
        bad=bad,
        thinned=thinned,
        columns=step_columns.read(found),
        replicas=replicas,
        replicas_left_out=left_out,
    )


_THESE: Final = "run_id = ? AND process = ? AND step IN (SELECT value FROM json_each(?))"
"""Selects steps by number, with the values of `_these`."""


def _these(span: Span, steps: Iterable[int]) -> tuple[int, int, str]:
    return span.run_id, span.process, json.dumps(sorted(steps))


def _replicas(db: sqlite3.Connection, where: str, values: tuple[int | str, ...], most: int) -> list[ReplicaRecord]:
    """Replica records, by step; at most `most`."""
    names = ("step", "replica", "process", "device", "count", "of")
    rows = db.execute(
        "SELECT step, replica, of_process, device, replica_count, replicas FROM replica "
        f"WHERE {where} ORDER BY step, revision LIMIT ?",
        (*values, most),
    )
    return [ReplicaRecord.model_construct(None, **dict(zip(names, row, strict=True))) for row in rows]


def _narrowed(db: sqlite3.Connection, span: Span) -> Span:
    """The span from its first to its last stored step; empty if it has none."""
    rows = [
        db.execute(f"SELECT step FROM step WHERE {IN_SPAN} ORDER BY step {way} LIMIT 1", span).fetchone()
        for way in ("ASC", "DESC")
    ]
    return span._replace(first=rows[0][0], last=rows[1][0]) if rows[0] else span._replace(first=1, last=0)


def _sampled(
    db: sqlite3.Connection, span: Span, blocks: dict[str, dict[int, rollups.Block]], points: int, axis: Axis
) -> list[step_columns.Row]:
    """Good steps, downsampled."""
    chosen = {extreme[1:] for extreme in downsample.extremes(db, span, blocks, points, axis)}
    return db.execute(
        f"""
        SELECT {step_columns.SELECTED} FROM json_each(?) AS chosen CROSS JOIN step ON run_id = ? AND process = ?
            AND step = json_extract(chosen.value, '$[0]') AND incarnation_id = json_extract(chosen.value, '$[1]')
        """,
        (json.dumps(sorted(chosen)), span.run_id, span.process),
    ).fetchall()


_EVENT_BYTES: Final = 512
"""The most bytes of an event without its detail."""
_PAGE_BYTES: Final = ANSWER_BYTES - 8192
"""The most bytes of the items of a page."""

_EventRow = tuple[int, str, int, EventKind, float, int | None, str, str]
_EVENT: Final = "event.id, run.run, process, kind, time, step, attempt, detail"


def _event(row: _EventRow) -> Event:
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


def events(
    db: sqlite3.Connection,
    run: str,
    *,
    kind: EventKind | None,
    process: int | None,
    limit: int,
    cursor: str | None,
) -> Page[Event]:
    """`Store.events`."""
    of = f"events:{run}:{kind or ''}:{'' if process is None else process}"
    where = ["run.run = ?"]
    values: list[int | str] = [run]
    if cursor is not None:
        where.append("event.id < ?")
        values += decode(of, cursor, (int,))
    if kind is not None:
        where.append("kind = ?")
        values.append(kind)
    if process is not None:
        where.append("process = ?")
        values.append(process)
    else:
        where.append("NOT repeated")
    rows = db.execute(
        f"SELECT {_EVENT} FROM event JOIN run ON run.id = event.run_id WHERE {' AND '.join(where)} "
        "ORDER BY event.id DESC LIMIT ?",
        (*values, limit + 1),
    )
    items, more = _fitting(rows, limit, _PAGE_BYTES)
    return Page(items=items, cursor=encode(of, [items[-1].id]) if more else None)


def _fitting(rows: Iterable[_EventRow], most: int, room: int) -> tuple[list[Event], bool]:
    """The first events, at most `most` of them and about `room` bytes but at least one; whether there are more."""
    items: list[Event] = []
    for row in rows:
        room -= _EVENT_BYTES + len(row[-1].encode())
        if len(items) == most or (items and room < 0):
            return items, True
        items.append(_event(row))
    return items, False


class Changes(NamedTuple):
    """What was committed after a revision."""

    gap: Gap | None
    """What is left out, because all messages together are too large; None if nothing is."""
    messages: list[ReportMessage]
    """The newest messages, in order."""


def changes(db: sqlite3.Connection, after: int, run: str | None, *, until: int | None, room: int) -> Changes:
    """`Store.changes`."""
    last = _LAST if until is None else until
    only = "" if run is None else "AND run.run = ?"
    values = (after, last, *([] if run is None else [run]))
    messages: list[ReportMessage] = []
    # Newest first: those that do not fit are the oldest.
    for revision, key, name, process, first_step, last_step in db.execute(
        "SELECT revision, run.id, run.run, process, first_step, last_step FROM change JOIN run ON run.id = run_id "
        f"WHERE revision > ? AND revision <= ? {only} ORDER BY revision DESC",
        values,
    ):
        span = Span(key, process, 1, 0) if first_step is None else Span(key, process, first_step, last_step)
        message = _change(db, revision, name, span)
        room -= len(message.model_dump_json().encode())
        if room < 0 and messages:
            ((left_out,),) = db.execute(
                f"SELECT count(*) FROM change JOIN run ON run.id = run_id WHERE revision > ? AND revision <= ? {only}",
                (after, revision, *values[2:]),
            )
            return Changes(Gap(after=after, until=revision, messages=left_out), messages[::-1])
        messages.append(message)
    return Changes(None, messages[::-1])


# What a message may have: together less than ANSWER_BYTES.
_MOST_STEPS: Final = 8000
_MOST_REPLICAS: Final = 1000
_OFFENDER_BYTES: Final = 400_000
_MESSAGE_EVENT_BYTES: Final = 300_000


def _change(db: sqlite3.Connection, revision: int, run: str, span: Span) -> ReportMessage:
    where, values = f"{IN_SPAN} AND revision = ?", (*span, revision)

    def rest(table: str, condition: str, shown: int, most: int) -> int:
        """How many rows were not read."""
        if shown < most:
            return 0
        counted = db.execute(f"SELECT count(*) FROM {table} WHERE {condition}", values).fetchone()
        return int(counted[0]) - shown

    # Bad steps before good ones, then the newest.
    found = db.execute(
        f"SELECT {step_columns.SELECTED} FROM step WHERE {where} ORDER BY bad DESC, step DESC LIMIT ?",
        (*values, _MOST_STEPS),
    ).fetchall()
    found.sort(key=lambda row: row[0])
    replicas = _replicas(db, where, values, _MOST_REPLICAS)
    offenders, offenders_left_out = _offenders(db, where, values)
    happened = "FROM event JOIN run ON run.id = event.run_id WHERE revision = ? AND NOT repeated"
    events, more = _fitting(
        db.execute(f"SELECT {_EVENT} {happened} ORDER BY event.id", (revision,)), sys.maxsize, _MESSAGE_EVENT_BYTES
    )
    all_events = db.execute(f"SELECT count(*) {happened}", (revision,)).fetchone()[0] if more else len(events)
    return ReportMessage(
        run=run,
        process=span.process,
        revision=revision,
        steps=step_columns.read(found),
        offenders=offenders,
        replicas=replicas,
        events=events,
        left_out=LeftOutOfReport(
            steps=rest("step", where, len(found), _MOST_STEPS),
            offenders=offenders_left_out,
            replicas=rest("replica", where, len(replicas), _MOST_REPLICAS),
            events=all_events - len(events),
        ),
    )


def _offenders(db: sqlite3.Connection, where: str, values: tuple[int, ...]) -> tuple[list[Offender], int]:
    """The first offenders, and how many are left out."""
    shown: list[Offender] = []
    room, left_out = _OFFENDER_BYTES, 0
    for step, path, not_finite, share in db.execute(
        "SELECT step, path, not_finite, norm_share FROM offender JOIN path ON path.id = path_id "
        f"WHERE {where} ORDER BY position",
        values,
    ):
        room -= len(json.dumps(path)) + 80
        if room < 0:
            left_out += 1
        else:
            shown.append(Offender.model_construct(step=step, parameter=path, not_finite=not_finite, norm_share=share))
    return shown, left_out
