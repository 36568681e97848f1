"""Rollups of step records: for every SIZE step numbers, how many steps of each kind there are, their norms, and when.

With them a million steps are counted, bucketed and downsampled without being read. For downsampling a NaN norm counts
as infinite, and so does the norm of a step with a non-finite scalar, so that these steps are kept.
"""

import dataclasses
import math
import operator
import sqlite3
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any, Final, NamedTuple

from optwrap_exporter.store import bulk
from optwrap_exporter.store.steps.step_columns import ROLLED_UP
from optwrap_exporter.wire.step_answers import IS_BAD, NOT_FINITE_KINDS, STEP_KINDS
from optwrap_exporter.wire.vocabulary import OUTCOMES

SIZE: Final = 64
"""Step numbers in a block."""

_NOT_FINITE: Final = tuple(STEP_KINDS.index(NOT_FINITE_KINDS.get(outcome, outcome)) for outcome in OUTCOMES)
"""For each of OUTCOMES, the index in STEP_KINDS of a step with non-finite gradients."""
_CASES: Final = " ".join(f"WHEN {outcome} THEN {kind}" for outcome, kind in enumerate(_NOT_FINITE))
KIND: Final = f"iif(finite, outcome, CASE outcome {_CASES} END)"
"""A step's index in STEP_KINDS, from the columns of its row: `kinds_of` in SQL."""
COLUMNS: Final = f"step, incarnation_id, {KIND}, norm, {ROLLED_UP}, time"
"""Selects the `Row` of a step."""

_KINDS: Final = range(len(STEP_KINDS))

Row = tuple[int, int, int, float | None, float | None, float]
"""Step, incarnation id, index in STEP_KINDS, norm (None: NaN), norm as ROLLED_UP, time."""
Extreme = tuple[float, int, int]
"""Norm, step, incarnation id."""


def kinds_of(outcomes: Sequence[int], finite: Sequence[bool]) -> Sequence[int]:
    """For each step, its index in STEP_KINDS. `outcomes` are indices in OUTCOMES."""
    if all(finite):
        return outcomes
    return [outcome if known else _NOT_FINITE[outcome] for outcome, known in zip(outcomes, finite, strict=True)]


@dataclasses.dataclass(slots=True)
class Block:
    """The rollup of some step records."""

    counts: list[int] = dataclasses.field(default_factory=lambda: [0] * len(_KINDS))
    """By STEP_KINDS."""
    low: Extreme | None = None
    """The smallest norm of a good step, as ROLLED_UP; None if there is none."""
    high: Extreme | None = None
    norms: "array[float]" = dataclasses.field(default_factory=lambda: array("d"))
    """The finite norms of all steps: parts that are sorted, which makes it cheaper to sort all of them."""
    first_time: float = math.inf
    last_time: float = -math.inf

    @property
    def good(self) -> int:
        """Good steps."""
        return sum(self.counts) - self.bad

    @property
    def bad(self) -> int:
        """All other steps."""
        return sum(compress(self.counts, IS_BAD))

    def add(self, row: Row) -> None:
        """Add one step record."""
        step, incarnation, kind, norm, kept, time = row
        self.counts[kind] += 1
        if norm is not None and norm < math.inf:
            self.norms.append(norm)
        self.first_time = min(self.first_time, time)
        self.last_time = max(self.last_time, time)
        if not IS_BAD[kind]:
            here = (math.inf if kept is None else kept, step, incarnation)
            if self.low is None or here[0] < self.low[0]:
                self.low = here
            if self.high is None or here[0] > self.high[0]:
                self.high = here

    def merge(self, other: "Block") -> None:
        """Add another block."""
        self.counts = list(map(operator.add, self.counts, other.counts))
        self.norms += other.norms
        self.first_time = min(self.first_time, other.first_time)
        self.last_time = max(self.last_time, other.last_time)
        if other.low is not None and (self.low is None or other.low[0] < self.low[0]):
            self.low = other.low
        if other.high is not None and (self.high is None or other.high[0] > self.high[0]):
            self.high = other.high


