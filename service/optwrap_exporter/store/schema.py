"""The database: its tables, and how it is opened. A database of another version is refused."""

import sqlite3
from pathlib import Path
from typing import Final

from optwrap_exporter.wire.errors import ExporterError

APPLICATION: Final = 0x4F505457
"""`PRAGMA application_id`: OPTW."""
VERSION: Final = 6
"""`PRAGMA user_version`: the version of the tables below."""

_TABLES: Final = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL UNIQUE,
    labels TEXT NOT NULL,               -- JSON: parameters with a metric label of their own
    replica_labels TEXT NOT NULL,       -- JSON: replicas with one
    past TEXT NOT NULL,                 -- JSON: Past.durable
    archived INTEGER NOT NULL DEFAULT 0 -- 1 if somebody hid it
);
CREATE TABLE process (
    run_id INTEGER NOT NULL,
    process INTEGER NOT NULL,
    state TEXT NOT NULL,                -- JSON: ProcessState.durable
    PRIMARY KEY (run_id, process)
) WITHOUT ROWID;
CREATE TABLE incarnation (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL,
    process INTEGER NOT NULL,
    incarnation TEXT NOT NULL,
    state TEXT NOT NULL,                -- JSON: IncarnationState.durable; see retention.SUM, writer._COMPACTED
    not_stored INTEGER NOT NULL DEFAULT 0,  -- step records for which there was no room
    UNIQUE (run_id, process, incarnation)
);
CREATE TABLE parameter (                -- ParameterState; by id in the tree's order as far as it was known
    id INTEGER PRIMARY KEY,
    incarnation_id INTEGER NOT NULL,
    path TEXT NOT NULL,
    totals INTEGER NOT NULL,
    baseline INTEGER NOT NULL,
    value_count INTEGER,
    first_step INTEGER,
    last_step INTEGER,
    UNIQUE (incarnation_id, path)
);
CREATE TABLE change (                   -- one row for each transaction
    revision INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,                 -- the clock that data ages by
    run_id INTEGER NOT NULL,
    process INTEGER NOT NULL,
    incarnation_id INTEGER,
    seq INTEGER,                        -- null if only time had passed
    digest BLOB,
    first_step INTEGER,                 -- of its step records; null if it has none
    last_step INTEGER
);
CREATE UNIQUE INDEX change_report ON change (incarnation_id, seq) WHERE seq IS NOT NULL;
CREATE INDEX change_run ON change (run_id, revision);
CREATE TABLE step (
    run_id INTEGER NOT NULL,
    process INTEGER NOT NULL,
    step INTEGER NOT NULL,
    incarnation_id INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    time REAL NOT NULL,                 -- the client's clock
    outcome INTEGER NOT NULL,           -- index in wire.vocabulary.OUTCOMES
    finite INTEGER NOT NULL,
    norm REAL,                          -- null: NaN
    mini_step INTEGER,
    interpolated INTEGER NOT NULL,
    bad INTEGER NOT NULL,
    update_norm REAL,                   -- null: none; -1: NaN
    scalars TEXT,                       -- JSON, by name, non-finite numbers as strings; null: none
    PRIMARY KEY (run_id, process, step, incarnation_id)
) WITHOUT ROWID;
CREATE INDEX step_bad ON step (run_id, process, step) WHERE bad = 1;
CREATE TABLE block (                    -- rollups.Block: the steps of rollups.SIZE step numbers in a row
    run_id INTEGER NOT NULL,
    process INTEGER NOT NULL,
    block INTEGER NOT NULL,
    applied INTEGER NOT NULL,           -- how many steps of each wire.step_answers.STEP_KINDS
    accumulated INTEGER NOT NULL,
    skipped_not_finite INTEGER NOT NULL,
    skipped_large INTEGER NOT NULL,
    skipped_other INTEGER NOT NULL,
    accepted_not_finite INTEGER NOT NULL,
    accumulated_not_finite INTEGER NOT NULL,
    low REAL,                           -- smallest norm of a good step, and that step
    low_step INTEGER,
    low_incarnation INTEGER,
    high REAL,
    high_step INTEGER,
    high_incarnation INTEGER,
    first_time REAL NOT NULL,           -- of all steps, by the client's clock
    last_time REAL NOT NULL,
    norms BLOB NOT NULL,                -- the finite norms of all steps, 8 bytes each, in no order
    PRIMARY KEY (run_id, process, block)
) WITHOUT ROWID;
CREATE TABLE scalar_block (             -- scalar_rollups: extremes of a scalar in the good steps of a block
    run_id INTEGER NOT NULL,
    process INTEGER NOT NULL,
    block INTEGER NOT NULL,
    name TEXT NOT NULL,
    low REAL NOT NULL,
    low_step INTEGER NOT NULL,
    low_incarnation INTEGER NOT NULL,
    high REAL NOT NULL,
    high_step INTEGER NOT NULL,
    high_incarnation INTEGER NOT NULL,
    PRIMARY KEY (run_id, process, block, name)
) WITHOUT ROWID;
CREATE TABLE path (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE
);
CREATE TABLE offender (
    run_id INTEGER NOT NULL,
    process INTEGER NOT NULL,
    step INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    position INTEGER NOT NULL,          -- index in its report: the tree's order
    path_id INTEGER NOT NULL,
    not_finite INTEGER,                 -- this or norm_share
    norm_share REAL,
    PRIMARY KEY (run_id, process, step, revision, position)
) WITHOUT ROWID;
CREATE TABLE replica (                  -- wire.requests.ReplicaRecord
    run_id INTEGER NOT NULL,
    process INTEGER NOT NULL,
    step INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    replica INTEGER NOT NULL,
    of_process INTEGER,                 -- null if unknown
    device TEXT,
    replica_count INTEGER NOT NULL,
    replicas INTEGER,
    PRIMARY KEY (run_id, process, step, revision)
) WITHOUT ROWID;
CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    revision INTEGER NOT NULL,
    run_id INTEGER NOT NULL,
    process INTEGER NOT NULL,
    kind TEXT NOT NULL,
    time REAL NOT NULL,
    step INTEGER,
    attempt TEXT NOT NULL,
    same_as TEXT,                       -- equal for the same event of several processes; null: no other reports it
    repeated INTEGER NOT NULL,          -- 1 if another process had reported it before
    detail TEXT NOT NULL,               -- JSON
    key TEXT NOT NULL,
    UNIQUE (run_id, key)
);
CREATE INDEX event_run ON event (run_id, kind, id);
CREATE INDEX event_time ON event (run_id, kind, time) WHERE repeated = 0;
CREATE INDEX event_revision ON event (revision);
CREATE INDEX event_same_as ON event (run_id, same_as) WHERE same_as IS NOT NULL;
CREATE TABLE incident (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id INTEGER NOT NULL,
    revision INTEGER NOT NULL,          -- the change that wrote it last
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    live INTEGER NOT NULL,              -- 1 if it is open, or acknowledged while its cause holds
    opened REAL NOT NULL,
    closed REAL,                        -- null: it lasts
    outcomes INTEGER NOT NULL,          -- of its bad steps: a bit for each of wire.vocabulary.OUTCOMES
    record TEXT NOT NULL                -- JSON: IncidentRecord.durable
);
CREATE INDEX incident_run ON incident (run_id, id);
CREATE INDEX incident_revision ON incident (revision) WHERE NOT live;
CREATE TABLE trial (                    -- empty, but for `write_trial`
    filler BLOB NOT NULL
);
"""

_TRIAL_BYTES: Final = 1 << 15

LOCK_SECONDS: Final = 3.0
"""How long to wait while another program has locked the database. After that the store is unhealthy, and says so."""

OF_RUN: Final = (
    *("process", "incarnation", "change", "step", "block", "scalar_block", "offender", "replica", "event", "incident"),
)
"""Tables with a column `run_id`."""


class SchemaError(ExporterError):
    """The database is not a store of this exporter's schema version."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection that one thread at a time may use. Transactions are begun explicitly."""
    db = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA synchronous = NORMAL")
    return db


