"""Iterations of a loop, compiled: up to the first one of which a result has an unexpected kind of non-finite value."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun

from optwrap._autopsy.values import is_inexact


def while_forward(params: dict[str, Any]) -> Callable[..., Any]:
    """The iterations of a `while` with these parameters, as a function to be compiled.

    Returns:
      A function of the constants of the condition, those of the body, the carry, and for each result whether NaN, inf
      and -inf are expected in it, bool[results, 3]. It returns the number of iterations, and the carry after them.
    """
    condition, iteration = jaxpr_as_fun(params["cond_jaxpr"]), jaxpr_as_fun(params["body_jaxpr"])

    def forward(asked: list[Any], constants: list[Any], carry: list[Any], expected: Any) -> Any:
        def goes_on(state: Any) -> Any:
            _, carry, good = state
            return good & jnp.any(condition(*asked, *carry)[0])

        def body(state: Any) -> Any:
            count, carry, _ = state
            new = select(condition(*asked, *carry)[0], iteration(*constants, *carry), carry)
            good = _as_expected(new, expected)
            return count + jnp.int32(good), select(good, new, carry), good

        return lax.while_loop(goes_on, body, (jnp.int32(0), carry, jnp.array(True)))[:2]

    return forward


def scan_forward(params: dict[str, Any], carried: int) -> Callable[..., Any]:
    """The iterations of a `scan` with these parameters and so many carried values, as a function to be compiled.

    Returns:
      A function of the inputs (constants, carry and stacked), the buffers of the stacked results, the number of
      iterations that were done before, and what is expected, as above. It returns the number of iterations that are
      done, the carry after them, and the buffers.
    """
    iteration, length = jaxpr_as_fun(params["jaxpr"]), params["length"]

    def forward(inputs: tuple[list[Any], ...], buffers: list[Any], start: Any, expected: Any) -> Any:
        constants, carry, stacked = inputs

        def body(state: Any) -> Any:
            done, carry, buffers, _ = state
            index = length - 1 - done if params["reverse"] else done
            outs = iteration(*constants, *carry, *row_of(stacked, index))
            good = _as_expected(outs, expected)
            # A row that is not good is stored again, when it has been evaluated in parts.
            return (
                done + jnp.int32(good),
                select(good, outs[:carried], carry),
                stored(buffers, outs[carried:], index),
                good,
            )

        state = jnp.asarray(start, jnp.int32), carry, buffers, jnp.array(True)
        return lax.while_loop(lambda state: state[3] & (state[0] < length), body, state)[:3]

    return forward


@jax.jit
def row_of(arrays: list[Any], index: Any) -> list[Any]:
    """One row of each array."""
    return [lax.dynamic_index_in_dim(array, index, keepdims=False) for array in arrays]


def buffers_of(arrays: list[Any], length: int) -> list[Any]:
    """For each array a buffer of so many rows."""
    return [jnp.broadcast_to(array[None], (length, *array.shape)) for array in arrays]


def stored(buffers: list[Any], arrays: list[Any], index: Any) -> list[Any]:
    """The buffers with the arrays as one row."""
    return [
        lax.dynamic_update_index_in_dim(buffer, array, index, 0) for buffer, array in zip(buffers, arrays, strict=True)
    ]


def _kinds(array: Any) -> Any:
    """Whether it has NaN, inf and -inf, as `classes` tells them: bool[3]."""
    if not is_inexact(array):
        return jnp.zeros(3, bool)
    nan = jnp.isnan(array)
    if jnp.iscomplexobj(array):
        return jnp.stack([jnp.any(nan), jnp.any(jnp.isinf(array) & ~nan), jnp.array(False)])
    return jnp.stack([jnp.any(nan), jnp.any(array == jnp.inf), jnp.any(array == -jnp.inf)])


def _as_expected(arrays: Sequence[Any], expected: Any) -> Any:
    return ~jnp.any(jnp.stack([_kinds(array) for array in arrays]) & ~expected) if arrays else jnp.array(True)


def select(which: Any, arrays: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """The arrays where it holds, along the leading axes; else the others."""
    selected = []
    for array, other in zip(arrays, others, strict=True):
        if which.ndim:
            mask = jnp.reshape(which, (*which.shape, *(1,) * (jnp.ndim(array) - which.ndim)))
            selected.append(lax.select(jnp.broadcast_to(mask, jnp.shape(array)), array, other))
        else:  # a scalar, whatever the sharding
            selected.append(lax.select(which, array, other))
    return selected
