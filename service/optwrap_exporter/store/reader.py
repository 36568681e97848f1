"""The queries of the API. Each runs in a read transaction of the caller, so it sees one state of the database."""

import json
import math
import sqlite3
from collections.abc import Iterable
from typing import Final

from optwrap_exporter.store import downsample, rollups
from optwrap_exporter.store.downsample import IN_SPAN, Axis, Span
from optwrap_exporter.wire.answers import Event, Page, ReportMessage, StepsAnswer
from optwrap_exporter.wire.cursor import decode, encode
from optwrap_exporter.wire.requests import Offender, ReplicaRecord, StepColumns
from optwrap_exporter.wire.vocabulary import OUTCOMES, EventKind

_COLUMNS: Final = "step, time, outcome, finite, norm, mini_step, interpolated"
_LAST: Final = 2**62

_Row = tuple[int, float, int, int, float | None, int | None, int]


def run_id(db: sqlite3.Connection, run: str) -> int | None:
    """The run's key; None if the run is unknown."""
    row = db.execute("SELECT id FROM run WHERE run = ?", (run,)).fetchone()
    return row and int(row[0])


def steps(
    db: sqlite3.Connection, run: str, process: int, *, since: int | None, until: int | None, points: int, axis: Axis
) -> StepsAnswer:
    """`Store.steps`."""
    key = run_id(db, run)
    found: list[_Row] = []
    replicas: list[ReplicaRecord] = []
    total, good = 0, 0
    if key is not None:
        span = _narrowed(db, Span(key, process, since or 0, _LAST if until is None else until))
        blocks = rollups.read(db, *span) if span.first <= span.last else {}
        good = sum(block.good for block in blocks.values())
        total = good + sum(block.bad for block in blocks.values())
        if good <= points:
            found = db.execute(f"SELECT {_COLUMNS} FROM step WHERE {IN_SPAN}", span).fetchall()
        else:
            # SQLite uses the partial index only if the query repeats its condition.
            found = db.execute(
                f"SELECT {_COLUMNS} FROM step INDEXED BY step_bad WHERE {IN_SPAN} AND bad = 1", span
            ).fetchall()
            found += _sampled(db, span, blocks, points // 2, axis)
        found.sort(key=lambda row: row[:2])
        shown = {row[0] for row in found}
        replicas = [record for record in _replicas(db, IN_SPAN, span) if record.step in shown]
    return StepsAnswer(
        run=run,
        process=process,
        since=since,
        until=until,
        total=total,
        sampled=good > points,
        columns=columns(found),
        replicas=replicas,
    )


def _replicas(db: sqlite3.Connection, where: str, values: tuple[int, ...]) -> list[ReplicaRecord]:
    """Replica records, by step."""
    names = ("step", "replica", "process", "device", "count", "of")
    rows = db.execute(
        "SELECT step, replica, of_process, device, replica_count, replicas FROM replica "
        f"WHERE {where} ORDER BY step, revision",
        values,
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
    db: sqlite3.Connection, span: Span, blocks: dict[int, rollups.Block], buckets: int, axis: Axis
) -> list[_Row]:
    """Good steps, downsampled: those with the smallest and the largest norm of each bucket."""
    if buckets < 1:
        return []
    joined = (downsample.along_time if axis == "time" else downsample.along_steps)(db, span, blocks, buckets)
    chosen = {extreme[1:] for block in joined for extreme in (block.low, block.high) if extreme is not None}
    return db.execute(
        f"""
        SELECT {_COLUMNS} FROM json_each(?) AS chosen CROSS JOIN step ON run_id = ? AND process = ?
            AND step = json_extract(chosen.value, '$[0]') AND incarnation_id = json_extract(chosen.value, '$[1]')
        """,
        (json.dumps(sorted(chosen)), span.run_id, span.process),
    ).fetchall()


def columns(rows: Iterable[_Row]) -> StepColumns:
    """Step rows as columns."""
    table = list(zip(*rows, strict=True)) or [()] * 7
    step, time, outcome, finite, norm, mini_step, interpolated = table
    # They were validated on arrival. Validating a million of them again would be slow.
    return StepColumns.model_construct(
        step=list(step),
        time=list(time),
        outcome=[OUTCOMES[v] for v in outcome],
        finite=[bool(f) for f in finite],
        norm=[math.nan if n is None else n for n in norm],
        mini_step=list(mini_step),
        interpolated=[bool(i) for i in interpolated] if any(interpolated) else None,
    )


_EVENT: Final = "event.id, run.run, process, kind, time, step, attempt, detail"


def _event(row: tuple[int, str, int, EventKind, float, int | None, str, str]) -> Event:
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
    ).fetchall()
    items = [_event(row) for row in rows[:limit]]
    return Page(items=items, cursor=encode(of, [items[-1].id]) if len(rows) > limit else None)


def changes(db: sqlite3.Connection, after: int, run: str | None, limit: int) -> list[ReportMessage]:
    """`Store.changes`."""
    only = "" if run is None else "AND run.run = ?"
    rows = db.execute(
        "SELECT revision, run.id, run.run, process, first_step, last_step FROM change JOIN run ON run.id = run_id "
        f"WHERE revision > ? {only} ORDER BY revision LIMIT ?",
        (after, *([] if run is None else [run]), limit),
    ).fetchall()
    return [
        _change(db, revision, name, Span(key, process, first, last) if first is not None else Span(key, process, 1, 0))
        for revision, key, name, process, first, last in rows
    ]


def _change(db: sqlite3.Connection, revision: int, run: str, span: Span) -> ReportMessage:
    where, values = f"{IN_SPAN} AND revision = ?", (*span, revision)
    found = db.execute(f"SELECT {_COLUMNS} FROM step WHERE {where} ORDER BY step", values).fetchall()
    offenders = db.execute(
        f"SELECT step, path, not_finite FROM offender JOIN path ON path.id = path_id WHERE {where} ORDER BY position",
        values,
    )
    happened = db.execute(
        f"SELECT {_EVENT} FROM event JOIN run ON run.id = event.run_id WHERE revision = ? AND NOT repeated "
        "ORDER BY event.id",
        (revision,),
    )
    return ReportMessage(
        run=run,
        process=span.process,
        revision=revision,
        steps=columns(found),
        offenders=[Offender.model_construct(step=step, parameter=path, not_finite=n) for step, path, n in offenders],
        replicas=_replicas(db, where, values),
        events=[_event(row) for row in happened],
    )
