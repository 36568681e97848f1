"""Which good steps stand for many: along an axis, of each part of it the ones with the smallest and the largest norm.

Along the numbers of the steps every part has as many numbers. Along time every part is as long, so that a day of slow
steps after an hour of fast ones is seen as well as they are. Blocks know no times: they are asked of the step with the
smallest norm, and a block that lasted longer than a part is read step by step.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from optwrap_exporter.store import rollups as blocks
from optwrap_exporter.store.rollups import Block

Axis = Literal["step", "time"]

IN_SPAN: Final = "run_id = ? AND process = ? AND step BETWEEN ? AND ?"


class Span(NamedTuple):
    """Steps of one process; the values for IN_SPAN."""

    run_id: int
    process: int
    first: int
    last: int


def along_steps(db: sqlite3.Connection, span: Span, parts: dict[int, Block], buckets: int) -> Iterable[Block]:
    """The good steps of a span, whose blocks are `parts`, as at most `buckets` blocks by number."""
    joined: dict[int, Block] = {}
    width = -(-(span.last - span.first + 1) // buckets)
    if width < 2 * blocks.SIZE:  # narrower than what the blocks can tell, and few enough to be read
        for row in _good(db, span):
            joined.setdefault((row[0] - span.first) // width, Block()).add(row[:4])
    else:
        first = span.first // blocks.SIZE
        together = -(-(span.last // blocks.SIZE - first + 1) // buckets)
        for number, block in parts.items():
            joined.setdefault((number - first) // together, Block()).merge(block)
    return joined.values()


def along_time(db: sqlite3.Connection, span: Span, parts: dict[int, Block], buckets: int) -> Iterable[Block]:
    """The same by when they were taken."""
    if span.last - span.first < 2 * blocks.SIZE * buckets:
        pieces = _each(db, span)
    else:
        pieces = list(_pieces(db, span, parts, buckets))
    times = [time for time, _ in pieces]
    first = min(times, default=0.0)
    width = (max(times, default=0.0) - first) / buckets or 1.0
    joined: dict[int, Block] = {}
    for time, block in pieces:
        joined.setdefault(min(buckets - 1, int((time - first) / width)), Block()).merge(block)
    return joined.values()


_Row = tuple[int, int, float | None, int, float]


def _good(db: sqlite3.Connection, span: Span) -> Iterator[_Row]:
    return db.execute(f"SELECT step, incarnation_id, norm, bad, time FROM step WHERE {IN_SPAN} AND bad = 0", span)


def _each(db: sqlite3.Connection, span: Span) -> list[tuple[float, Block]]:
    """Every good step of the span with its time, as a block of its own."""
    found = []
    for row in _good(db, span):
        block = Block()
        block.add(row[:4])
        found.append((row[4], block))
    return found


def _pieces(db: sqlite3.Connection, span: Span, parts: dict[int, Block], buckets: int) -> Iterator[tuple[float, Block]]:
    """The blocks with a time of each; of those that lasted longer than a bucket, their steps."""
    keys = [(number, *block.low[1:]) for number, block in parts.items() if block.low is not None]
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
            first, last = number * blocks.SIZE, (number + 1) * blocks.SIZE - 1
            yield from _each(db, span._replace(first=max(span.first, first), last=min(span.last, last)))
        else:
            yield time, parts[number]
