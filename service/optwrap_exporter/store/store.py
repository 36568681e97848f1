"""The store: an SQLite database in a directory of a local disk, with one writer.

A committed transaction survives `kill -9`, but not a power cut: the write-ahead log uses `synchronous=NORMAL`. Readers
have connections of their own and never block the writer.
"""

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from optwrap_exporter.ledger.plan import Plan
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.store import incident_list, opening, retention, schema
from optwrap_exporter.store.condition import StoreState, StoreUnavailableError, Watch, classify
from optwrap_exporter.store.connections import Connections
from optwrap_exporter.store.opening import FILE, StoreError
from optwrap_exporter.store.reads import StoreReads
from optwrap_exporter.store.retention import Origin
from optwrap_exporter.store.writer import Rows
from optwrap_exporter.wire.requests import Report

SMALLEST_LIMIT: Final = 1024 * 1024
"""The smallest `limit_bytes`. Empty tables take a tenth of it."""

_AT_ONCE: Final = 64
"""Events deleted in one transaction if there is no room for them."""
_CROWDED: Final = 0.9
"""The part of the limit that is filled. The rest absorbs the growth of the B-trees."""
_RECORD_BYTES: Final = 100
"""Roughly the most bytes that a step record or an offender takes."""
_SLICE: Final = 1 << 16
"""Bytes that are freed in addition to what is needed, so that the next reports need not free any."""

Result = TypeVar("Result")


def holds_store(directory: Path) -> bool:
    """Whether the directory contains a store."""
    return (directory / FILE).is_file()


