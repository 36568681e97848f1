"""The queries of the API. Each runs in a read transaction of the caller, so it sees one state of the database."""

import json
import sqlite3
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple

from optwrap_exporter.store import event_list
from optwrap_exporter.store.steps import downsample, rollups, scalar_rollups, step_columns
from optwrap_exporter.store.steps.downsample import IN_SPAN, Axis, Span
from optwrap_exporter.wire.answers import (
    Gap,
    LeftOutOfReport,
    ReportMessage,
)
from optwrap_exporter.wire.requests import Offender, ReplicaRecord
from optwrap_exporter.wire.step_answers import BadSteps, StepsAnswer

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
    buckets: int | None,
) -> StepsAnswer:
    """`Store.steps`."""
    key = run_id(db, run)
    found: list[step_columns.Row] = []
    thinned: list[BadSteps] = []
    replicas: list[ReplicaRecord] = []
    good, bad, left_out = 0, 0, 0
    in_buckets = None
    if key is not None:
        span = _narrowed(db, Span(key, process, since or 0, _LAST if until is None else until))
        blocks = rollups.read(db, *span, norms=buckets is not None)
        good, bad = blocks.good, blocks.bad
        joined: dict[int, rollups.Block] | None = None
        if buckets is not None:
            cut = downsample.cut_of(span, blocks, buckets, axis)
            joined = downsample.bucketed(db, span, blocks, cut)
            in_buckets = downsample.as_answer(span, cut, joined)
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
                # With the first and the last step, if there is room for them.
                ends = 2 if points >= 4 else 0
                chosen = scalar_rollups.extremes(db, span, blocks, (points - ends) // 2, axis)
                count = (points - ends - len(chosen)) // 2
                if joined is None and count:
                    joined = downsample.bucketed(db, span, blocks, downsample.cut_of(span, blocks, count, axis))
                for block in downsample.fewer(joined or {}, count):
                    chosen.update(extreme[1:] for extreme in (block.low, block.high) if extreme is not None)
                found += _chosen(db, span, chosen, ends=bool(ends))
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
        buckets=in_buckets,
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


def _chosen(db: sqlite3.Connection, span: Span, chosen: set[tuple[int, int]], *, ends: bool) -> list[step_columns.Row]:
    """Steps by number and incarnation id, and the good ones at the ends of the span."""
    for step in (span.first, span.last) if ends else ():
        chosen |= set(
            db.execute(
                f"SELECT step, incarnation_id FROM step WHERE {IN_SPAN} AND bad = 0 ORDER BY time DESC LIMIT 1",
                span._replace(first=step, last=step),
            )
        )
    return db.execute(
        f"""
        SELECT {step_columns.SELECTED} FROM json_each(?) AS chosen CROSS JOIN step ON run_id = ? AND process = ?
            AND step = json_extract(chosen.value, '$[0]') AND incarnation_id = json_extract(chosen.value, '$[1]')
        """,
        (json.dumps(sorted(chosen)), span.run_id, span.process),
    ).fetchall()


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
    found_events = db.execute(f"SELECT {event_list.COLUMNS} {happened} ORDER BY event.id", (revision,))
    events, more = event_list.fitting(found_events, sys.maxsize, _MESSAGE_EVENT_BYTES)
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
