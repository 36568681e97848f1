"""Arguments, checked when a wrapper is made or first traced: never later, never from inside XLA."""

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

INT32_MAX: Final = 2**31 - 1


def is_concrete(value: object) -> bool:
    """Whether the value can be looked at now: it is no tracer, and no array that other processes hold a part of."""
    if isinstance(value, jax.core.Tracer):
        return False
    return not isinstance(value, jax.Array) or value.is_fully_addressable


def shown(value: object) -> str:
    """A value as an error message shows it: arrays by dtype and shape, anything else by its repr, cut short."""
    if isinstance(value, jax.core.Tracer | jax.Array | np.ndarray) and (np.ndim(value) or not is_concrete(value)):
        return f"an array {value.dtype}{list(np.shape(value))}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def integer_type(argument: str, value: Any, allowed: str, remedy: str) -> None:
    """A scalar integer: Python's, numpy's or jax's, traced or not; no bool.

    Raises:
      TypeError: it is none.
    """
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        fits = bool(np.issubdtype(value.dtype, np.integer)) and np.ndim(value) == 0
    else:
        fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits:
        raise TypeError(f"{argument} must be {allowed}, got {shown(value)} ({type(value).__name__}): {remedy}")


def integer(argument: str, value: Any, least: int, remedy: str) -> ArrayLike:
    """A scalar integer from `least` to 2**31 - 1; of a traced one only the type is checked.

    Returns:
      the Python int where the value is known now, else the traced array.

    Raises:
      TypeError: not a scalar integer.
      ValueError: out of range.
    """
    allowed = f"an integer from {least} to {INT32_MAX}"
    integer_type(argument, value, allowed, remedy)
    if not is_concrete(value):
        return value  # type: ignore[no-any-return]  # a jax.Array: all else is concrete
    number = int(value)
    if not least <= number <= INT32_MAX:
        raise ValueError(f"{argument} must be {allowed}, got {number}: {remedy}")
    return number


def real(argument: str, value: Any, most: float, remedy: str) -> None:
    """A scalar real number from 0 to `most`, not NaN; a traced one is checked for its type only.

    Raises:
      TypeError: not a real number, or not a scalar.
      ValueError: out of range, or NaN.
    """
    allowed = "a number from 0" + (f" to {most:g}" if math.isfinite(most) else "")
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        kinds = (jnp.floating, jnp.integer)
        fits = any(jnp.issubdtype(value.dtype, kind) for kind in kinds) and np.ndim(value) == 0
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits:
        raise TypeError(f"{argument} must be {allowed}, got {shown(value)} ({type(value).__name__}): {remedy}")
    if is_concrete(value) and not 0 <= float(value) <= most:
        raise ValueError(f"{argument} must be {allowed}, got {float(value)}: {remedy}")


def transformation(argument: str, value: Any) -> Any:
    """The value as an `optax.GradientTransformationExtraArgs`.

    Besides those, whatever has `init` and `update`, and `MultiSteps`, which offers itself as a transformation.

    Raises:
      TypeError: it is none.
    """
    if callable(as_transformation := getattr(value, "gradient_transformation", None)):
        value = as_transformation()
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        hint = " (call it: optax.adam(1e-3), not optax.adam)" if callable(value) else ""
        raise TypeError(
            f"{argument} must be an optax.GradientTransformation, got {shown(value)} ({type(value).__name__}): "
            f"pass an object with init and update{hint}"
        )
    return optax.with_extra_args_support(value)
