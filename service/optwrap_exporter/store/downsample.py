"""Downsamples steps. Of good ones it keeps the smallest and the largest norm of each bucket along an axis.

Along the step number, buckets hold equally many step numbers. Along time, buckets are equally long, so a day of slow
steps after an hour of fast ones is still visible. Blocks have no times: a block takes the time of its step with the
smallest norm, and a block that spans more than a bucket is read step by step.

Of bad steps, of which many may be too many, it keeps the first and the last of each outcome in each bucket, and counts
all of them.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from optwrap_exporter.store.rollups import SIZE, Block
from optwrap_exporter.store.step_columns import ROLLED_UP
from optwrap_exporter.wire.answers import BadSteps
from optwrap_exporter.wire.vocabulary import OUTCOMES

Axis = Literal["step", "time"]

IN_SPAN: Final = "run_id = ? AND process = ? AND step BETWEEN ? AND ?"


class Span(NamedTuple):
    """A range of steps of one process: the parameters of IN_SPAN."""

    run_id: int
    process: int
    first: int
    last: int


def along_steps(db: sqlite3.Connection, span: Span, blocks: dict[int, Block], buckets: int) -> Iterable[Block]:
    """At most `buckets` blocks of the good steps of a span, along the step number.

    Args:
      db: the connection to read from.
      span: the steps.
      blocks: the stored blocks of the span, by number.
      buckets: the most blocks to return.
    """
    joined: dict[int, Block] = {}
    width = -(-(span.last - span.first + 1) // buckets)
    if width < 2 * SIZE:  # narrower than blocks can resolve, and few enough to read
        for row in _good(db, span):
            joined.setdefault((row[0] - span.first) // width, Block()).add(row[:4])
    else:
        first = span.first // SIZE
        together = -(-(span.last // SIZE - first + 1) // buckets)
        for number, block in blocks.items():
            joined.setdefault((number - first) // together, Block()).merge(block)
    return joined.values()


def along_time(db: sqlite3.Connection, span: Span, blocks: dict[int, Block], buckets: int) -> Iterable[Block]:
    """At most `buckets` blocks of the good steps of a span, along time. Arguments as in `along_steps`."""
    if span.last - span.first < 2 * SIZE * buckets:
        pieces = _each(db, span)
    else:
        pieces = list(_pieces(db, span, blocks, buckets))
    times = [time for time, _ in pieces]
    first = min(times, default=0.0)
    width = (max(times, default=0.0) - first) / buckets or 1.0
    joined: dict[int, Block] = {}
    for time, block in pieces:
        joined.setdefault(min(buckets - 1, int((time - first) / width)), Block()).merge(block)
    return joined.values()


_Row = tuple[int, int, float | None, int, float]


def _good(db: sqlite3.Connection, span: Span) -> Iterator[_Row]:
    return db.execute(
        f"SELECT step, incarnation_id, {ROLLED_UP}, bad, time FROM step WHERE {IN_SPAN} AND bad = 0", span
    )


def _each(db: sqlite3.Connection, span: Span) -> list[tuple[float, Block]]:
    """Every good step of the span as a block of its own, with its time."""
    found = []
    for row in _good(db, span):
        block = Block()
        block.add(row[:4])
        found.append((row[4], block))
    return found


def _pieces(
    db: sqlite3.Connection, span: Span, blocks: dict[int, Block], buckets: int
) -> Iterator[tuple[float, Block]]:
    """Blocks with their times. A block that spans more than a bucket is replaced by its steps, one block each."""
    keys = [(number, *block.low[1:]) for number, block in blocks.items() if block.low is not None]
    times = sorted(
        db.execute(
            """
            SELECT json_extract(chosen.value, '$[0]'), time FROM json_each(?) AS chosen CROSS JOIN step
                ON run_id = ? AND process = ?
                AND step = json_extract(chosen.value, '$[1]') AND incarnation_id = json_extract(chosen.value, '$[2]')
            """,
            (json.dumps(keys), span.run_id, span.process),
        )
    )
    width = (max(time for _, time in times) - min(time for _, time in times)) / buckets
    for i, (number, time) in enumerate(times):
        before, after = times[max(0, i - 1)], times[min(len(times) - 1, i + 1)]
        if abs(after[1] - before[1]) > 2 * width:
            first, last = number * SIZE, (number + 1) * SIZE - 1
            yield from _each(db, span._replace(first=max(span.first, first), last=min(span.last, last)))
        else:
            yield time, blocks[number]


def bad_steps(db: sqlite3.Connection, span: Span, buckets: int, axis: Axis) -> tuple[list[BadSteps], set[int]]:
    """All bad steps of a span, counted in at most `buckets` buckets of equal length along `axis`.

    Returns:
      The buckets that have bad steps, by their first step, and the step numbers to show.
    """
    column = "time" if axis == "time" else "step"
    # SQLite uses the partial index only if the query repeats its condition.
    bad = f"FROM step INDEXED BY step_bad WHERE {IN_SPAN} AND bad = 1"
    first, last = db.execute(f"SELECT min({column}), max({column}) {bad}", span).fetchone()
    if first is None:
        return [], set()
    width = (last - first + (axis == "step")) / buckets or 1.0
    counted: dict[int, list[tuple[int, int, int, int]]] = {}
    for bucket, *row in db.execute(
        f"SELECT min(?, CAST(({column} - ?) / ? AS INTEGER)) AS bucket, outcome, count(*), min(step), max(step) {bad} "
        "GROUP BY bucket, outcome",
        (buckets - 1, first, width, *span),
    ):
        counted.setdefault(bucket, []).append(tuple(row))
    found = [
        BadSteps(
            since=min(since for _, _, since, _ in rows),
            until=max(until for _, _, _, until in rows),
            total=sum(total for _, total, _, _ in rows),
            outcomes={OUTCOMES[outcome]: total for outcome, total, _, _ in rows},
        )
        for rows in counted.values()
    ]
    shown = {step for rows in counted.values() for _, _, *ends in rows for step in ends}
    return sorted(found, key=lambda one: (one.since, one.until)), shown
