"""The store: SQLite in one directory of a local disk, one writer.

What is committed survives the death of the process (kill -9), not a power cut: the log is written with
`synchronous=NORMAL`. Reads have connections of their own and never hold the writer up.
"""

import contextlib
import fcntl
import os
import queue
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from optwrap_exporter.ledger.ledger import Plan
from optwrap_exporter.ledger.run import RunState
from optwrap_exporter.store import reader as queries
from optwrap_exporter.store import retention, schema
from optwrap_exporter.store.downsample import Axis
from optwrap_exporter.store.retention import Origin
from optwrap_exporter.store.writer import Rows
from optwrap_exporter.wire.answers import Event, Page, ReportMessage, StepsAnswer
from optwrap_exporter.wire.requests import Report
from optwrap_exporter.wire.vocabulary import EventKind

SMALLEST_LIMIT: Final = 1024 * 1024
"""The least that `limit_bytes` may be: empty tables take a tenth of it."""

_FILE: Final = "optwrap.sqlite3"
_READERS: Final = 4
_AT_ONCE: Final = 64
"""Changes whose records, or events, that are dropped in one transaction: short, because the next report waits."""
_CROWDED: Final = 0.9
"""The part of the limit that is filled: beyond it are the log's and the tree's own ups and downs."""
_RECORD_BYTES: Final = 100
"""What a step record or an offender takes at most, by and large."""
_SLICE: Final = 1 << 16
"""Bytes beyond what is needed that are given free at once."""

_OF_THE_DISK: Final = (sqlite3.OperationalError, sqlite3.DatabaseError)
"""What a full or failing disk, or a damaged file, raises: these classes themselves; those derived are our mistakes."""

Result = TypeVar("Result")


class StoreError(Exception):
    """The directory cannot be used: one line that says which, why, and what to do. Raised by `Store(...)` only."""


class StoreFull(Exception):
    """Not even the totals can be stored (503). Nothing of the report was."""


def holds_store(directory: Path) -> bool:
    """Whether there is a store in that directory; none is made."""
    return (directory / _FILE).is_file()


