"""The connections that read the database. They never block the writer."""

import contextlib
import contextvars
import queue
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from optwrap_exporter.store import schema
from optwrap_exporter.store.condition import Watch
from optwrap_exporter.wire.errors import ExporterError

_READERS: Final = 4
_ASKED_EVERY: Final = 20_000
"""After so many instructions of SQLite, about a millisecond of work, a read asks whether anybody still waits for it."""

IN_VAIN: Final[contextvars.ContextVar[Callable[[], bool] | None]] = contextvars.ContextVar("in_vain", default=None)
"""Returns whether nobody waits for what this thread or task reads, so that a long read may end. None: somebody does."""


class AbandonedError(ExporterError):
    """A read was interrupted, because nobody waits for it any more."""


class ClosedError(ExporterError):
    """The exporter is shutting down: it stores nothing more, and reads nothing more from its store."""


class Connections:
    """A few connections. Any thread may use them; a read waits for a free one.

    Args:
      path: the database.
      watch: is told if a read fails.

    Raises:
      sqlite3.Error: the database cannot be opened.
    """

    def __init__(self, path: Path, watch: Watch) -> None:
        self._path = path
        self._watch = watch
        self._free: queue.LifoQueue[sqlite3.Connection | None] = queue.LifoQueue()  # None: closed
        for _ in range(_READERS):
            connection = schema.connect(path)
            connection.execute("PRAGMA query_only = ON")
            self._free.put(connection)

    def close(self) -> None:
        """Wait for running reads, then close the connections."""
        for _ in range(_READERS):
            if (connection := self._free.get()) is not None:
                connection.close()
        self._free.put(None)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection in a read transaction, so all reads see one revision.

        Raises:
          AbandonedError: `IN_VAIN` says that nobody waits for it.
          ClosedError: the store is closed.
          StoreUnavailableError: the database is damaged, or the disk failed.
        """
        db = self._free.get()
        if db is None:
            self._free.put(None)  # wakes the next reader that waits
            raise ClosedError(f"{self._path}: the store is closed")
        in_vain = IN_VAIN.get()
        try:
            db.set_progress_handler(in_vain, _ASKED_EVERY)
            db.execute("BEGIN")
            yield db
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise AbandonedError("the read was interrupted") from None
            raise self._watch.failed(error) from error
        finally:
            db.set_progress_handler(None, 0)
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._free.put(db)
