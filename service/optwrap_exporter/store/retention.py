"""Deletes old data: step records first, then events; whole runs only after they have gone silent.

The caller runs each function in a transaction. Only `forget` deletes totals.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from optwrap_exporter.store import rollups
from optwrap_exporter.store.schema import OF_RUN, used_bytes

Origin = tuple[str, int, str]
"""The incarnation that step records come from: run, process, incarnation."""
Key = tuple[int, int, int]
"""The same by row ids: run, process, incarnation."""
SUM: Final = "/"
"""Begins the name of a row with the sum of folded incarnations; no incarnation's id has it. The attempt follows. If
none does, it is the sum over the attempts that the process has left."""


def drop_records(db: sqlite3.Connection, revision: int) -> Counter[Key]:
    """Delete all changes up to a revision, with their step records.

    Returns:
      How many step records were deleted, by incarnation.
    """
    found: Counter[Key] = Counter()
    spans = db.execute(
        "SELECT run_id, process, min(first_step), max(last_step) FROM change "
        "WHERE revision <= ? AND first_step IS NOT NULL GROUP BY run_id, process",
        (revision,),
    ).fetchall()
    for span in spans:
        where = "run_id = ? AND process = ? AND step BETWEEN ? AND ? AND revision <= ?"
        gone = db.execute(f"DELETE FROM step WHERE {where} RETURNING incarnation_id", (*span, revision))
        found.update((span[0], span[1], incarnation_id) for (incarnation_id,) in gone)
        for table in ("offender", "replica"):
            db.execute(f"DELETE FROM {table} WHERE {where}", (*span, revision))
        rollups.rewrite(db, *span)
    db.execute("DELETE FROM change WHERE revision <= ?", (revision,))
    return found


def make_room(db: sqlite3.Connection, target: int, count: int) -> Mapping[Origin, int] | None:
    """Delete the oldest changes, at most `count`, until at most `target` bytes are used.

    Returns:
      How many step records were deleted and counted as not stored; None if there was no change to delete.
    """
    oldest = db.execute("SELECT revision FROM change ORDER BY revision LIMIT ?", (count,)).fetchall()
    lost: Counter[Key] = Counter()
    for (revision,) in oldest:
        lost += drop_records(db, revision)
        if used_bytes(db) <= target:
            break
    return _summed((count_not_stored(db, key, records), records) for key, records in lost.items()) if oldest else None


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


def last_change_before(db: sqlite3.Connection, time: float, count: int) -> int | None:
    """The last revision before `time` among the `count` oldest changes; None if there is none."""
    found = None
    for revision, at in db.execute("SELECT revision, time FROM change ORDER BY revision LIMIT ?", (count,)):
        if at >= time:
            break
        found = revision
    return found


def drop_events(db: sqlite3.Connection, count: int) -> bool:
    """Delete the `count` oldest events. False if there was none."""
    return bool(
        db.execute("DELETE FROM event WHERE id IN (SELECT id FROM event ORDER BY id LIMIT ?)", (count,)).rowcount
    )


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
