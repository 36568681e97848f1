"""Opens the database of a data directory: locks the directory, checks the database, and moves a damaged one aside."""

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.store import schema
from optwrap_exporter.store.condition import classify
from optwrap_exporter.store.writer import Rows
from optwrap_exporter.wire.errors import ExporterError

_log = logging.getLogger(__name__)

FILE: Final = "optwrap.sqlite3"
CHECK_SECONDS: Final = 10.0
"""The longest check at start. A larger database than can be read in this time is checked in part."""

_FILES: Final = ("", "-wal", "-shm")
"""Suffixes of the files that make a database."""
_EACH: Final = 10_000
"""SQLite's virtual machine instructions between two looks at the time."""


class StoreError(ExporterError):
    """The data directory cannot be used. The message is one line: which directory, why, and what to do."""


class DamagedError(ExporterError):
    """The database is damaged. The message says what was found."""


def locked(directory: Path) -> int:
    """Lock a directory, and create it with mode 0700 if it is missing. Returns the descriptor that holds the lock.

    Raises:
      StoreError: it cannot be created or written, or another exporter uses it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise StoreError(f"data directory {directory}: not a directory: choose another --data-dir") from error
    except OSError as error:
        raise StoreError(
            f"data directory {directory}: {error.strerror}: choose a --data-dir that can be written"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StoreError(
            f"data directory {directory}: in use by another exporter: stop that one, or choose another --data-dir"
        ) from error
    return lock


def opened(path: Path, *, recover: bool) -> tuple[sqlite3.Connection, list[RunState]]:
    """Open and check a database, or create one with mode 0600. Its directory must be locked.

    Args:
      path: the database.
      recover: whether to move a damaged database aside and begin a new one.

    Returns:
      The connection of the writer, and the last state of every run.

    Raises:
      StoreError: it is damaged and `recover` is false, it belongs to another program or version, or it cannot be used.
    """
    try:
        try:
            return _checked(path)
        except DamagedError as error:
            if not recover:
                raise StoreError(
                    f"{path}: damaged ({error}): restore a backup; or start once with --recover, which moves it aside "
                    "and begins a new one; or choose another --data-dir"
                ) from error
            _log.warning("%s is damaged (%s); it is now %s, and a new store begins", path, error, _move_aside(path))
            return _checked(path)
    except schema.SchemaError as error:
        raise StoreError(f"{path}: {error}: move the file away, or choose another --data-dir") from None
    except (sqlite3.Error, OSError, DamagedError) as error:
        raise StoreError(f"{path}: {error}: check free space and permissions, or choose another --data-dir") from error


def _checked(path: Path) -> tuple[sqlite3.Connection, list[RunState]]:
    # SQLite would create it for everybody to read. It gives -wal and -shm the mode of the database.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with contextlib.ExitStack() as stack:
        try:
            db = schema.connect(path)
            stack.callback(db.close)
            schema.prepare(db)
            if (found := quick_check(db)) is not None:
                raise DamagedError(found)
            runs = list(Rows(db).runs())
        except sqlite3.Error as error:
            if classify(error) == "corrupt":
                raise DamagedError(str(error)) from error
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedError(f"the state of a run cannot be read: {error!r}") from error
        stack.pop_all()
    return db, runs


def quick_check(db: sqlite3.Connection, seconds: float = CHECK_SECONDS) -> str | None:
    """Check the structure of a database, for about `seconds` at most.

    Returns:
      What is wrong; None if nothing was found.

    Raises:
      sqlite3.Error: the database is so damaged that the check fails, or it cannot be read.
    """
    until = time.monotonic() + seconds
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    checked = 0
    db.set_progress_handler(lambda: int(time.monotonic() > until), _EACH)
    try:
        for name in tables:
            if time.monotonic() > until:  # one table is not interrupted by every version of SQLite
                break
            (found,) = db.execute(f"PRAGMA quick_check({name})").fetchone()
            if found != "ok":
                return f"{name}: {found}"
            checked += 1
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
    finally:
        db.set_progress_handler(None, 0)
    if checked < len(tables):
        _log.info("checked %d of %d tables of the database in %.0f s; no longer", checked, len(tables), seconds)
    return None


def _move_aside(path: Path) -> Path:
    """Rename a database with its logs. Returns its new path."""
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    for suffix in _FILES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside
