"""The connections that read the database. They never block the writer."""

import contextlib
import queue
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from optwrap_exporter.store import schema
from optwrap_exporter.store.condition import Watch

_READERS: Final = 4


class Readers:
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
          StoreUnavailableError: the database is damaged, or the disk failed.
        """
        db = self._free.get()
        if db is None:
            self._free.put(None)  # wakes the next reader that waits
            raise RuntimeError(f"{self._path}: the store is closed")
        try:
            db.execute("BEGIN")
            yield db
        except sqlite3.Error as error:
            raise self._watch.failed(error) from error
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._free.put(db)
