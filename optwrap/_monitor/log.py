"""The logger of the library, and `LogOnce`, which logs each kind of warning once."""

import logging
import traceback
from typing import Final

log: Final = logging.getLogger("optwrap")

_MAX_KEYS: Final = 64
"""Limit of the warnings that one LogOnce logs. It is needed because keys can come from an exporter's answers."""


def origin(error: BaseException) -> object:
    """The type of an exception and the line that raised it: a key for `LogOnce` that ignores the message."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return type(error)
    frame, line = frames[-1]
    return type(error), frame.f_code.co_filename, line


class LogOnce:
    """Logs each kind of warning once."""

    def __init__(self) -> None:
        self._logged: set[object] = set()

    def warn(self, key: object, message: str, *args: object, error: BaseException | None = None) -> None:
        """Log a warning, unless one with the same key was logged before.

        Args:
          key: identifies the kind of warning.
          message: a format string, as in `logging`.
          *args: its arguments.
          error: an exception whose traceback is logged, too.
        """
        if key not in self._logged and len(self._logged) < _MAX_KEYS:
            self._logged.add(key)
            log.warning(message, *args, exc_info=error)
