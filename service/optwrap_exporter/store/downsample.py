"""Downsamples steps. Of good ones it keeps the smallest and the largest norm of each bucket along an axis, or scalar.

Along the step number, buckets hold equally many step numbers. Along time, buckets are equally long, so a day of slow
steps after an hour of fast ones is still visible. Blocks have no times: a block takes the time of its step with the
smallest value, and a block that spans more than a bucket is read step by step.

Of bad steps, of which many may be too many, it keeps the first and the last of each outcome in each bucket, and counts
all of them.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Literal

from optwrap_exporter.store import rollups
from optwrap_exporter.store.rollups import IN_SPAN, SIZE, Block, Extreme, Span
from optwrap_exporter.wire.answers import BadSteps
from optwrap_exporter.wire.vocabulary import OUTCOMES

Axis = Literal["step", "time"]


def extremes(
    db: sqlite3.Connection, span: Span, blocks: dict[str, dict[int, Block]], points: int, axis: Axis
) -> set[Extreme]:
    """The good steps of a span to show: those with the extremes of each bucket. At most `points`.

    If the run has scalars, half of the points are for the norm, and half for the scalars, equally many for each.

    Args:
      db: the connection to read from.
      span: the steps.
      blocks: the stored blocks of the span, as `rollups.read` returns them.
      points: the most steps.
      axis: along which buckets are equally long.
    """
    along = _along_time if axis == "time" else _along_steps
    names = sorted(blocks.keys() - {rollups.NORM})
    shares = dict.fromkeys(names, points // 4 // len(names)) if names else {}
    shares[rollups.NORM] = (points - 2 * sum(shares.values())) // 2
    return {
        extreme
        for name, buckets in shares.items()
        if buckets
        for block in along(db, span, name, blocks[name], buckets)
        for extreme in (block.low, block.high)
        if extreme is not None
    }


def _along_steps(
    db: sqlite3.Connection, span: Span, name: str, blocks: dict[int, Block], buckets: int
) -> Iterable[Block]:
    """At most `buckets` blocks of a value of the good steps of a span, along the step number.

    Args:
      db: the connection to read from.
      span: the steps.
      name: of the value.
      blocks: the stored blocks of the span and the name, by number.
      buckets: the most blocks to return.
    """
    joined: dict[int, Block] = {}
    width = -(-(span.last - span.first + 1) // buckets)
    if width < 2 * SIZE:  # narrower than blocks can resolve, and few enough to read
        for row, _ in rollups.good(db, span, name):
            joined.setdefault((row[0] - span.first) // width, Block()).add(row)
    else:
        first = span.first // SIZE
        together = -(-(span.last // SIZE - first + 1) // buckets)
        for number, block in blocks.items():
            joined.setdefault((number - first) // together, Block()).merge(block)
    return joined.values()


def _along_time(
    db: sqlite3.Connection, span: Span, name: str, blocks: dict[int, Block], buckets: int
) -> Iterable[Block]:
    """At most `buckets` blocks of the good steps of a span, along time. Arguments as in `_along_steps`."""
    if span.last - span.first < 2 * SIZE * buckets:
        pieces = _each(db, span, name)
    else:
        pieces = list(_pieces(db, span, name, blocks, buckets))
    times = [time for time, _ in pieces]
    first = min(times, default=0.0)
    width = (max(times, default=0.0) - first) / buckets or 1.0
    joined: dict[int, Block] = {}
    for time, block in pieces:
        joined.setdefault(min(buckets - 1, int((time - first) / width)), Block()).merge(block)
    return joined.values()


def _each(db: sqlite3.Connection, span: Span, name: str) -> list[tuple[float, Block]]:
    """Every good step of the span as a block of its own, with its time."""
    found = []
    for row, time in rollups.good(db, span, name):
        block = Block()
        block.add(row)
        found.append((time, block))
    return found


def _pieces(
    db: sqlite3.Connection, span: Span, name: str, blocks: dict[int, Block], buckets: int
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
            yield from _each(db, span._replace(first=max(span.first, first), last=min(span.last, last)), name)
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
