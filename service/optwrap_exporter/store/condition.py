"""The condition of the store: what SQLite's errors and the files themselves say. No other module judges them.

    ok         reports are stored
    full       no room, on the disk or within the limit
    read_only  the file system or the file cannot be written
    corrupt    the database is damaged
    io_error   reading or writing failed for another reason
    gone       the database is no longer where it was opened: it was deleted, renamed or replaced

While the condition is not `ok`, no report is stored, so none is acknowledged. `full`, `read_only` and `io_error` end by
themselves once a trial write succeeds, `gone` once the same files are back. `corrupt` needs a restart.
"""

import logging
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, get_args

from optwrap_exporter.wire.errors import ExporterError

_log = logging.getLogger(__name__)

Condition = Literal["ok", "full", "read_only", "corrupt", "io_error", "gone"]
CONDITIONS: Final[tuple[Condition, ...]] = get_args(Condition)

TRIAL_SECONDS: Final = 5.0
"""Seconds from a failed write to the next trial. A store that takes small writes only must not change too often."""

_ROOM: Final = 16 << 20
"""Bytes: a disk that has so many left is not why the store is full."""

_REMEDIES: Final = MappingProxyType(
    {
        "ok": "nothing",
        "full": "free disk space for {directory}; the exporter then goes on by itself",
        "at_limit": "raise --retention-bytes, delete runs, or raise the quota of {directory}; the exporter then "
        "goes on by itself",
        "read_only": "make {directory} writable; the exporter then goes on by itself",
        "corrupt": "restart with --recover, which moves the damaged database aside and begins a new one, or restore a "
        "backup and restart",
        "io_error": "look for the disk's errors in the system's log, or for a program that has locked the database; "
        "the exporter goes on by itself once a write succeeds",
        "gone": "put the same directory back at {directory}, and the exporter goes on by itself; or restart it: it "
        "then begins with what is in the directory, and a directory made anew is an empty store",
    }
)

# By SQLite's primary result code: https://www.sqlite.org/rescode.html
_BY_CODE: Final = MappingProxyType(
    {
        sqlite3.SQLITE_FULL: "full",
        sqlite3.SQLITE_READONLY: "read_only",
        sqlite3.SQLITE_PERM: "read_only",
        sqlite3.SQLITE_CORRUPT: "corrupt",
        sqlite3.SQLITE_NOTADB: "corrupt",
        sqlite3.SQLITE_IOERR: "io_error",
        sqlite3.SQLITE_CANTOPEN: "io_error",
        sqlite3.SQLITE_PROTOCOL: "io_error",
        sqlite3.SQLITE_BUSY: "io_error",  # another program has locked the database for long
    }
)


@dataclass(frozen=True, slots=True)
class StoreState:
    """The condition of the store, since when, and why."""

    condition: Condition = "ok"
    since: float = 0.0
    """Seconds since 1970."""
    why: str = ""
    directory: str = "the data directory"
    at_limit: bool = False
    """Whether it is full because of --retention-bytes, and the disk has room."""

    @property
    def ok(self) -> bool:
        """Whether reports are stored."""
        return self.condition == "ok"

    @property
    def remedy(self) -> str:
        """What to do."""
        return _REMEDIES["at_limit" if self.at_limit else self.condition].format(directory=self.directory)


class StoreUnavailableError(ExporterError):
    """The store cannot store or read now. Nothing was stored (HTTP 503).

    Attributes:
      state: its condition.
    """

    def __init__(self, state: StoreState) -> None:
        self.state = state
        super().__init__(f"the store is {state.condition}: {state.why}: {state.remedy}")


