"""Keeps clients from filling the log: a message that they can cause is logged at most once a minute."""

import logging
import time
from collections.abc import Callable
from typing import Final

SECONDS: Final = 60.0
"""The shortest time between two messages of one kind."""
_MOST_KINDS: Final = 256


class LogLimit(logging.Filter):
    """A filter for a handler. A message says how many of its kind were left out before it.

    Messages are of one kind if they have the same text before formatting, and the same exception at the same line.

    Args:
      names: the loggers to limit.
      clock: seconds.
    """

    def __init__(self, names: tuple[str, ...], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._names = names
        self._clock = clock
        self._seen: dict[object, tuple[float, int]] = {}
        """By kind: when it was logged last, and how often it was left out since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log a record."""
        if record.name not in self._names:
            return True
        kind, now = _kind(record), self._clock()
        logged, left_out = self._seen.get(kind, (-SECONDS, 0))
        if now - logged < SECONDS and kind in self._seen:
            self._seen[kind] = (logged, left_out + 1)
            return False
        if len(self._seen) >= _MOST_KINDS:
            self._seen.clear()
        self._seen[kind] = (now, 0)
        if left_out:
            record.msg, record.args = f"{record.getMessage().rstrip()} ({left_out} more of these were not logged)", ()
        return True


def _kind(record: logging.LogRecord) -> object:
    traceback = record.exc_info[2] if record.exc_info else None
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    where = None if traceback is None else (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
    return record.name, str(record.msg)[:200], where
