"""Rollups of scalars: for every SIZE step numbers, the good steps with the smallest and the largest value of each.

Downsampling keeps them, so that a spike of the loss alone is seen. Values that are not finite are not counted here:
`rollups` keeps their steps.
"""

import math
import sqlite3
from collections.abc import Iterable
from typing import Final

from optwrap_exporter.store import bulk
from optwrap_exporter.store.steps import downsample
from optwrap_exporter.store.steps.downsample import IN_SPAN, Axis, Span
from optwrap_exporter.store.steps.rollups import SIZE, Blocks
from optwrap_exporter.wire.requests import StepColumns

Value = tuple[str, int, int, float]
"""Of one good step: the scalar's name, step, incarnation id, value."""
_Extreme = tuple[float, int, int]
"""Value, step, incarnation id."""

UPSERT: Final = """
INSERT INTO scalar_block VALUES ?
ON CONFLICT DO UPDATE SET
    low = min(low, excluded.low),
    low_step = iif(excluded.low < low, excluded.low_step, low_step),
    low_incarnation = iif(excluded.low < low, excluded.low_incarnation, low_incarnation),
    high = max(high, excluded.high),
    high_step = iif(excluded.high > high, excluded.high_step, high_step),
    high_incarnation = iif(excluded.high > high, excluded.high_incarnation, high_incarnation)
"""
_BLOCKS: Final = "run_id = ? AND process = ? AND block BETWEEN ? AND ?"


class _Extremes:
    """The extremes of some scalars, by a key and the scalar's name."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], tuple[_Extreme, _Extreme]] = {}

    def add(self, key: int, name: str, low: _Extreme, high: _Extreme) -> None:
        if (before := self.found.get((key, name))) is not None:
            known_low, known_high = before
            low, high = min(known_low, low), max(known_high, high)
        self.found[key, name] = (low, high)


def values_of(columns: StepColumns, good: set[int], incarnation_id: int) -> Iterable[Value]:
    """The finite scalars of good steps.

    Args:
      columns: step records.
      good: the numbers of those that are good and not stored yet.
      incarnation_id: their incarnation.
    """
    for name, values in columns.scalars.items():
        for step, value in zip(columns.step, values, strict=True):
            if value is not None and math.isfinite(value) and step in good:
                yield name, step, incarnation_id, value


def rows_of(run_id: int, process: int, values: Iterable[Value]) -> list[bulk.Row]:
    """The rollups of scalars as rows for `UPSERT`."""
    extremes = _Extremes()
    for name, step, incarnation_id, value in values:
        extremes.add(step // SIZE, name, (value, step, incarnation_id), (value, step, incarnation_id))
    return [(run_id, process, number, name, *low, *high) for (number, name), (low, high) in extremes.found.items()]


def rewrite(db: sqlite3.Connection, span: Span) -> None:
    """Recompute the rollups of a span after some of its steps were deleted."""
    first, last = span.first // SIZE, span.last // SIZE
    of = (span.run_id, span.process, first, last)
    if db.execute(f"DELETE FROM scalar_block WHERE {_BLOCKS}", of).rowcount:
        whole = span._replace(first=first * SIZE, last=(last + 1) * SIZE - 1)
        values = ((name, step, incarnation_id, value) for name, step, incarnation_id, value, _ in _stored(db, whole))
        bulk.write(db, UPSERT, rows_of(span.run_id, span.process, values))


def _stored(db: sqlite3.Connection, span: Span) -> Iterable[tuple[str, int, int, float, float]]:
    """The fields of Value, and the step's time."""
    return db.execute(
        "SELECT scalar.key, step, incarnation_id, scalar.value, time "
        "FROM step CROSS JOIN json_each(scalars) AS scalar "
        f"WHERE {IN_SPAN} AND bad = 0 AND scalar.type IN ('real', 'integer')",
        span,
    )


def extremes(db: sqlite3.Connection, span: Span, blocks: Blocks, most: int, axis: Axis) -> set[tuple[int, int]]:
    """The good steps with the extremes of each scalar, in equally many buckets along `axis` for each.

    Args:
      db: the connection to read from.
      span: the steps.
      blocks: the stored blocks of the span.
      most: the most steps.
      axis: the axis.

    Returns:
      Step and incarnation id of each.
    """
    first, last = span.first // SIZE, span.last // SIZE
    of = (span.run_id, span.process, first, last)
    names = db.execute(f"SELECT count(DISTINCT name) FROM scalar_block WHERE {_BLOCKS}", of).fetchone()[0]
    buckets = names and most // 2 // names
    if not buckets:
        return set()
    cut = downsample.cut_of(span, blocks, buckets, axis)
    partly = {number for number in (first, last) if number * SIZE < span.first or (number + 1) * SIZE - 1 > span.last}
    placed = {n: bucket for n, bucket in downsample.place(span, blocks, cut).items() if n not in partly}
    found = _Extremes()
    for number, name, low, low_step, low_incarnation, high, high_step, high_incarnation in db.execute(
        "SELECT block, name, low, low_step, low_incarnation, high, high_step, high_incarnation "
        f"FROM scalar_block WHERE {_BLOCKS}",
        of,
    ):
        if number in placed:
            found.add(placed[number], name, (low, low_step, low_incarnation), (high, high_step, high_incarnation))
    for part in downsample.parts(span, set(blocks.numbers) - placed.keys()):
        for name, step, incarnation_id, value, time in _stored(db, part):
            one = (value, step, incarnation_id)
            found.add(cut.at(step if axis == "step" else time), name, one, one)
    return {(step, incarnation_id) for ends in found.found.values() for _, step, incarnation_id in ends}
