"""Deletes old data: step records first, then events; whole runs only after they have gone silent.

The caller runs each function in a transaction. Only `forget` deletes totals.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from optwrap_exporter.store.schema import OF_RUN
from optwrap_exporter.store.steps import rollups, scalar_rollups
from optwrap_exporter.store.steps.downsample import Span

_SLICE: Final = 2048
"""Step records, or changes, deleted in one transaction. It takes some milliseconds, for which the next report waits."""
_SWEPT: Final = 1 << 15
"""The most changes in a sweep. To find them takes some tens of milliseconds."""

Origin = tuple[str, int, str]
"""The incarnation that step records come from: run, process, incarnation."""
Key = tuple[int, int, int]
"""The same by row ids: run, process, incarnation."""
SUM: Final = "/"
"""Begins the name of a row with the sum of compacted incarnations; no incarnation's id has it. The attempt follows. If
none does, it is the sum over the attempts that the process has left."""


def _spans(db: sqlite3.Connection, revision: int) -> list[Span]:
    """By process, the steps of all changes up to a revision."""
    found = db.execute(
        "SELECT run_id, process, min(first_step), max(last_step) FROM change "
        "WHERE revision <= ? AND first_step IS NOT NULL GROUP BY run_id, process",
        (revision,),
    )
    return [Span(*row) for row in found]


def _drop_span(db: sqlite3.Connection, span: Span, revision: int) -> None:
    """Delete the step records of a span, and rewrite its blocks: once, however many changes are in it."""
    for table in ("step", "offender", "replica"):
        db.execute(
            f"DELETE FROM {table} WHERE run_id = ? AND process = ? AND step BETWEEN ? AND ? AND revision <= ?",
            (*span, revision),
        )
    rollups.rewrite(db, *span)
    scalar_rollups.rewrite(db, span)


class Sweep:
    """Deletes everything that was committed up to a revision, in slices: process by process, then the changes.

    A slice of one process has many steps in a row, so most of its blocks are gone as a whole. If the exporter is
    stopped in between, the next sweep begins anew: the changes go last, and say which steps are to be deleted.
    """

    def __init__(self, db: sqlite3.Connection, first: int, last: int) -> None:
        self._db = db
        self._last = last
        self._spans = _spans(db, last)
        self._revisions = [*range(first + _SLICE, last, _SLICE), last]

    @property
    def done(self) -> bool:
        """Whether nothing is left to delete."""
        return not self._revisions

    def delete_slice(self) -> Callable[[], None]:
        """Delete one slice, in a transaction of the caller. Returns what to call once that is committed."""
        records = number = 0
        while number < len(self._spans) and (number == 0 or records < _SLICE):
            span = self._spans[number]
            _drop_span(self._db, span, self._last)
            records += span.last - span.first + 1
            number += 1
        if number:
            return lambda: self._spans.__delitem__(slice(number))
        for condition in ("incident WHERE NOT live AND", "event WHERE", "change WHERE"):
            self._db.execute(f"DELETE FROM {condition} revision <= ?", (self._revisions[0],))
        return lambda: self._revisions.__delitem__(0)


def sweep_before(db: sqlite3.Connection, time: float, slack: float) -> Sweep | None:
    """A sweep of what was committed before a time, or of the oldest part of it; None if nothing is older by `slack`."""
    row = db.execute("SELECT revision, time FROM change ORDER BY revision LIMIT 1").fetchone()
    if row is None or row[1] >= time - slack:
        return None
    first = last = int(row[0])
    for revision, at in db.execute("SELECT revision, time FROM change ORDER BY revision LIMIT ?", (_SWEPT,)):
        if at >= time:
            break
        last = revision
    return Sweep(db, first, last)


def make_room(db: sqlite3.Connection, missing: int, record_bytes: int) -> Mapping[Origin, int] | None:
    """Delete the oldest changes, about as many as take `missing` bytes, and no more than in a slice.

    Args:
      db: the connection.
      missing: bytes.
      record_bytes: the most bytes of a step record. If it is too much, too few are deleted; call it again.

    Returns:
      How many step records were deleted and counted as not stored; None if there was no change to delete.
    """
    revision, records = None, 0
    for found, first, last in db.execute("SELECT revision, first_step, last_step FROM change ORDER BY revision"):
        if revision is not None and (records * record_bytes >= missing or records >= _SLICE):
            break
        revision = found
        records += 1 if first is None else last - first + 1
    if revision is None:
        return None
    lost: Counter[Key] = Counter()
    for span in _spans(db, revision):
        for incarnation_id, number in db.execute(
            "SELECT incarnation_id, count(*) FROM step WHERE run_id = ? AND process = ? AND step BETWEEN ? AND ? "
            "AND revision <= ? GROUP BY incarnation_id",
            (*span, revision),
        ):
            lost[span.run_id, span.process, incarnation_id] += number
        _drop_span(db, span, revision)
    db.execute("DELETE FROM change WHERE revision <= ?", (revision,))
    return _summed((count_not_stored(db, key, records), records) for key, records in lost.items())


def _summed(counts: Iterable[tuple[Origin, int]]) -> Counter[Origin]:
    summed: Counter[Origin] = Counter()
    for origin, records in counts:
        summed[origin] += records
    return summed


def count_not_stored(db: sqlite3.Connection, key: Key, records: int) -> Origin:
    """Count step records of an incarnation as not stored, and return their origin.

    Those of an incarnation that is no longer remembered are counted in the sum of its process.
    """
    run_id, process, incarnation_id = key
    for where, value in (("id = ?", incarnation_id), ("incarnation = ?", SUM)):
        updated = db.execute(
            f"UPDATE incarnation SET not_stored = not_stored + ? WHERE run_id = ? AND process = ? AND {where} "
            "RETURNING (SELECT run FROM run WHERE id = run_id), incarnation",
            (records, run_id, process, value),
        ).fetchall()
        for run, incarnation in updated:
            return run, process, incarnation
    raise LookupError(f"process {process} of run {run_id} has no row for what it has forgotten")


def drop_events(db: sqlite3.Connection, count: int) -> bool:
    """Delete the `count` oldest events; if there is none, incidents that are over. False if there was neither."""
    for table, condition in (("event", "1"), ("incident", "NOT live")):
        oldest = f"SELECT id FROM {table} WHERE {condition} ORDER BY id LIMIT ?"
        if db.execute(f"DELETE FROM {table} WHERE id IN ({oldest})", (count,)).rowcount:
            return True
    return False


def forget(db: sqlite3.Connection, run: str) -> bool:
    """Delete everything about a run. False if the run is unknown."""
    row = db.execute("SELECT id FROM run WHERE run = ?", (run,)).fetchone()
    if row is None:
        return False
    db.execute("DELETE FROM parameter WHERE incarnation_id IN (SELECT id FROM incarnation WHERE run_id = ?)", row)
    for table in OF_RUN:
        db.execute(f"DELETE FROM {table} WHERE run_id = ?", row)
    db.execute("DELETE FROM run WHERE id = ?", row)
    db.execute("DELETE FROM path WHERE id NOT IN (SELECT path_id FROM offender)")
    return True
