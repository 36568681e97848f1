"""Progress line for long evaluations."""

import sys
import time
from typing import Final

_PATIENCE: Final = 2.0
"""Seconds before the first line."""
_PERIOD: Final = 0.2
"""Seconds between two lines."""


class Progress:
    """Counts equations, and shows the count on stderr if the evaluation takes long."""

    def __init__(self, function: str, total: int, *, shown: bool | None) -> None:
        """Start to count.

        Args:
          function: its name.
          total: the equations that are expected; an evaluation may need more, or fewer.
          shown: whether to show the count. Default: only where stderr is a terminal.
        """
        self.count = 0
        self._function = function
        self._total = max(total, 1)
        self._shown = sys.stderr.isatty() if shown is None else shown
        self._next = time.monotonic() + _PATIENCE
        self._written = False

    def advance(self) -> None:
        """Count one more equation."""
        self.count += 1
        if self._shown and (now := time.monotonic()) >= self._next:
            self._next = now + _PERIOD
            self._written = True
            share = min(self.count / self._total, 1.0)
            bar = "#" * round(share * 30)
            sys.stderr.write(f"\rautopsy of {self._function} [{bar:<30}] {self.count} of about {self._total} ")
            sys.stderr.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._written:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
