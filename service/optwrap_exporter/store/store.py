"""The store: an SQLite database in a directory of a local disk, with one writer.

A committed transaction survives `kill -9`, but not a power cut: the write-ahead log uses `synchronous=NORMAL`. Readers
have connections of their own and never block the writer.
"""

import contextlib
import fcntl
import os
import queue
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from optwrap_exporter.ledger.ledger import Plan
from optwrap_exporter.ledger.run import RunState
from optwrap_exporter.store import reader, retention, schema
from optwrap_exporter.store.downsample import Axis
from optwrap_exporter.store.retention import Origin
from optwrap_exporter.store.writer import Rows
from optwrap_exporter.wire.answers import Event, Page, ReportMessage, StepsAnswer
from optwrap_exporter.wire.errors import ExporterError
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import EventKind

SMALLEST_LIMIT: Final = 1024 * 1024
"""The smallest `limit_bytes`. Empty tables take a tenth of it."""

_FILE: Final = "optwrap.sqlite3"
_READERS: Final = 4
_AT_ONCE: Final = 64
"""Changes, or events, deleted in one transaction. It is short, because the next report waits for it."""
_CROWDED: Final = 0.9
"""The part of the limit that is filled. The rest absorbs the growth of the B-trees."""
_RECORD_BYTES: Final = 100
"""Roughly the most bytes that a step record or an offender takes."""
_SLICE: Final = 1 << 16
"""Bytes that are freed in addition to what is needed, so that the next reports need not free any."""

_DISK_ERRORS: Final = (sqlite3.OperationalError, sqlite3.DatabaseError)
"""What a full or failing disk, or a damaged file, raises. Subclasses of these are programming errors."""

Result = TypeVar("Result")


class StoreError(ExporterError):
    """The data directory cannot be used. The message is one line: which directory, why, and what to do."""


class StoreFullError(ExporterError):
    """The store has no room even for the totals of a report. Nothing was stored (HTTP 503)."""


def holds_store(directory: Path) -> bool:
    """Whether the directory contains a store."""
    return (directory / _FILE).is_file()


