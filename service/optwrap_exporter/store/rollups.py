"""Rollups of step records: for every SIZE step numbers the count of steps and the smallest and largest norm.

With them a million steps are counted and downsampled without being read. A NaN norm counts as infinite here, and so
does the norm of a step with a non-finite scalar, so that downsampling keeps these steps.
"""

import dataclasses
import math
import sqlite3
from collections.abc import Iterable
from typing import Final

from optwrap_exporter.store import bulk
from optwrap_exporter.store.step_columns import ROLLED_UP

SIZE: Final = 64
"""Step numbers in a block."""

Row = tuple[int, int, float | None, int]
"""Step, incarnation id, norm as `step_columns.ROLLED_UP`, bad."""
Extreme = tuple[float, int, int]
"""Norm, step, incarnation id."""


@dataclasses.dataclass(slots=True)
class Block:
    """The rollup of some step records. `low` and `high` are the extreme norms of the good ones."""

    good: int = 0
    bad: int = 0
    low: Extreme | None = None
    high: Extreme | None = None

    def add(self, row: Row) -> None:
        """Add one step record."""
        step, incarnation, norm, bad = row
        if bad:
            self.bad += 1
            return
        self.good += 1
        here = (math.inf if norm is None else norm, step, incarnation)
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


def rows_of(run_id: int, process: int, rows: Iterable[Row]) -> list[bulk.Row]:
    """Step records as rows for `UPSERT`."""
    nothing = (None, None, None)
    return [
        (run_id, process, number, block.good, block.bad, *(block.low or nothing), *(block.high or nothing))
        for number, block in of_rows(rows).items()
    ]


def rewrite(db: sqlite3.Connection, run_id: int, process: int, first: int, last: int) -> None:
    """Recompute the blocks of these steps after some of them were deleted."""
    first, last = first // SIZE, last // SIZE
    db.execute(
        "DELETE FROM block WHERE run_id = ? AND process = ? AND block BETWEEN ? AND ?", (run_id, process, first, last)
    )
    bulk.write(db, UPSERT, rows_of(run_id, process, _rows(db, run_id, process, first * SIZE, (last + 1) * SIZE - 1)))


def _rows(db: sqlite3.Connection, run_id: int, process: int, first: int, last: int) -> Iterable[Row]:
    return db.execute(
        f"SELECT step, incarnation_id, {ROLLED_UP}, bad FROM step "
        "WHERE run_id = ? AND process = ? AND step BETWEEN ? AND ?",
        (run_id, process, first, last),
    )


def read(db: sqlite3.Connection, run_id: int, process: int, first: int, last: int) -> dict[int, Block]:
    """The blocks of the steps from `first` to `last`. Blocks at the ends include only steps in that range."""
    inner_first, inner_last = -(-first // SIZE), (last + 1) // SIZE - 1
    found = {}
    if inner_first <= inner_last:
        for number, good, bad, *extremes in db.execute(
            "SELECT block, good, bad, low, low_step, low_incarnation, high, high_step, high_incarnation FROM block "
            "WHERE run_id = ? AND process = ? AND block BETWEEN ? AND ?",
            (run_id, process, inner_first, inner_last),
        ):
            low, high = tuple(extremes[:3]), tuple(extremes[3:])
            found[number] = Block(good, bad, low if good else None, high if good else None)
        ends = [(first, inner_first * SIZE - 1), ((inner_last + 1) * SIZE, last)]
    else:
        ends = [(first, last)]
    for start, end in ends:
        if start <= end:
            found.update(of_rows(_rows(db, run_id, process, start, end)))
    return found