class Columns(NamedTuple):
    """Step records sorted by step: the columns of `Row`."""

    steps: Sequence[int]
    incarnations: Sequence[int]
    kinds: Sequence[int]
    norms: Sequence[float | None]
    kept: Sequence[float | None]
    times: Sequence[float]


def of(rows: Sequence[Row]) -> Block:
    """The rollup of step records, of one or more, in any order."""
    return _block(Columns(*zip(*rows, strict=True)))


def of_rows(rows: Iterable[Row]) -> dict[int, Block]:
    """The blocks of step records, by block number. The rows are sorted by step."""
    columns = list(zip(*rows, strict=True))
    return of_columns(Columns(*columns)) if columns else {}


def of_columns(columns: Columns) -> dict[int, Block]:
    """The blocks of step records, by block number."""
    steps, incarnations, kinds, norms, kept, times = columns
    if steps[0] // SIZE == steps[-1] // SIZE:  # most reports
        return {steps[0] // SIZE: _block(columns)}
    found: dict[int, Block] = {}
    start = 0
    while start < len(steps):
        number = steps[start] // SIZE
        end = bisect_left(steps, (number + 1) * SIZE, start)
        part = slice(start, end)
        found[number] = _block(
            Columns(steps[part], incarnations[part], kinds[part], norms[part], kept[part], times[part])
        )
        start = end
    return found


def _block(columns: Columns) -> Block:
    steps, incarnations, kinds, norms, kept, times = columns
    if len(steps) == 1:
        block = Block()
        block.add((steps[0], incarnations[0], kinds[0], norms[0], kept[0], times[0]))
        return block
    counts, any_bad = [0] * len(_KINDS), False
    for kind in set(kinds):
        counts[kind] = kinds.count(kind)
        any_bad |= IS_BAD[kind]
    block = Block(
        counts,
        norms=array("d", sorted([norm for norm in norms if norm is not None and norm < math.inf])),
        first_time=min(times),
        last_time=max(times),
    )
    if any_bad:
        good = [i for i, kind in enumerate(kinds) if not IS_BAD[kind]]
        if not good:
            return block
        steps, incarnations, kept = [steps[i] for i in good], [incarnations[i] for i in good], [kept[i] for i in good]
    values = [math.inf if norm is None else norm for norm in kept]
    low, high = min(values), max(values)
    lowest, highest = values.index(low), values.index(high)
    block.low = (low, steps[lowest], incarnations[lowest])
    block.high = (high, steps[highest], incarnations[highest])
    return block


UPSERT: Final = """
INSERT INTO block VALUES ?
ON CONFLICT DO UPDATE SET
    {counts},
    low = CASE WHEN {lower} THEN excluded.low ELSE low END,
    low_step = CASE WHEN {lower} THEN excluded.low_step ELSE low_step END,
    low_incarnation = CASE WHEN {lower} THEN excluded.low_incarnation ELSE low_incarnation END,
    high = CASE WHEN {higher} THEN excluded.high ELSE high END,
    high_step = CASE WHEN {higher} THEN excluded.high_step ELSE high_step END,
    high_incarnation = CASE WHEN {higher} THEN excluded.high_incarnation ELSE high_incarnation END,
    first_time = min(first_time, excluded.first_time),
    last_time = max(last_time, excluded.last_time),
    norms = CAST(norms || excluded.norms AS BLOB)
""".format(
    counts=", ".join(f"{kind} = {kind} + excluded.{kind}" for kind in STEP_KINDS),
    lower="excluded.low IS NOT NULL AND (low IS NULL OR excluded.low < low)",
    higher="excluded.high IS NOT NULL AND (high IS NULL OR excluded.high > high)",
)


def rows_of(run_id: int, process: int, blocks: dict[int, Block]) -> list[bulk.Row]:
    """Blocks as rows for `UPSERT`."""
    nothing = (None, None, None)
    return [
        (
            run_id,
            process,
            number,
            *block.counts,
            *(block.low or nothing),
            *(block.high or nothing),
            block.first_time,
            block.last_time,
            block.norms.tobytes(),
        )
        for number, block in blocks.items()
    ]


def rewrite(db: sqlite3.Connection, run_id: int, process: int, first: int, last: int) -> None:
    """Recompute the blocks of these steps after some of them were deleted."""
    first, last = first // SIZE, last // SIZE
    db.execute(
        "DELETE FROM block WHERE run_id = ? AND process = ? AND block BETWEEN ? AND ?", (run_id, process, first, last)
    )
    blocks = of_rows(rows(db, run_id, process, first * SIZE, (last + 1) * SIZE - 1))
    bulk.write(db, UPSERT, rows_of(run_id, process, blocks))


def rows(db: sqlite3.Connection, run_id: int, process: int, first: int, last: int) -> Iterable[Row]:
    """The step records from `first` to `last`, sorted by step."""
    return db.execute(
        f"SELECT {COLUMNS} FROM step WHERE run_id = ? AND process = ? AND step BETWEEN ? AND ? ORDER BY step",
        (run_id, process, first, last),
    )


class Blocks:
    """Blocks of one process as columns, sorted by number. A long run has too many for an object each.

    Args:
      rows: the columns of `_STORED` of each.
    """

    def __init__(self, rows: Iterable[Sequence[Any]]) -> None:
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * (1 + len(_KINDS) + 9)
        numbers, *counts, low, low_step, low_of, high, high_step, high_of, first_times, last_times, norms = columns
        self.numbers: Sequence[int] = numbers
        self.counts: Sequence[Sequence[int]] = counts
        self._low = [math.inf if norm is None else norm for norm in low]
        self._high = [-math.inf if norm is None else norm for norm in high]
        self._low_step: Sequence[int] = low_step
        self._low_incarnation: Sequence[int] = low_of
        self._high_step: Sequence[int] = high_step
        self._high_incarnation: Sequence[int] = high_of
        self.first_times: Sequence[float] = first_times
        self.last_times: Sequence[float] = last_times
        self._norms: Sequence[bytes | None] = norms

    @property
    def good(self) -> int:
        """Good steps."""
        return sum(map(sum, self.counts)) - self.bad

    @property
    def bad(self) -> int:
        """All other steps."""
        return sum(map(sum, compress(self.counts, IS_BAD)))

    def joined(self, start: int, end: int) -> Block:
        """The rollup of the blocks at the positions from `start` to `end`, without the last."""
        counts = [sum(column[start:end]) for column in self.counts]
        block = Block(
            counts,
            norms=array("d", b"".join(filter(None, self._norms[start:end]))),
            first_time=min(self.first_times[start:end]),
            last_time=max(self.last_times[start:end]),
        )
        if block.good:
            # Where no step is good, the smallest norm is infinite, but there is no step.
            low = min(range(start, end), key=lambda i: (self._low[i], self._low_step[i] is None))
            high = max(range(start, end), key=self._high.__getitem__)
            block.low = (self._low[low], self._low_step[low], self._low_incarnation[low])
            block.high = (self._high[high], self._high_step[high], self._high_incarnation[high])
        return block


_STORED: Final = (
    f"block, {', '.join(STEP_KINDS)}, low, low_step, low_incarnation, high, high_step, high_incarnation, "
    "first_time, last_time, "
)


def read(db: sqlite3.Connection, run_id: int, process: int, first: int, last: int, *, norms: bool) -> Blocks:
    """The blocks of the steps from `first` to `last`. Blocks at the ends include only steps in that range.

    With `norms` they have all norms, of which a long run has many.
    """

    def part(start: int, end: int) -> list[bulk.Row]:
        blocks = of_rows(rows(db, run_id, process, start, end)) if start <= end else {}
        return [row[2:] for row in rows_of(run_id, process, blocks)]

    inner_first, inner_last = -(-first // SIZE), (last + 1) // SIZE - 1
    if inner_first > inner_last:
        return Blocks(part(first, last))
    inner = db.execute(
        f"SELECT {_STORED} {'norms' if norms else 'NULL'} FROM block "
        "WHERE run_id = ? AND process = ? AND block BETWEEN ? AND ? ORDER BY block",
        (run_id, process, inner_first, inner_last),
    )
    return Blocks([*part(first, inner_first * SIZE - 1), *inner, *part((inner_last + 1) * SIZE, last)])