def classify(error: sqlite3.Error) -> Condition | None:
    """The condition that an error of SQLite shows; None if it is an error of the program."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return None
    if "no such table" in str(error):  # the database was emptied
        return "corrupt"
    return _BY_CODE.get(code & 0xFF)  # type: ignore[return-value]


class Watch:
    """Watches the condition of one open database, and logs every change of it once. Any thread may use it.

    Args:
      path: the database. Its write-ahead log must exist.
      expected: returns the bytes that SQLite takes the database to have. Called if the file became shorter.
      clock: seconds since 1970.
    """

    def __init__(self, path: Path, expected: Callable[[], int], clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._expected = expected
        self._log_path = path.with_name(f"{path.name}-wal")
        self._clock = clock
        self._lock = threading.Lock()
        self._state = StoreState(since=clock())
        self._failed_at = 0.0
        self._size = 0
        self._log_size = 0
        self._files = (_identity(path), _identity(self._log_path))

    @property
    def state(self) -> StoreState:
        """The condition now."""
        return self._state

    @property
    def may_try(self) -> bool:
        """Whether it is time for a trial write."""
        return self._state.condition != "corrupt" and time.monotonic() >= self._failed_at + TRIAL_SECONDS

    def require(self) -> None:
        """Check that reports are stored.

        Raises:
          StoreUnavailableError: they are not.
        """
        if not self._state.ok:
            raise StoreUnavailableError(self._state)

    def look(self) -> None:
        """Compare the files with those that were opened. It takes some microseconds.

        SQLite does not notice that its files were deleted, renamed or replaced, and goes on writing to them.

        Raises:
          StoreUnavailableError: they are gone, or the database was cut off.
        """
        try:
            found = os.stat(self._path)
            here = ((found.st_dev, found.st_ino), _identity(self._log_path))
        except OSError:
            raise self._set("gone", f"{self._path} is no longer there") from None
        if here != self._files:
            other = self._path if here[0] != self._files[0] else self._log_path
            raise self._set("gone", f"{other} is missing, or is not the file that was opened")
        # Only a VACUUM makes it shorter, and SQLite knows of that.
        if found.st_size < self._size and found.st_size < self._expected():
            raise self._set("corrupt", f"{self._path} was truncated from {self._size} to {found.st_size} bytes")
        self._size = found.st_size
        log_size = os.stat(self._log_path).st_size
        if log_size < self._log_size and log_size < _log_bytes(self._path):
            raise self._set("corrupt", f"{self._log_path} was truncated from {self._log_size} to {log_size} bytes")
        self._log_size = log_size
        if self._state.condition == "gone":
            self.recovered()

    def failed(self, error: sqlite3.Error) -> Exception:
        """Note that reading or writing failed.

        Returns:
          The exception to raise: StoreUnavailableError, or the error itself if it says nothing about the store.
        """
        condition = classify(error)
        if condition is None:
            return error
        self._failed_at = time.monotonic()
        return self._set(_looked_up(condition, self._path.parent), str(error))

    def recovered(self) -> None:
        """Note that writing works again."""
        with self._lock:
            before, self._state = self._state, StoreState(since=self._clock())
        if not before.ok:
            seconds = self._state.since - before.since
            _log.warning(
                "the store is ok again after %.0f s (it was %s); reports are stored", seconds, before.condition
            )

    def _set(self, condition: Condition, why: str) -> StoreUnavailableError:
        with self._lock:
            before = self._state
            # What is corrupt or gone also fails in other ways.
            keep = before.condition in {condition, "corrupt"} or (before.condition == "gone" and condition != "corrupt")
            if not keep:
                since = self._clock() if before.ok else before.since
                directory = self._path.parent
                at_limit = condition == "full" and _free_bytes(directory) >= _ROOM
                self._state = StoreState(condition, since, why, str(directory), at_limit)
            state = self._state
        if not keep:
            _log.error("no reports are stored: the store is %s: %s: %s", condition, why, state.remedy)
        return StoreUnavailableError(state)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _log_bytes(path: Path) -> int:
    """The bytes that the write-ahead log needs to have, by its index: https://www.sqlite.org/walformat.html, 2.2."""
    with path.with_name(f"{path.name}-shm").open("rb") as file:
        header = file.read(20)
    if len(header) < 20:
        return 0
    page, frames = struct.unpack_from("=14xHI", header)
    return 32 + frames * (24 + (65_536 if page == 1 else page)) if frames else 0


def _free_bytes(directory: Path) -> int:
    """The bytes that the disk has left; 0 if that cannot be told."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _looked_up(condition: Condition, directory: Path) -> Condition:
    """The condition, or what the file system says if SQLite reports only that input or output failed."""
    if condition != "io_error":
        return condition
    try:
        found = os.statvfs(directory)
    except OSError:
        return "io_error"
    if found.f_flag & os.ST_RDONLY:
        return "read_only"
    return "full" if found.f_bavail == 0 else "io_error"
