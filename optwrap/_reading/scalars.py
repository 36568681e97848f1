"""Names and limits of scalars: the loss and other numbers of a step, and injected hyperparameters."""

import re
from typing import Any, Final

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
