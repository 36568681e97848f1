"""One pass over the gradients: their finiteness, their norm, and the non-finite values of each parameter.

Inside `shard_map` gradients differ between devices, but the counts must be equal. So each sum goes over the mesh axes
along which its value varies, and over the axes that the user named. Under plain jit the compiler does this.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optwrap._core.checks import INT32_MAX
from optwrap._core.collectives import Axes, Together
from optwrap._core.finite import count_dtype, counts_and_norm, inexact_leaves, is_inexact, squared_norms
from optwrap._core.norm_cache import Answer, caching_answer, caching_norms

Update = TypeVar("Update", bound=Callable[..., Any])

_EVERY_AXIS: Final = Together(None, frozenset())
_together: Final = contextvars.ContextVar("optwrap_together", default=_EVERY_AXIS)
"""The mesh axes to reduce over. The default is every axis along which a value varies by its type."""


def reducing_over(axes: Axes, update: Update) -> Update:
    """Wraps `update`: while it runs, everything in this module also reduces over these axes."""

    @functools.wraps(update)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        token = _together.set(axes.here())
        try:
            return update(*args, **kwargs)
        finally:
            _together.reset(token)

    return cast(Update, wrapped)


class Summary(NamedTuple):
    """The summary of a tree of gradients with P leaves."""

    finite: jax.Array
    """bool[]: whether every value is finite."""
    norm: jax.Array
    """float32[]: global L2 norm of the floating and complex leaves."""
    not_finite: jax.Array
    """int32[P]: the number of non-finite values of each leaf, saturated at 2**31 - 1."""


@contextlib.contextmanager
def summarized(tree: Any) -> Iterator[Summary]:
    """Summarizes `tree` in one pass, and counts values only if something is wrong.

    A finite sum of squares shows that every value is finite. If it is not finite, the values are counted: this finds
    the leaves with non-finite values, and tells an overflow of finite values from non-finite ones. Inside the block the
    wrappers use the norms and counts of the summary.
    """
    every = jax.tree.leaves(tree)
    leaves = inexact_leaves(every)
    if not leaves:
        yield Summary(jnp.array(True), jnp.zeros([], jnp.float32), jnp.zeros([len(every)], jnp.int32))
        return
    together = _together.get()
    norms = squared_norms(leaves)
    total = together.total(norms)

    def usual() -> tuple[jax.Array, jax.Array, jax.Array]:
        return jnp.array(True), jnp.sqrt(total), jnp.zeros([len(leaves)], count_dtype())

    def count() -> tuple[jax.Array, jax.Array, jax.Array]:
        counts, norm = counts_and_norm(leaves, norms, total, together)
        return jnp.all(counts == 0), norm, counts

    finite, norm, counts = lax.cond(jnp.isfinite(total), usual, count)
    nonfinite = jnp.minimum(counts, INT32_MAX).astype(jnp.int32)
    if len(leaves) < len(every):
        places = [i for i, leaf in enumerate(every) if is_inexact(leaf)]
        nonfinite = jnp.zeros([len(every)], jnp.int32).at[np.array(places)].set(nonfinite)
    with caching_norms(leaves, norms), caching_answer(leaves, together, Answer(finite, counts)):
        yield Summary(finite, norm.astype(jnp.float32), nonfinite)


def anywhere(test: Callable[[jax.Array], jax.Array], tree: Any) -> jax.Array:
    """Whether `test`, an elementwise function, is true for any value of any floating or complex leaf: bool[]."""
    found = [on_any_device(jnp.any(test(jnp.asarray(leaf)))) for leaf in inexact_leaves(tree)]
    return jnp.any(jnp.stack(found)) if found else jnp.array(False)


def on_any_device(value: jax.Array) -> jax.Array:
    """The largest value over the devices on which it may differ; a bool is true if it is true on any device."""
    return _together.get().largest(value)
