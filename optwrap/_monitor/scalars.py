"""The scalars of one Monitor: which names are taken, and what the log says of the others."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from optwrap._core.checks import shown
from optwrap._monitor.log import log
from optwrap._reading.rows import Values
from optwrap._reading.scalars import ALLOWED, MAX_SCALARS, is_name, values_of

_MAX_LOGGED: Final = 16
"""Names whose being ignored is logged, one line each. A loop may make a new name at every step."""


class Scalars:
    """The scalars of one Monitor. What is not allowed is ignored, with one line in the log for each name."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        """Every name so far, at most MAX_SCALARS."""
        self._ignored: set[str] = set()
        """The names whose being ignored was logged, shortened, at most _MAX_LOGGED."""

    def values(self, scalars: Mapping[str, object], rows: int) -> dict[str, Values]:
        """The values of each scalar, float64[rows], one for each row of the reading.

        Args:
          scalars: the arguments of `observe`.
          rows: the number of rows that the reading has.
        """
        found = {}
        for name, value in scalars.items():
            try:
                if not is_name(name):
                    raise ValueError(f"allowed: {ALLOWED}")
                values = values_of(value, rows)
            except Exception as error:  # JAX raises if the step failed, or if the array was donated
                ours = isinstance(error, ValueError)
                self._ignore(name, str(error) if ours else f"it was donated, or its step failed: {error}")
                continue
            if self._admits(name):
                found[name] = np.array(values, np.float64)
        return found

    def admitted(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        """The scalars whose names are within the limit."""
        return {name: value for name, value in scalars.items() if self._admits(name)}

    def _admits(self, name: str) -> bool:
        if name in self._names or len(self._names) < MAX_SCALARS:
            self._names[name] = None
            return True
        self._ignore(name, f"allowed: {ALLOWED}")
        return False

    def _ignore(self, name: str, why: str) -> None:
        name = shown(name)
        if name in self._ignored or len(self._ignored) == _MAX_LOGGED:
            return
        self._ignored.add(name)
        log.warning("optwrap: the scalar %s is ignored; further ones of this name are ignored silently: %s", name, why)
        if len(self._ignored) == _MAX_LOGGED:
            log.warning("optwrap: %d names of scalars are ignored; further names are ignored silently", _MAX_LOGGED)