def prepare(db: sqlite3.Connection) -> None:
    """Make the tables of a new database; check the version of an existing one.

    Raises:
      SchemaError: the database belongs to another program or has another schema version.
      sqlite3.Error: the file is not a database or cannot be written.
    """
    version = _pragma(db, "user_version")
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and _pragma(db, "application_id") != APPLICATION:
        raise SchemaError("it is the database of another program")
    if tables and version != VERSION:
        age = "a newer" if version > VERSION else "an older"
        raise SchemaError(f"it was written by {age} exporter (schema {version}; this exporter reads schema {VERSION})")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA journal_size_limit = 16777216")
    if tables:
        return
    db.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";\n"):
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION}")
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("COMMIT")


def limit_pages(db: sqlite3.Connection, limit_bytes: int | None) -> None:
    """Limit the size of the database. A write beyond it fails as on a full disk."""
    if limit_bytes is not None:
        db.execute(f"PRAGMA max_page_count = {max(1, limit_bytes // _pragma(db, 'page_size'))}")


def write_trial(db: sqlite3.Connection) -> None:
    """Write as much as a small report. `delete_trial` deletes it.

    Raises:
      sqlite3.Error: it cannot be written.
    """
    db.execute("INSERT INTO trial VALUES (randomblob(?))", (_TRIAL_BYTES,))


def delete_trial(db: sqlite3.Connection) -> None:
    """Delete what `write_trial` wrote. In one transaction the two would write nothing to the disk."""
    db.execute("DELETE FROM trial")


def file_bytes(db: sqlite3.Connection) -> int:
    """Bytes that the file has once the write-ahead log is in it."""
    return _pragma(db, "page_count") * _pragma(db, "page_size")


def used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of the pages in use."""
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])
