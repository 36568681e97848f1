"""Names, limits and values of scalars: the loss and other numbers of a step, and injected hyperparameters."""

import re
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

MAX_SCALARS: Final = 16
"""Limit of the scalars of one run. The wire allows no more."""

ALLOWED: Final = (
    f"at most {MAX_SCALARS} scalars with names of 1 to 64 letters, digits and '_', not beginning with a digit"
)
"""What messages say is allowed."""

_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,63}")


def is_name(name: object) -> bool:
    """Whether this may be the name of a scalar."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def shortest(value: Any) -> float:
    """A number of numpy as a float. Of all floats that are equal in float32, the one with the fewest digits.

    0.1 in float32 is 0.10000000149 in float64, which would make reports longer and be shown.
    """
    if jnp.issubdtype(value.dtype, np.floating) and value.dtype.itemsize <= 4:
        return float(str(np.float32(value)))
    return float(value)


def values_of(value: Any, rows: int) -> list[float]:
    """The values of one observed scalar, one for each row of the reading.

    Raises:
      ValueError: it is neither one real number nor one for each row.
      Exception: JAX raises because the step that made it failed, or because its buffer was donated.
    """
    if isinstance(value, jax.core.Tracer):
        raise ValueError("got a traced value; allowed: an array that the jitted step returned")
    if isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated):
        raise ValueError("got an array whose parts are in several processes; allowed: its mean")
    # `jax.device_get` takes seven times as long for a scalar.
    with jax.transfer_guard_device_to_host("allow"):
        array = np.asarray(value)
    if not (array.dtype.kind in "biuf" or jnp.issubdtype(array.dtype, np.floating)) or (
        array.ndim and array.size != rows
    ):
        raise ValueError(
            f"got {array.dtype}{list(array.shape)}; allowed: one real number, or one for each of the "
            f"reading's {rows} rows"
        )
    return [shortest(one) for one in array.reshape(-1)] * (1 if array.ndim else rows)
