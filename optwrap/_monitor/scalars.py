"""Reads the scalars that are observed with a reading, and bounds their names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optwrap._monitor.log import LogOnce
from optwrap._reading.scalars import ALLOWED, MAX_SCALARS, is_name, shortest


class Scalars:
    """The scalars of one Monitor. What is not allowed is ignored, with one line in the log.

    Args:
      once: logs what is ignored.
    """

    def __init__(self, once: LogOnce) -> None:
        self._once = once
        self._names: dict[str, None] = {}
        """Every name so far, at most MAX_SCALARS."""

    def columns(self, scalars: Mapping[str, object], rows: int, *, replicas: bool) -> dict[str, list[float]]:
        """The values of each scalar, one for each step of the reading.

        Args:
          scalars: the arguments of `observe`.
          rows: the number of rows that the reading has.
          replicas: whether the rows are replicas of one step; then a scalar is their mean.
        """
        found = {}
        for name, value in scalars.items():
            try:
                if not is_name(name):
                    raise ValueError(f"scalar {name!r}: allowed: {ALLOWED}")
                values = _values(name, value, rows)
            except Exception as error:  # JAX raises if the step failed, or if the array was donated
                self._once.warn("scalar", "optwrap: a scalar was ignored; further ones are ignored silently: %s", error)
                continue
            if self._admits(name):
                found[name] = [sum(values) / rows] if replicas else values
        return found

    def admitted(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        """The scalars whose names are within the limit."""
        return {name: value for name, value in scalars.items() if self._admits(name)}

    def _admits(self, name: str) -> bool:
        if name in self._names or len(self._names) < MAX_SCALARS:
            self._names[name] = None
            return True
        self._once.warn("scalars", "optwrap: the scalar %s is ignored; allowed: %s", name, ALLOWED)
        return False


def _values(name: str, value: Any, rows: int) -> list[float]:
    """The values of one scalar.

    Raises:
      ValueError: it is neither one real number nor one for each row.
      Exception: JAX raises because the step that made it failed, or because its buffer was donated.
    """
    if isinstance(value, jax.core.Tracer):
        raise ValueError(f"scalar {name}: got a traced value; allowed: an array that the jitted step returned")
    if isinstance(value, jax.Array):
        if not (value.is_fully_addressable or value.is_fully_replicated):
            raise ValueError(f"scalar {name}: got an array whose parts are in several processes; allowed: its mean")
        value = jax.device_get(value)  # an explicit transfer, which jax.transfer_guard("disallow") permits
    array = np.asarray(value)
    if not (array.dtype.kind in "biuf" or jnp.issubdtype(array.dtype, np.floating)) or (
        array.ndim and array.size != rows
    ):
        raise ValueError(
            f"scalar {name}: got {array.dtype}{list(array.shape)}; allowed: one real number, or one for each of the "
            f"reading's {rows} rows"
        )
    return [shortest(one) for one in array.reshape(-1)] * (1 if array.ndim else rows)
