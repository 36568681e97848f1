"""Selecting and casting the leaves of trees: the arithmetic that every wrapper shares."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from optwrap._core.checks import INT32_MAX

Tree = Any
"""Any pytree of arrays."""


def select(condition: jax.Array, chosen: Tree, otherwise: Tree) -> Tree:
    """`chosen` if the condition holds, else `otherwise`; the result has the dtypes of `otherwise`.

    Not a multiplication by 0 and 1, because 0 * NaN is NaN.
    """
    return jax.tree.map(
        lambda a, b: select_leaf(condition, cast(a, jnp.result_type(b)), jnp.asarray(b)), chosen, otherwise
    )


def select_leaf(condition: jax.Array, chosen: jax.Array, otherwise: jax.Array) -> jax.Array:
    """`select` for two leaves of the same type. It traces faster than jnp.where, which is a jitted function."""
    leaf: jax.Array = lax.select(condition, chosen, otherwise)
    return leaf


def cast(leaf: Any, dtype: Any) -> jax.Array:
    """The leaf with this dtype, not weakly typed. Complex to real drops the imaginary part; PRNG keys stay."""
    array: jax.Array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jnp.complexfloating) and not jnp.issubdtype(dtype, jnp.complexfloating):
        array = array.real
    return array if array.dtype == dtype and not getattr(array, "weak_type", False) else array.astype(dtype)


def common_dtype(*dtypes: Any) -> np.dtype[Any]:
    """The dtype to compute in with values of these dtypes: JAX's promotion, with float32 in place of tiny dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        dtype: np.dtype[Any] = functools.reduce(
            jnp.promote_types, (jnp.dtype(jnp.float32) if _is_tiny(dtype) else jnp.dtype(dtype) for dtype in dtypes)
        )
    return dtype


def computable(leaf: Any) -> Any:
    """The leaf; as float32 if JAX does not promote its dtype (floats of at most 8 bits, integers of less than 8)."""
    return cast(leaf, jnp.float32) if _is_tiny(jnp.result_type(leaf)) else leaf


def _is_tiny(dtype: Any) -> bool:
    # JAX leaves both untyped.
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits <= 8  # type: ignore[no-untyped-call]
    return bool(jnp.issubdtype(dtype, jnp.integer)) and jnp.iinfo(dtype).bits < 8  # type: ignore[no-untyped-call]


def as_int32(value: ArrayLike, least: int) -> jax.Array:
    """An integer scalar as int32, clipped to the range from `least` to 2**31 - 1."""
    if isinstance(value, int):
        value = min(value, INT32_MAX)
    number = jnp.asarray(value)
    if np.iinfo(number.dtype).max > INT32_MAX:
        number = jnp.minimum(number, INT32_MAX)
    return jnp.maximum(number.astype(jnp.int32), least)


def gradient_tree(params: Tree) -> Tree:
    """The tree that the gradients match: the parameters, or the fast parameters of a `LookaheadParams` pair."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


@functools.cache
def _placeholder_type() -> type:
    seen: list[type] = []

    def init(params: Tree) -> tuple[()]:
        seen.append(type(params))
        return ()

    optax.tree.map_params(init, lambda leaf: leaf, ())
    return seen[0]


def is_placeholder(params: Tree) -> bool:
    """Whether these are the placeholder parameters with which `optax.tree.map_params` calls `init`.

    They have no leaves and match no mask, so a wrapper passes them on to the inner `init` unchanged.
    """
    return isinstance(params, _placeholder_type())
