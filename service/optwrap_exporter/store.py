"""The store: SQLite in one directory of a local disk, one writer.

What is committed survives the death of the process (kill -9), not a power cut: the log is written with
`synchronous=NORMAL`. Reads have connections of their own and never hold the writer up.
"""

from pathlib import Path

from optwrap_exporter.wire import Event, EventKind, Page, ReportMessage, StepsAnswer


class StoreError(Exception):
    """The directory cannot be used: one line that says which, why, and what to do. Raised by `Store(...)` only."""


class StoreFull(Exception):
    """Not even the totals fit (503). Nothing of the report was stored."""


class Store:
    """Everything durable. Close it; or use it as a context manager.

    Args:
      directory: made if it is not there (mode 0700). Held by a lock: a second store on it is refused.
      limit_bytes: what the database may take on the disk; None: no limit but the disk's.

    Raises:
      StoreError: the directory cannot be made, read or written, is in use by another exporter, or holds something else
        than a store of a version that this one knows.
    """

    def __init__(self, directory: Path, *, limit_bytes: int | None = None) -> None:
        raise NotImplementedError

    @property
    def limit_bytes(self) -> int | None:
        """The limit that was given."""
        raise NotImplementedError

    def size(self) -> int:
        """Bytes that the database takes on the disk, its log included."""
        raise NotImplementedError

    def revision(self) -> int:
        """The last committed change; 0 in an empty store."""
        raise NotImplementedError

    def steps(
        self, run: str, process: int, *, since: int | None = None, until: int | None = None, points: int = 2000
    ) -> StepsAnswer:
        """Step records of one process with since <= step <= until, by step.

        Where there are more than `points` good ones, their range is cut into `points // 2` parts of equal length, and of
        each part those with the smallest and the largest norm are kept. Bad ones (skipped, accepted though not finite, or
        gradients not finite) are always all there. An unknown run or process has none.
        """
        raise NotImplementedError

    def events(
        self,
        run: str,
        *,
        kind: EventKind | None = None,
        process: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Event]:
        """Events, newest first. What every process says alike (skips, streaks) comes from one process of each attempt,
        the lowest that reports, unless `process` asks for one of them.

        Raises:
          CursorError: the cursor is not one of this list (run, kind and process belong to the list).
        """
        raise NotImplementedError

    def changes(self, after: int, run: str | None = None, limit: int = 100) -> list[ReportMessage]:
        """What was committed after that revision, in order: of one run or of all.

        The messages of the stream. Fewer than `limit` means that there is no more for now.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give the directory free."""
        raise NotImplementedError
