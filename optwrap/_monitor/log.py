"""What the library says in the log."""

import logging
import traceback
from typing import Final

log: Final = logging.getLogger("optwrap")


_MOST: Final = 64
"""Kinds of things: more than there are, unless what tells them apart comes from outside."""


def place_of(error: BaseException) -> object:
    """Where an exception was raised: of two errors raised in one place the second is no news, whatever it is about."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return type(error)
    frame, line = frames[-1]
    return type(error), frame.f_code.co_filename, line


class Once:
    """A log that says each kind of thing once."""

    def __init__(self) -> None:
        self._said: set[object] = set()

    def warn(self, kind: object, message: str, *args: object, error: BaseException | None = None) -> None:
        """Log `message`, with the traceback of `error`, unless something of this kind was said already."""
        if kind not in self._said and len(self._said) < _MOST:
            self._said.add(kind)
            log.warning(message, *args, exc_info=error)
