"""What the store forgets: step records first, then events, whole runs only when nothing is heard of them any more.

Each function is one transaction's worth; totals are untouched but by `forget`.
"""

import sqlite3

from optwrap_exporter import blocks
from optwrap_exporter.schema import OF_RUN


def drop_records(db: sqlite3.Connection, revision: int) -> None:
    """Delete the step records that came with that change and those before it, and the changes themselves."""
    spans = db.execute(
        "SELECT run_id, process, min(first_step), max(last_step) FROM change "
        "WHERE revision <= ? AND first_step IS NOT NULL GROUP BY run_id, process",
        (revision,),
    ).fetchall()
    for span in spans:
        where = "run_id = ? AND process = ? AND step BETWEEN ? AND ? AND revision <= ?"
        for table in ("step", "offender"):
            db.execute(f"DELETE FROM {table} WHERE {where}", (*span, revision))
        blocks.rewrite(db, *span)
    db.execute("DELETE FROM change WHERE revision <= ?", (revision,))


def oldest_change(db: sqlite3.Connection, count: int) -> int | None:
    """The last of the `count` oldest changes there are; None where there is none."""
    rows = db.execute("SELECT revision FROM change ORDER BY revision LIMIT ?", (count,)).fetchall()
    return int(rows[-1][0]) if rows else None


def last_change_before(db: sqlite3.Connection, time: float, count: int) -> int | None:
    """The last of at most `count` of the oldest changes, all older than `time`; None where the oldest is younger."""
    found = None
    for revision, at in db.execute("SELECT revision, time FROM change ORDER BY revision LIMIT ?", (count,)):
        if at >= time:
            break
        found = revision
    return found


def drop_events(db: sqlite3.Connection, count: int) -> bool:
    """Delete the `count` oldest events; False where there was none."""
    return bool(
        db.execute("DELETE FROM event WHERE id IN (SELECT id FROM event ORDER BY id LIMIT ?)", (count,)).rowcount
    )


def forget(db: sqlite3.Connection, run: str) -> bool:
    """Delete everything of a run; False where it is unknown."""
    row = db.execute("SELECT id FROM run WHERE run = ?", (run,)).fetchone()
    if row is None:
        return False
    db.execute("DELETE FROM badness WHERE epoch_id IN (SELECT id FROM epoch WHERE run_id = ?)", row)
    for table in OF_RUN:
        db.execute(f"DELETE FROM {table} WHERE run_id = ?", row)
    db.execute("DELETE FROM run WHERE id = ?", row)
    db.execute("DELETE FROM path WHERE id NOT IN (SELECT path_id FROM offender)")
    return True
