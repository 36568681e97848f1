"""Writes the committed events as JSON lines, for log pipelines.

A thread follows the store: it reads what was committed since the last line. So it holds nothing up and needs no queue.
If a write fails, or a pipe is full, the events wait in the store.
"""

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from optwrap_exporter.ingest.group_commit import Committed
from optwrap_exporter.store.condition import StoreUnavailableError
from optwrap_exporter.store.event_list import Logged, Position
from optwrap_exporter.store.store import Store
from optwrap_exporter.wire.errors import ExporterError

STDOUT: Final = "-"
_log = logging.getLogger(__name__)

_AT_ONCE: Final = 500
"""Events that are read and written at once."""
_RETRY_SECONDS: Final = 1.0
_TAIL_BYTES: Final = 1 << 20
"""The end of the file that is read at start. A line is shorter: an event names at most 20 parameters."""
_CLOSE_SECONDS: Final = 5.0
"""How long the end of the exporter waits for a pipe that nobody reads."""


class EventLogError(ExporterError):
    """The file cannot be written."""


class EventLog:
    """Follows the events of a store. Call `start()`, then `close()` when nothing is committed any more.

    A file is continued after its last line, also with the events that were committed while nobody wrote it. On standard
    output the log begins with the next event.

    Args:
      store: has the events.
      place: path of the file, or STDOUT. The file is opened for each write, so it may be moved away at any time.
      failed: called for each write that failed. The same events are written later.

    Raises:
      EventLogError: the file cannot be written.
    """

    def __init__(self, store: Store, place: str, failed: Callable[[], None]) -> None:
        self._store = store
        self._path = None if place == STDOUT else Path(place)
        self._failed = failed
        newest = Position(store.revision(), 1 << 62)
        self._position = newest
        if self._path is not None:
            try:
                self._position = min(_last(self._path) or newest, newest)
            except OSError as error:
                raise EventLogError(f"--event-log {place}: {error.strerror or error}") from error
        self._wake = threading.Event()
        self._wake.set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="optwrap-event-log", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def committed(self, _: Committed) -> None:
        """Write what was committed, soon. Any thread may call it; it returns at once."""
        self._wake.set()

    def close(self) -> None:
        """Write what is left, then end. Gives up on a pipe that nobody reads, or a file that cannot be written."""
        self._closing.set()
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)

    # --- the thread ---

    def _work(self) -> None:
        failing = False
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            try:
                while found := self._store.logged_events(self._position, _AT_ONCE):
                    self._write("".join(map(_line, found)).encode())
                    self._position = found[-1].position
                    if failing:
                        failing = False
                        _log.info("writes the event log again: no event is missing")
            except (OSError, StoreUnavailableError) as error:
                self._failed()
                if not failing:
                    failing = True
                    _log.warning("cannot write the event log; will try every %g s: %s", _RETRY_SECONDS, error)
                if not closing:
                    self._closing.wait(_RETRY_SECONDS)
                    self._wake.set()
            if closing:
                return

    def _write(self, lines: bytes) -> None:
        if self._path is None:
            while lines:
                lines = lines[os.write(1, lines) :]
            return
        with self._path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while lines:
                    lines = lines[file.write(lines) :]
            except OSError:
                file.truncate(end)  # the same lines are written later
                raise


def _line(one: Logged) -> str:
    event = one.event.model_dump(mode="json")
    return json.dumps({"revision": one.position.revision, **event}, ensure_ascii=False) + "\n"


def _last(path: Path) -> Position | None:
    """The position of the last line of a file; None if there is none. A line that a crash cut off is removed."""
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _TAIL_BYTES))
        tail = file.read()
        whole = tail[: tail.rfind(b"\n") + 1]
        if len(whole) < len(tail):
            file.truncate(end - len(tail) + len(whole))
        try:
            found = json.loads(whole.splitlines()[-1])
            return Position(int(found["revision"]), int(found["id"]))
        except (IndexError, ValueError, KeyError, TypeError):
            return None