class Store(StoreReads):
    """The store of one exporter. Close it, or use it as a context manager.

    Args:
      directory: created with mode 0700 if it is missing. It is locked: another exporter cannot use it.
      limit_bytes: the most bytes the database may take, without its log of a few MiB; at least SMALLEST_LIMIT. At the
        limit the oldest step records are deleted, then the oldest events, then incidents that are over. None: no limit.
      recover: whether to move a damaged database aside and begin a new one.

    Raises:
      StoreError: the directory cannot be created, read or written; another exporter uses it; it contains something
        other than a store of this schema version; the database is damaged; or the limit is too small.
    """

    def __init__(self, directory: Path, *, limit_bytes: int | None = None, recover: bool = False) -> None:
        if limit_bytes is not None and limit_bytes < SMALLEST_LIMIT:
            raise StoreError(f"store limit: {limit_bytes} bytes: set at least {SMALLEST_LIMIT}")
        self._path = directory / FILE
        self._limit = limit_bytes
        self._closed = False
        self._lock = opening.locked(directory)
        try:
            self._db, self._restored = opening.opened(self._path, recover=recover)
            schema.limit_pages(self._db, limit_bytes)
            self._rows = Rows(self._db)
            self._sweep: retention.Sweep | None = None
            self._watch = Watch(self._path, lambda: schema.file_bytes(self._db))
            self._size = schema.used_bytes(self._db)
            self._connections = Connections(self._path, self._watch)
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{self._path}: {error}: check free space and permissions") from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for running reads, then close the database and unlock the directory."""
        if self._closed:
            return
        self._closed = True
        self._connections.close()
        self._db.close()
        os.close(self._lock)

    # --- reads, from any thread ---

    @property
    def limit_bytes(self) -> int | None:
        """The limit, as it was passed."""
        return self._limit

    @property
    def state(self) -> StoreState:
        """Whether reports are stored, and if not, why."""
        return self._watch.state

    def size(self) -> int:
        """Bytes in use, which the limit applies to. The file may also have free pages.

        If the database cannot be read, what it was before.
        """
        with contextlib.suppress(StoreUnavailableError), self._connections.reading() as db:
            self._size = schema.used_bytes(db)
        return self._size

    # --- the writer's side: from one thread only ---

    def restore(self) -> list[RunState]:
        """The state of every run when the store was opened. Call it once."""
        restored, self._restored = self._restored, []
        return restored

    def newest(self) -> float | None:
        """The time of the newest change, by the clock that data ages by; None if there is none."""
        row = self._db.execute("SELECT time FROM change ORDER BY revision DESC LIMIT 1").fetchone()
        return row and float(row[0])

    def last_incident(self) -> int:
        """The largest id that an incident has had; 0 if there was none."""
        return incident_list.last_id(self._db)

    def incident(self, number: int) -> tuple[str, IncidentRecord] | None:
        """An incident and its run, by its id; None if there is none."""
        return incident_list.find(self._db, number)

    def incidents_kept(self, numbers: Sequence[int]) -> frozenset[int]:
        """Those of some ids that incidents have. Retention may have deleted the others."""
        return incident_list.kept(self._db, numbers)

    def look(self) -> bool:
        """Look whether reports can be stored. After a failure a trial write finds out; call it about once a second.

        Returns:
          Whether they can. If not, `state` has the reason.
        """
        try:
            self._watch.look()
            if not self._watch.state.ok and self._watch.may_try:
                self._transaction(lambda: schema.write_trial(self._db), trial=True)
                self._transaction(lambda: schema.delete_trial(self._db), trial=True)
                self._watch.recovered()
        except StoreUnavailableError:
            pass
        except sqlite3.Error as error:
            self._watch.failed(error)
        return self._watch.state.ok

    def digest(self, report: Report) -> bytes | None:
        """The digest stored for the report's incarnation and seq; None if it is no longer stored."""
        return self._rows.digest(report)

    def commit(self, plan: Plan, digest: bytes | None = None) -> tuple[int, Plan]:
        """Store everything that a plan changes in one transaction.

        Returns:
          The revision, and the plan as it was stored: without step records if there was no room for them.

        Raises:
          StoreUnavailableError: it cannot be stored: there is no room even for the totals, the database is damaged, ...
        """
        for version in (plan, plan.without_records()):
            try:
                return self._write([(version, digest)]), version
            except sqlite3.Error as error:
                failure = error
                if classify(error) != "full":
                    break
        raise self._watch.failed(failure) from failure

    def commit_group(self, plans: Sequence[tuple[Plan, bytes | None]]) -> int:
        """Store everything that several plans change in one transaction.

        Args:
          plans: plans, each with the digest of its report. Each sees those before it.

        Returns:
          The revision of the last plan.

        Raises:
          StoreUnavailableError: nothing was stored.
          sqlite3.Error: there is no room for all of them. Nothing was stored; `commit` may store some of them.
        """
        try:
            return self._write(plans)
        except sqlite3.Error as error:
            if classify(error) == "full":
                raise
            raise self._watch.failed(error) from error

    def _write(self, plans: Sequence[tuple[Plan, bytes | None]]) -> int:
        return self._transaction(partial(self._rows.write, plans))

    def make_room(self, records: int = 0) -> Mapping[Origin, int]:
        """Delete the oldest step records, then the oldest events, until `records` more fit within the limit.

        If much more has to be deleted (the limit was lowered), each call deletes a part. Only the limit counts: a disk
        that other programs fill is not freed here.

        Returns:
          How many step records were deleted, by run, process and incarnation. They are counted as not stored.
        """
        lost: Counter[Origin] = Counter()
        if self._limit is None or self._watch.state.condition not in {"ok", "full"}:
            return lost
        coming = _RECORD_BYTES * records
        used = schema.used_bytes(self._db)
        target = max(int(_CROWDED * self._limit) - coming, used - 2 * coming - _SLICE)
        try:
            while (missing := schema.used_bytes(self._db) - target) > 0:
                work = partial(retention.make_room, self._db, missing, _RECORD_BYTES)
                gone = self._transaction(work, trial=True)
                if gone is not None:
                    lost.update(gone)
                elif not self._transaction(lambda: retention.drop_events(self._db, _AT_ONCE), trial=True):
                    break
        except (sqlite3.Error, StoreUnavailableError):  # no more room can be made
            pass
        return lost

    def retire(self, before: float, slack: float = 0.0) -> bool:
        """Delete some of the step records and events that were committed before a time. False if there were none.

        Args:
          before: the time, by the clock that data ages by.
          slack: seconds by which the oldest must be older, to begin with. It then deletes all of them, call by call.

        Raises:
          StoreUnavailableError, sqlite3.Error: the database could not be written.
        """
        sweep = self._sweep if self._sweep is not None else retention.sweep_before(self._db, before, slack)
        self._sweep = sweep
        if sweep is None:
            return False
        committed = self._transaction(sweep.delete_slice)
        committed()
        if sweep.done:
            self._sweep = None
        return True

    def forget(self, run: str) -> bool:
        """Delete everything about a run. False if the run is unknown.

        Raises:
          StoreUnavailableError, sqlite3.Error: the database could not be written.
        """
        self._rows.forget_keys()
        return self._transaction(lambda: retention.forget(self._db, run), trial=True)

    def _transaction(self, work: Callable[[], Result], *, trial: bool = False) -> Result:
        """Do `work` in a transaction. Only a trial is begun while the store is unhealthy."""
        if not trial:
            self._watch.require()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            result = work()
            self._watch.look()  # nothing is committed to files that are gone
            self._db.execute("COMMIT")
        except BaseException:
            self._rows.forget_keys()  # rows written in this transaction are gone
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            raise
        return result
