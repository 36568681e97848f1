"""Counts steps in buckets of time: by outcome, parameter or replica.

Outcomes are counted from rollups; only blocks that lie in several buckets are read step by step.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from optwrap_exporter.store.steps import record_series, rollups
from optwrap_exporter.store.steps.downsample import Span
from optwrap_exporter.store.steps.grid import Cell, Grid, Wanted, line
from optwrap_exporter.store.steps.rollups import SIZE
from optwrap_exporter.wire.series import SeriesAnswer, SeriesLine, SeriesOf
from optwrap_exporter.wire.step_answers import STEP_KINDS


class _Block(NamedTuple):
    """What a rollup says about the steps of its step numbers."""

    number: int
    first_time: float
    last_time: float
    counts: Sequence[int]
    """By STEP_KINDS."""


def series(db: sqlite3.Connection, run_id: int | None, run: str, process: int, wanted: Wanted) -> SeriesAnswer:
    """`Store.series`."""
    blocks = [] if run_id is None else _blocks(db, run_id, process, wanted)
    if run_id is None or not blocks:
        return SeriesAnswer(
            run=run, process=process, by=wanted.by, bucket=wanted.width, times=[], steps=[], lines=[], left_out=0
        )
    grid = Grid.over(min(block.first_time for block in blocks), max(block.last_time for block in blocks), wanted)
    span = Span(run_id, process, blocks[0].number * SIZE, (blocks[-1].number + 1) * SIZE - 1)
    by_kind = _by_kind(db, span, blocks, grid)
    steps = [sum(counts) for counts in zip(*by_kind, strict=True)]
    sampled = None
    if wanted.by == "outcome":
        found = [_outcome(kind, counts, steps, grid) for kind, counts in zip(STEP_KINDS, by_kind, strict=True)]
        all_lines = sorted((one for one in found if one.total), key=lambda one: -one.total)
        lines, number = all_lines[: wanted.limit], len(all_lines)
    else:
        cells, sampled = record_series.count(db, span, wanted, grid)
        # The parameters with the most steps; of those without any, the ones in the most buckets.
        keys = sorted(cells, key=lambda key: (-sum(cell.steps for cell in cells[key]), -len(cells[key])))
        shown, number = keys[: wanted.limit], len(keys)
        names = record_series.named(db, wanted, shown)
        lines = [line(of, cells[key], steps, grid) for key, of in zip(shown, names, strict=True)]
    return SeriesAnswer(
        run=run,
        process=process,
        by=wanted.by,
        bucket=grid.width,
        since=grid.since,
        until=grid.until,
        times=[grid.begin(bucket) for bucket in range(grid.count)],
        steps=steps,
        lines=lines,
        left_out=number - len(lines),
        sampled=sampled,
    )


def _blocks(db: sqlite3.Connection, run_id: int, process: int, wanted: Wanted) -> list[_Block]:
    """The rollups with steps in the range, by number."""
    rows = db.execute(
        f"SELECT block, first_time, last_time, {', '.join(STEP_KINDS)} FROM block "
        "WHERE run_id = ? AND process = ? AND last_time >= ? AND first_time < ? ORDER BY block",
        (run_id, process, wanted.since or 0.0, 1e300 if wanted.until is None else wanted.until),
    )
    return [_Block(number, first, last, counts) for number, first, last, *counts in rows]


def _by_kind(db: sqlite3.Connection, span: Span, blocks: list[_Block], grid: Grid) -> list[list[int]]:
    """For each of STEP_KINDS the steps of each bucket."""
    found = [[0] * grid.count for _ in STEP_KINDS]
    to_read: list[int] = []
    for block in blocks:
        if grid.holds(block.first_time, block.last_time):
            bucket = grid.at(block.first_time)
            for of, count in zip(found, block.counts, strict=True):
                of[bucket] += count
        else:
            to_read.append(block.number)
    for begin, end in _in_a_row(to_read):
        for kind, bucket, count in db.execute(
            f"SELECT {rollups.KIND} AS kind, CAST(floor(time / ?) AS INTEGER) - ? AS bucket, count(*) FROM step "
            "WHERE run_id = ? AND process = ? AND step BETWEEN ? AND ? AND time >= ? AND time < ? "
            "GROUP BY kind, bucket",
            (
                grid.width,
                grid.first,
                span.run_id,
                span.process,
                begin * SIZE,
                (end + 1) * SIZE - 1,
                grid.since,
                grid.until,
            ),
        ):
            found[kind][bucket] += count
    return found


def _in_a_row(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """The first and the last number of each part without a gap."""
    start = 0
    for i, number in enumerate(numbers):
        if i + 1 == len(numbers) or numbers[i + 1] != number + 1:
            yield numbers[start], number
            start = i + 1


def _outcome(kind: str, counts: list[int], steps: list[int], grid: Grid) -> SeriesLine:
    return line(SeriesOf(kind=kind), [Cell(bucket, count) for bucket, count in enumerate(counts)], steps, grid)
