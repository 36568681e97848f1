"""What the library says in the log."""

import logging
from typing import Final

log: Final = logging.getLogger("optwrap")


class Once:
    """A log that says each kind of thing once."""

    def __init__(self) -> None:
        self._said: set[object] = set()

    def warn(self, kind: object, message: str, *args: object, error: BaseException | None = None) -> None:
        """Log `message`, with the traceback of `error`, unless something of this kind was said already."""
        if kind not in self._said:
            self._said.add(kind)
            log.warning(message, *args, exc_info=error)
