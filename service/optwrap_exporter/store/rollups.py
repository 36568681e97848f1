"""Rollups of step records: for every SIZE step numbers the count of steps, and the extremes of the norm and of scalars.

With them a million steps are counted and downsampled without being read. A NaN norm counts as infinite here, and so
does the norm of a step with a non-finite scalar, so that downsampling keeps these steps.
"""

import dataclasses
import math
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from optwrap_exporter.store import bulk
from optwrap_exporter.store.step_columns import ROLLED_UP

SIZE: Final = 64
"""Step numbers in a block."""

IN_SPAN: Final = "run_id = ? AND process = ? AND step BETWEEN ? AND ?"


class Span(NamedTuple):
    """A range of steps of one process: the parameters of IN_SPAN."""

    run_id: int
    process: int
    first: int
    last: int


NORM: Final = ""
"""The name of the norm among the rolled up values. All others are scalars."""

Row = tuple[int, int, float | None, int]
"""Step, incarnation id, norm as `step_columns.ROLLED_UP` or finite value of a scalar, bad."""
Extreme = tuple[float, int, int]
"""Value, step, incarnation id."""


@dataclasses.dataclass(slots=True)
class Block:
    """The rollup of one value of some step records. `low` and `high` are its extremes in the good ones."""

    good: int = 0
    bad: int = 0
    low: Extreme | None = None
    high: Extreme | None = None

    def add(self, row: Row) -> None:
        """Add one step record."""
        step, incarnation, value, bad = row
        if bad:
            self.bad += 1
            return
        self.good += 1
        here = (math.inf if value is None else value, step, incarnation)
        self._extend(here, here)

    def merge(self, other: "Block") -> None:
        """Add another block."""
        self.good += other.good
        self.bad += other.bad
        if other.low is not None and other.high is not None:
            self._extend(other.low, other.high)

    def _extend(self, low: Extreme, high: Extreme) -> None:
        if self.low is None or low[0] < self.low[0]:
            self.low = low
        if self.high is None or high[0] > self.high[0]:
            self.high = high


def of_rows(rows: Iterable[Row]) -> dict[int, Block]:
    """The blocks of step records, by block number."""
    found: dict[int, Block] = {}
    for row in rows:
        number = row[0] // SIZE
        if (block := found.get(number)) is None:
            block = found[number] = Block()
        block.add(row)
    return found


UPSERT: Final = """
INSERT INTO block VALUES ?
ON CONFLICT DO UPDATE SET
    good = good + excluded.good,
    bad = bad + excluded.bad,
    low = CASE WHEN {lower} THEN excluded.low ELSE low END,
    low_step = CASE WHEN {lower} THEN excluded.low_step ELSE low_step END,
    low_incarnation = CASE WHEN {lower} THEN excluded.low_incarnation ELSE low_incarnation END,
    high = CASE WHEN {higher} THEN excluded.high ELSE high END,
    high_step = CASE WHEN {higher} THEN excluded.high_step ELSE high_step END,
    high_incarnation = CASE WHEN {higher} THEN excluded.high_incarnation ELSE high_incarnation END
""".format(
    lower="excluded.low IS NOT NULL AND (low IS NULL OR excluded.low < low)",
    higher="excluded.high IS NOT NULL AND (high IS NULL OR excluded.high > high)",
)


def rows_of(run_id: int, process: int, name: str, rows: Iterable[Row]) -> list[bulk.Row]:
    """Step records as rows for `UPSERT`: their norms, or their values of a scalar."""
    nothing = (None, None, None)
    return [
        (run_id, process, number, name, block.good, block.bad, *(block.low or nothing), *(block.high or nothing))
        for number, block in of_rows(rows).items()
    ]


def rewrite(db: sqlite3.Connection, span: Span) -> None:
    """Recompute the blocks of a span after some of its steps were deleted."""
    first, last = span.first // SIZE, span.last // SIZE
    db.execute(f"DELETE FROM block WHERE {_BLOCKS}", (span.run_id, span.process, first, last))
    whole = span._replace(first=first * SIZE, last=(last + 1) * SIZE - 1)
    for name, rows in _rows(db, whole).items():
        bulk.write(db, UPSERT, rows_of(span.run_id, span.process, name, rows))


_BLOCKS: Final = "run_id = ? AND process = ? AND block BETWEEN ? AND ?"


def good(db: sqlite3.Connection, span: Span, name: str) -> Iterator[tuple[Row, float]]:
    """The good steps of a span that have a value of this name, each as a Row, and its time."""
    if name == NORM:
        value, has = ROLLED_UP, "1"
    else:
        value = f"json_extract(scalars, '$.{name}')"  # names have letters, digits and '_' only
        has = f"typeof({value}) IN ('real', 'integer')"
    for *row, time in db.execute(
        f"SELECT step, incarnation_id, {value}, bad, time FROM step WHERE {IN_SPAN} AND bad = 0 AND {has}", span
    ):
        yield (row[0], row[1], row[2], row[3]), time


def _rows(db: sqlite3.Connection, span: Span) -> dict[str, list[Row]]:
    """The steps of a span by the names of their values."""
    norms = db.execute(f"SELECT step, incarnation_id, {ROLLED_UP}, bad FROM step WHERE {IN_SPAN}", span)
    found: dict[str, list[Row]] = {NORM: norms.fetchall()}
    for name, *row in db.execute(
        "SELECT scalar.key, step, incarnation_id, scalar.value, bad FROM step CROSS JOIN json_each(scalars) AS scalar "
        f"WHERE {IN_SPAN} AND bad = 0 AND scalar.type IN ('real', 'integer')",
        span,
    ):
        found.setdefault(name, []).append((row[0], row[1], row[2], row[3]))
    return found


def read(db: sqlite3.Connection, span: Span) -> dict[str, dict[int, Block]]:
    """The blocks of the steps of a span, by name and number. Blocks at the ends include only steps in that span.

    Under `NORM` there are always blocks, unless the span has no steps.
    """
    inner_first, inner_last = -(-span.first // SIZE), (span.last + 1) // SIZE - 1
    found: dict[str, dict[int, Block]] = {NORM: {}}
    if inner_first <= inner_last:
        for number, name, good, bad, *extremes in db.execute(
            "SELECT block, name, good, bad, low, low_step, low_incarnation, high, high_step, high_incarnation "
            f"FROM block WHERE {_BLOCKS}",
            (span.run_id, span.process, inner_first, inner_last),
        ):
            low, high = tuple(extremes[:3]), tuple(extremes[3:])
            found.setdefault(name, {})[number] = Block(good, bad, low if good else None, high if good else None)
        ends = [(span.first, inner_first * SIZE - 1), ((inner_last + 1) * SIZE, span.last)]
    else:
        ends = [(span.first, span.last)]
    for start, end in ends:
        if start <= end:
            for name, rows in _rows(db, span._replace(first=start, last=end)).items():
                found.setdefault(name, {}).update(of_rows(rows))
    return found
