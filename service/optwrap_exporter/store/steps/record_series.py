"""Counts the records of parameters and replicas in buckets of time. Of very many, a sample of the bad steps is read."""

import math
import sqlite3
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from optwrap_exporter.store.steps.downsample import Span
from optwrap_exporter.store.steps.grid import Cell, Grid, Wanted
from optwrap_exporter.wire.series import SeriesOf

MOST_RECORDS: Final = 300_000
"""The most records that are read."""
_HASH: Final = "(step.step % 65521) * 40503 % 65536"
"""Spreads step numbers over 0 to 65535, so that a sample has no rhythm. It needs no column but those of the index."""


class Found(NamedTuple):
    """The cells of some parameters or replicas."""

    cells: dict[tuple[Any, ...], list[Cell]]
    """By key, as `named` takes it."""
    sampled: float | None
    """The share of the bad steps that was read; None if all were. Counts are scaled up by it."""


class _Source(NamedTuple):
    table: str
    keys: str
    counts: str
    """SQL for steps, values and largest share."""
    condition: str = ""
    values: tuple[int, ...] = ()


_REPLICAS: Final = _Source("replica", "record.replica, record.of_process, record.device", "count(*), NULL, NULL")
_OFFENDERS: Final = _Source(
    "offender", "record.path_id", "count(record.not_finite), sum(record.not_finite), max(record.norm_share)"
)


def count(db: sqlite3.Connection, span: Span, wanted: Wanted, grid: Grid) -> Found:
    """The records of a span in the buckets of a grid, by parameter or replica."""
    source = _REPLICAS if wanted.by == "replica" else _of_parameters(db, wanted.parameters)
    ((records,),) = db.execute(
        f"SELECT count(*) FROM {source.table} AS record WHERE run_id = ? AND process = ? AND step BETWEEN ? AND ? "
        f"{source.condition}",
        (*span, *source.values),
    )
    sampled = None if records <= MOST_RECORDS else MOST_RECORDS / records
    scale = sampled or 1.0
    found: dict[tuple[Any, ...], list[Cell]] = {}
    for *key, bucket, steps, values, norm_share, first_step, last_step, first_time, last_time in db.execute(
        # SQLite uses the partial index only if the query repeats its condition. Without the plus it would take
        # the range of steps for the records of each step.
        f"""
        SELECT {source.keys}, CAST(floor(step.time / ?) AS INTEGER) - ? AS bucket, {source.counts},
            min(step.step), max(step.step), min(step.time), max(step.time)
        FROM step INDEXED BY step_bad CROSS JOIN {source.table} AS record ON record.run_id = step.run_id
            AND record.process = step.process AND record.step = +step.step AND record.revision = step.revision
        WHERE step.run_id = ? AND step.process = ? AND step.step BETWEEN ? AND ? {source.condition}
            AND step.bad = 1 AND {_HASH} < ? AND step.time >= ? AND step.time < ?
        GROUP BY {source.keys}, bucket
        """,
        (
            grid.width,
            grid.first,
            *span,
            *source.values,
            math.ceil(65_536 * scale),
            grid.since,
            grid.until,
        ),
    ):
        cell = Cell(
            bucket,
            steps / scale,
            values / scale if values is not None else None,
            norm_share,
            first_step,
            last_step,
            first_time,
            last_time,
        )
        found.setdefault(tuple(key), []).append(cell)
    return Found(found, sampled)


def _of_parameters(db: sqlite3.Connection, parameters: tuple[str, ...]) -> _Source:
    if not parameters:
        return _OFFENDERS
    marks = ", ".join("?" * len(parameters))
    paths = tuple(key for (key,) in db.execute(f"SELECT id FROM path WHERE path IN ({marks})", parameters))
    marks = ", ".join("?" * len(paths))
    return _OFFENDERS._replace(condition=f"AND record.path_id IN ({marks})", values=paths)


def named(db: sqlite3.Connection, wanted: Wanted, keys: list[tuple[Any, ...]]) -> Iterator[SeriesOf]:
    """What the API calls each key."""
    for key in keys:
        if wanted.by == "replica":
            yield SeriesOf(replica=key[0], process=key[1], device=key[2])
        else:
            ((path,),) = db.execute("SELECT path FROM path WHERE id = ?", key)
            yield SeriesOf(parameter=path)
