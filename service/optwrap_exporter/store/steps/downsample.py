"""Cuts steps into buckets of equal length along an axis, and downsamples them.

Along the step number, buckets hold equally many step numbers; wide ones consist of whole blocks. Along time they are
equally long, so a day of slow steps after an hour of fast ones is still visible. A block that lies in several buckets
is read step by step, so all counts are exact.

Of good steps downsampling keeps the smallest and the largest norm of each bucket, and those that `scalar_rollups` adds.
Of bad steps, of which many may be too many, it keeps the first and the last of each outcome in each bucket, and counts
all of them.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final, Literal, NamedTuple

from optwrap_exporter.store.steps import rollups
from optwrap_exporter.store.steps.rollups import SIZE, Block, Blocks
from optwrap_exporter.wire.step_answers import STEP_KINDS, BadSteps, StepBuckets
from optwrap_exporter.wire.vocabulary import OUTCOMES

Axis = Literal["step", "time"]

IN_SPAN: Final = "run_id = ? AND process = ? AND step BETWEEN ? AND ?"


class Span(NamedTuple):
    """A range of steps of one process: the parameters of IN_SPAN."""

    run_id: int
    process: int
    first: int
    last: int


class Cut(NamedTuple):
    """Where buckets begin along an axis: bucket `n` is from origin + n * width on."""

    axis: Axis
    origin: float
    width: float
    last: int
    """The number of the last bucket."""

    def at(self, position: float) -> int:
        """The bucket of a position."""
        return min(self.last, int((position - self.origin) / self.width))


def cut_of(span: Span, blocks: Blocks, count: int, axis: Axis) -> Cut:
    """Cuts a span into at most `count` buckets; its last position is in the last one."""
    if axis == "step":
        width = -(-(span.last - span.first + 1) // count)
        if width < 2 * SIZE:  # narrower than blocks can resolve, and few enough to read
            return Cut(axis, span.first, width, count - 1)
        first = span.first // SIZE
        together = -(-(span.last // SIZE - first + 1) // count)
        return Cut(axis, first * SIZE, together * SIZE, count - 1)
    first_time, last_time = min(blocks.first_times, default=0.0), max(blocks.last_times, default=0.0)
    return Cut(axis, first_time, (last_time - first_time) / count or 1.0, count - 1)


def bucketed(db: sqlite3.Connection, span: Span, blocks: Blocks, cut: Cut) -> dict[int, Block]:
    """The buckets of a span that have steps, by number: each the rollup of all its steps.

    Args:
      db: the connection to read from.
      span: the steps.
      blocks: the stored blocks of the span.
      cut: as `cut_of` returns it.
    """
    joined: dict[int, Block] = {}

    def add(bucket: int, block: Block) -> None:
        if bucket in joined:
            joined[bucket].merge(block)
        else:
            joined[bucket] = block

    placed = place(span, blocks, cut)
    start = 0
    for bucket, group in groupby(placed.get(number) for number in blocks.numbers):
        end = start + sum(1 for _ in group)
        if bucket is not None:
            add(bucket, blocks.joined(start, end))
        start = end
    position = 0 if cut.axis == "step" else 5  # in the row of a step
    for part in parts(span, set(blocks.numbers) - placed.keys()):
        for bucket, rows in groupby(rollups.rows(db, *part), lambda row: cut.at(row[position] or 0)):
            add(bucket, rollups.of(list(rows)))
    return joined


def place(span: Span, blocks: Blocks, cut: Cut) -> dict[int, int]:
    """By number of a block, the bucket that all its steps are in; blocks that lie in several buckets are left out."""
    last, origin, width = cut.last, cut.origin, cut.width
    if cut.axis == "step" and not origin % SIZE and not width % SIZE:  # buckets consist of whole blocks
        return {number: min(last, int((number * SIZE - origin) / width)) for number in blocks.numbers}
    begins: Iterable[float] = blocks.first_times
    ends: Iterable[float] = blocks.last_times
    if cut.axis == "step":
        begins = (max(span.first, number * SIZE) for number in blocks.numbers)
        ends = (min(span.last, number * SIZE + SIZE - 1) for number in blocks.numbers)
    found = zip(blocks.numbers, map(cut.at, begins), map(cut.at, ends), strict=True)
    return {number: first for number, first, last in found if first == last}


def parts(span: Span, numbers: Iterable[int]) -> Iterator[Span]:
    """The parts of a span that lie in some blocks, as few as possible."""
    in_order = sorted(numbers)
    start = 0
    for i, number in enumerate(in_order):
        if i + 1 == len(in_order) or in_order[i + 1] != number + 1:
            yield span._replace(
                first=max(span.first, in_order[start] * SIZE), last=min(span.last, (number + 1) * SIZE - 1)
            )
            start = i + 1


def fewer(joined: dict[int, Block], most: int) -> Iterable[Block]:
    """At most so many buckets: neighbours are joined if there are more."""
    if most < 1:
        return ()
    if len(joined) <= most:
        return joined.values()
    together = -(-len(joined) // most)
    found: dict[int, Block] = {}
    for i, number in enumerate(sorted(joined)):
        found.setdefault(i // together, Block()).merge(joined[number])
    return found.values()


def as_answer(span: Span, cut: Cut, joined: dict[int, Block]) -> StepBuckets:
    """Buckets as the API returns them."""
    numbers = sorted(joined)
    blocks = [joined[number] for number in numbers]
    norms = [sorted(block.norms) for block in blocks]
    by_step = cut.axis == "step"
    return StepBuckets.model_construct(
        axis=cut.axis,
        width=cut.width,
        since=[max(span.first, int(cut.origin + n * cut.width)) for n in numbers] if by_step else None,
        until=[min(span.last, int(cut.origin + (n + 1) * cut.width) - 1) for n in numbers] if by_step else None,
        first_time=[block.first_time for block in blocks],
        last_time=[block.last_time for block in blocks],
        norm_min=[one[0] if one else None for one in norms],
        norm_median=[one[(len(one) - 1) // 2] if one else None for one in norms],
        norm_max=[one[-1] if one else None for one in norms],
        kinds={
            kind: counts for i, kind in enumerate(STEP_KINDS) if any(counts := [block.counts[i] for block in blocks])
        },
    )


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
