"""What the store forgets: step records first, then events, whole runs only when nothing is heard of them any more.

Each function is one transaction's worth; totals are untouched but by `forget`.
"""

import sqlite3
from collections import Counter
from collections.abc import Mapping

from optwrap_exporter.store import rollups as blocks
from optwrap_exporter.store.schema import OF_RUN, used_bytes

Origin = tuple[str, int, str]
"""Where step records came from: run, process, incarnation."""


def drop_records(db: sqlite3.Connection, revision: int) -> Counter[int]:
    """Delete the step records that came with that change and those before it, and the changes themselves.

    Returns how many step records there were, by the id of their incarnation.
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
        blocks.rewrite(db, *span)
    db.execute("DELETE FROM change WHERE revision <= ?", (revision,))
    return found


def make_room(db: sqlite3.Connection, target: int, count: int) -> Mapping[Origin, int] | None:
    """Drop the oldest changes, `count` at most, until no more than `target` bytes are used; None where there is none.

    Returns how many step records went, which are counted in their incarnations as not stored.
    """
    oldest = db.execute("SELECT revision FROM change ORDER BY revision LIMIT ?", (count,)).fetchall()
    lost: Counter[int] = Counter()
    for (revision,) in oldest:
        lost += drop_records(db, revision)
        if used_bytes(db) <= target:
            break
    return {_lose(db, incarnation_id, records): records for incarnation_id, records in lost.items()} if oldest else None


def _lose(db: sqlite3.Connection, incarnation_id: int, records: int) -> Origin:
    """Count step records of an incarnation as not stored; returns which incarnation that is."""
    db.execute(
        "UPDATE incarnation SET state = json_set(state, '$.not_stored', json_extract(state, '$.not_stored') + ?) "
        "WHERE id = ?",
        (records, incarnation_id),
    )
    run, process, incarnation = db.execute(
        "SELECT run.run, process, incarnation FROM incarnation JOIN run ON run.id = run_id WHERE incarnation.id = ?",
        (incarnation_id,),
    ).fetchone()
    return run, process, incarnation


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
    db.execute("DELETE FROM badness WHERE incarnation_id IN (SELECT id FROM incarnation WHERE run_id = ?)", row)
    for table in OF_RUN:
        db.execute(f"DELETE FROM {table} WHERE run_id = ?", row)
    db.execute("DELETE FROM run WHERE id = ?", row)
    db.execute("DELETE FROM path WHERE id NOT IN (SELECT path_id FROM offender)")
    return True
