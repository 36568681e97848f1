"""Integer overflow, which wraps around in JAX and is no fault until it becomes a float that is one."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from optwrap._autopsy.values import Array, Value

_EXACT: Final[dict[str, Callable[[Any, Sequence[Array]], Array]]] = {
    "add": lambda _, x: x[0] + x[1],
    "sub": lambda _, x: x[0] - x[1],
    "mul": lambda _, x: x[0] * x[1],
    "integer_pow": lambda params, x: x[0] ** params["y"],
    "square": lambda _, x: x[0] * x[0],
    "reduce_sum": lambda params, x: x[0].sum(axis=tuple(params["axes"])),
    "reduce_prod": lambda params, x: x[0].prod(axis=tuple(params["axes"])),
    "cumsum": lambda params, x: _cumulative(np.cumsum, params, x[0]),
    "cumprod": lambda params, x: _cumulative(np.cumprod, params, x[0]),
    "dot_general": lambda params, x: _product(params["dimension_numbers"], x),
    "convert_element_type": lambda _, x: x[0],
}
"""The operations on signed integers that can overflow, in float64."""


def _cumulative(of: Callable[..., Array], params: Any, x: Array) -> Array:
    if params["reverse"]:
        return np.flip(of(np.flip(x, params["axis"]), axis=params["axis"]), params["axis"])
    return of(x, axis=params["axis"])


def _product(dimension_numbers: Any, x: Sequence[Array]) -> Array:
    """A product of arrays: the batch axes come first, then the free ones of each."""
    contracting, batch = dimension_numbers
    flat = []
    for side in range(2):
        free = [axis for axis in range(x[side].ndim) if axis not in (*contracting[side], *batch[side])]
        order = [*batch[side], *free, *contracting[side]]
        shape = [[x[side].shape[axis] for axis in axes] for axes in (batch[side], free, contracting[side])]
        flat.append((x[side].transpose(order).reshape(*shape[0], math.prod(shape[1]), math.prod(shape[2])), shape))
    (left, shape), (right, other) = flat
    result: Array = np.matmul(left, right.swapaxes(-1, -2)).reshape((*shape[0], *shape[1], *other[1]))
    return result


def wrapped(equation: Any, inputs: Sequence[Value], output: Any) -> Array | None:
    """Which elements of an integer result wrapped around; None if it cannot have, or if it is no such operation.

    Unsigned integers are left out: random numbers and hashes wrap on purpose.
    """
    exact = _EXACT.get(equation.primitive.name)
    dtype = output.dtype
    if exact is None or not np.issubdtype(dtype, np.signedinteger) or not np.size(output):
        return None
    largest = max((abs(end) for value in inputs for end in (value.least, value.greatest) if end is not None), default=0)
    if not _may_exceed(equation, largest, inputs, float(np.iinfo(dtype).max)):
        return None
    wide = [np.asarray(value.array).astype(np.float64) for value in inputs]
    with np.errstate(all="ignore"):
        result = exact(equation.params, wide)
    mask: Array = np.abs(result - np.asarray(output).astype(np.float64)) > 0.5 * float(float(np.iinfo(dtype).max))
    return mask if mask.any() else None


def _may_exceed(equation: Any, largest: float, inputs: Sequence[Value], limit: float) -> bool:
    """Whether the result can exceed the limit, from the largest magnitude of the inputs alone."""
    name = equation.primitive.name
    size: int = math.prod(np.shape(inputs[0].array))
    if name in ("add", "sub"):
        return 2 * largest > limit
    if name in ("reduce_sum", "cumsum"):
        return size * largest > limit
    if name == "dot_general":
        return size * largest**2 > limit
    if name == "convert_element_type":
        return largest > limit and not np.issubdtype(inputs[0].array.dtype, np.floating)
    return largest > 1