class Store:
    """The store of one exporter. Close it, or use it as a context manager.

    Args:
      directory: created with mode 0700 if it is missing. It is locked: another exporter cannot use it.
      limit_bytes: the most bytes the database may take, without its log of a few MiB; at least SMALLEST_LIMIT. At the
        limit the oldest step records are deleted, then the oldest events. None sets no limit.

    Raises:
      StoreError: the directory cannot be created, read or written; another exporter uses it; it contains something
        other than a store of this schema version; or the limit is too small.
    """

    def __init__(self, directory: Path, *, limit_bytes: int | None = None) -> None:
        if limit_bytes is not None and limit_bytes < SMALLEST_LIMIT:
            raise StoreError(f"store limit: {limit_bytes} bytes: set at least {SMALLEST_LIMIT}")
        self._path = directory / _FILE
        self._limit = limit_bytes
        self._readers: queue.LifoQueue[sqlite3.Connection | None] = queue.LifoQueue()  # None: closed
        self._closed = False
        self._lock = _locked(directory)
        try:
            self._db = schema.connect(self._path)
            schema.prepare(self._db)
            schema.limit_pages(self._db, limit_bytes)
            self._rows = Rows(self._db)
            for _ in range(_READERS):
                connection = schema.connect(self._path)
                connection.execute("PRAGMA query_only = ON")
                self._readers.put(connection)
        except schema.SchemaError as error:
            os.close(self._lock)
            raise StoreError(f"{self._path}: {error}: move the file away, or choose another --data-dir") from None
        except sqlite3.Error as error:
            os.close(self._lock)
            remedy = (
                "check free space and permissions"
                if isinstance(error, sqlite3.OperationalError)
                else "move the file away"
            )
            raise StoreError(f"{self._path}: {error}: {remedy}, or choose another --data-dir") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for running reads, then close the database and unlock the directory."""
        if self._closed:
            return
        self._closed = True
        for _ in range(_READERS):
            if (connection := self._readers.get()) is not None:
                connection.close()
        self._readers.put(None)
        self._db.close()
        os.close(self._lock)

    # --- reads, from any thread ---

    @property
    def limit_bytes(self) -> int | None:
        """The limit, as it was passed."""
        return self._limit

    def size(self) -> int:
        """Bytes in use, which the limit applies to. The file may also have free pages."""
        with self._reading() as db:
            return schema.used_bytes(db)

    def revision(self) -> int:
        """The revision of the last committed change; 0 in an empty store."""
        with self._reading() as db:
            row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'change'").fetchone()
        return int(row[0]) if row else 0

    def steps(
        self,
        run: str,
        process: int,
        *,
        since: int | None = None,
        until: int | None = None,
        points: int = 2000,
        axis: Axis = "step",
    ) -> StepsAnswer:
        """Step records of one process with since <= step <= until, by step, then time.

        If there are more than `points` good steps, they are downsampled: their range is cut into at most `points // 2`
        buckets of equal length along `axis`, and each bucket keeps the steps with the smallest and the largest norm.
        Bad steps (skipped, or with non-finite gradients) are never left out. After a rollback or a resume a step number
        can occur more than once. An unknown run or process has no steps.
        """
        with self._reading() as db:
            return reader.steps(db, run, process, since=since, until=until, points=points, axis=axis)

    def events(
        self,
        run: str,
        *,
        kind: EventKind | None = None,
        process: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Event]:
        """Events, newest first.

        An event that all processes of an attempt report (a skip, a streak) is listed once, from the process that
        reported it first. With `process` every event of that process is listed.

        Raises:
          CursorError: the cursor belongs to another list. Run, kind and process make a list.
        """
        with self._reading() as db:
            return reader.events(db, run, kind=kind, process=process, limit=limit, cursor=cursor)

    def changes(self, after: int, run: str | None = None, limit: int = 100) -> list[ReportMessage]:
        """What was committed after a revision, in order, of one run or of all: the messages of the stream.

        Fewer than `limit` messages mean that there are no more yet.
        """
        with self._reading() as db:
            return reader.changes(db, after, run, limit)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection in a read transaction, so all reads see one revision."""
        db = self._readers.get()
        if db is None:
            self._readers.put(None)  # wakes the next reader that waits
            raise RuntimeError(f"{self._path}: the store is closed")
        try:
            db.execute("BEGIN")
            yield db
        finally:
            db.execute("ROLLBACK")
            self._readers.put(db)

    # --- the writer's side: from one thread only ---

    def restore(self) -> list[RunState]:
        """The last state of every run.

        Raises:
          StoreError: the stored data is damaged.
        """
        try:
            return list(self._rows.runs())
        except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{self._path}: damaged ({error!r}): move the file away, or choose another --data-dir"
            ) from error

    def digest(self, report: Report) -> bytes | None:
        """The digest stored for the report's incarnation and seq; None if it is no longer stored."""
        return self._rows.digest(report)

    def commit(self, plan: Plan, digest: bytes | None = None) -> tuple[int, Plan]:
        """Store everything that a plan changes in one transaction.

        Returns:
          The revision, and the plan as it was stored: without step records if there was no room for them.

        Raises:
          StoreFullError: there is no room even for the totals. Nothing was stored.
        """
        for version in (plan, plan.without_records()):
            try:
                return self.commit_group([(version, digest)]), version
            except sqlite3.DatabaseError as error:
                if type(error) not in _DISK_ERRORS:
                    raise
                full = error
        raise StoreFullError(f"{self._path}: {full}") from full

    def commit_group(self, plans: Sequence[tuple[Plan, bytes | None]]) -> int:
        """Store everything that several plans change in one transaction.

        Args:
          plans: plans, each with the digest of its report. Each sees those before it.

        Returns:
          The revision of the last plan.

        Raises:
          sqlite3.Error: the database could not be written. Nothing was stored.
        """
        return self._transaction(partial(self._rows.write, plans))

    def make_room(self, records: int = 0) -> Mapping[Origin, int]:
        """Delete the oldest step records, then the oldest events, until `records` more fit within the limit.

        If much more has to be deleted (the limit was lowered), each call deletes a part. Only the limit counts: a disk
        that other programs fill is not freed here.

        Returns:
          How many step records were deleted, by run, process and incarnation. They are counted as not stored.
        """
        lost: Counter[Origin] = Counter()
        if self._limit is None:
            return lost
        coming = _RECORD_BYTES * records
        used = schema.used_bytes(self._db)
        target = max(int(_CROWDED * self._limit) - coming, used - 2 * coming - _SLICE)
        try:
            while schema.used_bytes(self._db) > target:
                gone = self._transaction(lambda: retention.make_room(self._db, target, _AT_ONCE))
                if gone is not None:
                    lost.update(gone)
                elif not self._transaction(lambda: retention.drop_events(self._db, _AT_ONCE)):
                    break
        except sqlite3.Error:  # no more room can be made
            pass
        return lost

    def retire(self, before: float) -> bool:
        """Delete some of the step records and events that were committed before a time. False if there were none.

        Raises:
          sqlite3.Error: the database could not be written.
        """
        revision = retention.last_change_before(self._db, before, _AT_ONCE)
        if revision is None:
            return False

        def both() -> None:
            retention.drop_records(self._db, revision)
            self._db.execute("DELETE FROM event WHERE revision <= ?", (revision,))

        self._transaction(both)
        return True

    def forget(self, run: str) -> bool:
        """Delete everything about a run. False if the run is unknown.

        Raises:
          sqlite3.Error: the database could not be written.
        """
        self._rows.forget_keys()
        return self._transaction(lambda: retention.forget(self._db, run))

    def _transaction(self, work: Callable[[], Result]) -> Result:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            self._db.execute("COMMIT")
        except BaseException:
            self._rows.forget_keys()  # rows written in this transaction are gone
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return result


def _locked(directory: Path) -> int:
    """Lock the directory, and create it if it is missing. Returns the descriptor that holds the lock."""
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
