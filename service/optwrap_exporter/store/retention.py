"""Deletes old data: step records first, then events; whole runs only after they have gone silent.

The caller runs each function in a transaction. Only `forget` deletes totals.
"""

import sqlite3
from collections import Counter
from collections.abc import Mapping

from optwrap_exporter.store import rollups
from optwrap_exporter.store.schema import OF_RUN, used_bytes

Origin = tuple[str, int, str]
"""The incarnation that step records come from: run, process, incarnation."""


def drop_records(db: sqlite3.Connection, revision: int) -> Counter[int]:
    """Delete all changes up to a revision, with their step records.

    Returns:
      How many step records were deleted, by the id of their incarnation.
    """
    found: Counter[int] = Counter()
    spans = db.execute(
        "SELECT run_id, process, min(first_step), max(last_step) FROM change "
        "WHERE revision <= ? AND first_step IS NOT NULL GROUP BY run_id, process",
        (revision,),
    ).fetchall()
    for span in spans:
        where = "run_id = ? AND process = ? AND step BETWEEN ? AND ? AND revision <= ?"
        gone = db.execute(f"DELETE FROM step WHERE {where} RETURNING incarnation_id", (*span, revision))
        found.update(incarnation_id for (incarnation_id,) in gone)
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
    lost: Counter[int] = Counter()
    for (revision,) in oldest:
        lost += drop_records(db, revision)
        if used_bytes(db) <= target:
            break
    return (
        {count_not_stored(db, incarnation_id, records): records for incarnation_id, records in lost.items()}
        if oldest
        else None
    )


def count_not_stored(db: sqlite3.Connection, incarnation_id: int, records: int) -> Origin:
    """Count step records of an incarnation as not stored, and return their origin."""
    db.execute("UPDATE incarnation SET not_stored = not_stored + ? WHERE id = ?", (records, incarnation_id))
    run, process, incarnation = db.execute(
        "SELECT run.run, process, incarnation FROM incarnation JOIN run ON run.id = run_id WHERE incarnation.id = ?",
        (incarnation_id,),
    ).fetchone()
    return run, process, incarnation


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