class Store:
    """Everything durable. Close it; or use it as a context manager.

    Args:
      directory: made if it is not there (mode 0700). Held by a lock: a second store on it is refused.
      limit_bytes: what the database may take on the disk, its log of a few MiB not included; at least SMALLEST_LIMIT.
        None: no limit but the disk's. Where it is reached the oldest step records make room, then the oldest events.

    Raises:
      StoreError: the directory cannot be made, read or written, is in use by another exporter, or holds something else
        than a store of a version that this one knows; or the limit is too small.
    """

    def __init__(self, directory: Path, *, limit_bytes: int | None = None) -> None:
        if limit_bytes is not None and limit_bytes < SMALLEST_LIMIT:
            raise StoreError(f"store limit: {limit_bytes} bytes: give at least {SMALLEST_LIMIT}, or none")
        self._path = directory / _FILE
        self._limit = limit_bytes
        self._readers: queue.LifoQueue[sqlite3.Connection | None] = queue.LifoQueue()  # None: there are no more
        self._closed = False
        self._lock = _locked(directory)
        try:
            self._db = schema.connect(self._path)
            schema.prepare(self._db)
            schema.limit_pages(self._db, limit_bytes)
            self._rows = Rows(self._db)
            for _ in range(_READERS):
                reader = schema.connect(self._path)
                reader.execute("PRAGMA query_only = ON")
                self._readers.put(reader)
        except schema.NotOurs as error:
            os.close(self._lock)
            raise StoreError(f"{self._path}: {error}: move it away, or give another --data-dir") from None
        except sqlite3.Error as error:
            os.close(self._lock)
            away = "make room or rights for it" if isinstance(error, sqlite3.OperationalError) else "move it away"
            raise StoreError(f"{self._path}: {error}: {away}, or give another --data-dir") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory free. Waits for reads that go on."""
        if self._closed:
            return
        self._closed = True
        for _ in range(_READERS):
            if (reader := self._readers.get()) is not None:
                reader.close()
        self._readers.put(None)
        self._db.close()
        os.close(self._lock)

    # --- reads, from any thread ---

    @property
    def limit_bytes(self) -> int | None:
        """The limit that was given."""
        return self._limit

    def size(self) -> int:
        """Bytes of the database that hold something: what the limit is about. The file may be larger by free pages."""
        with self._reading() as db:
            return schema.used_bytes(db)

    def revision(self) -> int:
        """The last committed change; 0 in an empty store."""
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

        Where there are more than `points` good ones, their range is cut into at most `points // 2` parts of one length,
        of whole blocks where they are wide, and of each part those with the smallest and the largest norm are kept. The
        parts are of one length along `axis`: as many step numbers, or as long a time.
        Bad ones (skipped, accepted though not
        finite, or gradients not finite) are always all there. An unknown run or process has none. After a rollback or
        a resume a step number may be there more than once: each is a step that was taken.
        """
        with self._reading() as db:
            return queries.steps(db, run, process, since=since, until=until, points=points, axis=axis)

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

        What every process says alike (skips, streaks) comes once, from the first that told it, unless `process` asks
        for all that one of them told.

        Raises:
          CursorError: the cursor is not one of this list (run, kind and process belong to the list).
        """
        with self._reading() as db:
            return queries.events(db, run, kind=kind, process=process, limit=limit, cursor=cursor)

    def changes(self, after: int, run: str | None = None, limit: int = 100) -> list[ReportMessage]:
        """What was committed after that revision, in order: of one run or of all.

        The messages of the stream. Fewer than `limit` means that there is no more for now.
        """
        with self._reading() as db:
            return queries.changes(db, after, run, limit)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection in which everything that is read is of one revision."""
        db = self._readers.get()
        if db is None:
            self._readers.put(None)  # for whoever waits next
            raise RuntimeError(f"{self._path}: the store is closed")
        try:
            db.execute("BEGIN")
            yield db
        finally:
            db.execute("ROLLBACK")
            self._readers.put(db)

    # --- the writer's side: from one thread only ---

    def restore(self) -> list[RunState]:
        """What the ledger remembers of every run.

        Raises:
          StoreError: what is stored makes no sense.
        """
        try:
            return list(self._rows.runs())
        except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{self._path}: {error!r}: damaged; move it away, or give another --data-dir") from error

    def digest(self, report: Report) -> bytes | None:
        """The digest of the report that was stored with the same incarnation and seq; None where it is not kept any more."""
        return self._rows.digest(report)

    def commit(self, plan: Plan, digest: bytes | None = None) -> tuple[int, Plan]:
        """Store what a plan changes, all of it in one transaction.

        Returns:
          The revision; and the plan as it was stored: without step records where there was no room for them.

        Raises:
          StoreFull: not even the totals could be stored. Nothing was.
        """
        for version in (plan, plan.without_records()):
            try:
                return self._transaction(partial(self._rows.write, version, digest)), version
            except sqlite3.DatabaseError as error:
                if type(error) not in _OF_THE_DISK:
                    raise
                full = error
        raise StoreFull(f"{self._path}: {full}") from full

    def make_room(self, records: int = 0) -> Mapping[Origin, int]:
        """Forget the oldest step records, then the oldest events, until so many records more are within the limit.

        Where far more would have to go (the limit was lowered) it is some now and some the next time. It is the limit
        alone that is looked at: a disk that others fill is not emptied by us.

        Returns:
          How many step records went, by where they came from; each is counted as not stored.
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
        except sqlite3.Error:  # then there is no more room than there is
            pass
        return lost

    def retire(self, before: float) -> bool:
        """Forget some of the step records and events that were committed before a time; False: no more to forget.

        Raises:
          sqlite3.Error: it was not possible.
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
        """Delete everything of a run; False where it is unknown.

        Raises:
          sqlite3.Error: it was not possible.
        """
        self._rows.forget_keys()
        return self._transaction(lambda: retention.forget(self._db, run))

    def _transaction(self, work: Callable[[], Result]) -> Result:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            self._db.execute("COMMIT")
        except BaseException:
            self._rows.forget_keys()  # those made in it are no more
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return result


def _locked(directory: Path) -> int:
    """The descriptor of the directory's lock; the directory is made if it is not there."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise StoreError(f"data directory {directory}: not a directory: give another, by --data-dir") from error
    except OSError as error:
        raise StoreError(
            f"data directory {directory}: {error.strerror}: give one that can be written, by --data-dir"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StoreError(
            f"data directory {directory}: in use by another exporter: stop that one, or give another by --data-dir"
        ) from error
    return lock
