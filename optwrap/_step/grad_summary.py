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
from optwrap._core.collectives import Axes, Together, sum_once
from optwrap._core.finite import count_dtype, counts_and_norm, inexact_leaves, is_inexact, squared_norms
from optwrap._core.norm_cache import Answer, caching_answer, caching_norms
from optwrap._reading.counters import ABSENT, LARGEST

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


class Largest(NamedTuple):
    """The leaves with the largest shares of the squared norm, the largest first; of equal ones the first."""

    indices: jax.Array
    """int32[3]: ABSENT where there is no further leaf with a share, or where a value is non-finite."""
    shares: jax.Array
    """float32[3]: from 0 to 1."""


class Summary(NamedTuple):
    """The summary of a tree of gradients with P leaves."""

    finite: jax.Array
    """bool[]: whether every value is finite."""
    norm: jax.Array
    """float32[]: global L2 norm of the floating and complex leaves."""
    not_finite: jax.Array
    """int32[P]: the number of non-finite values of each leaf, saturated at 2**31 - 1."""
    largest: Largest
    """Indices among the P leaves."""


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
        nothing = Largest(jnp.full([LARGEST], ABSENT, jnp.int32), jnp.zeros([LARGEST], jnp.float32))
        yield Summary(jnp.array(True), jnp.zeros([], jnp.float32), jnp.zeros([len(every)], jnp.int32), nothing)
        return
    together = _together.get()
    norms = squared_norms(leaves)
    squares = together.totals(norms)
    total = sum_once(squares)

    def usual() -> tuple[jax.Array, ...]:
        return jnp.array(True), jnp.sqrt(total), jnp.zeros([len(leaves)], count_dtype()), squares

    def count() -> tuple[jax.Array, ...]:
        counts, norm, scaled = counts_and_norm(leaves, norms, total, together)
        return jnp.all(counts == 0), norm, counts, scaled

    finite, norm, counts, squares = lax.cond(jnp.isfinite(total), usual, count)
    nonfinite = jnp.minimum(counts, INT32_MAX).astype(jnp.int32)
    largest = _largest(squares, finite)
    if len(leaves) < len(every):
        positions = np.array([i for i, leaf in enumerate(every) if is_inexact(leaf)])
        nonfinite = jnp.zeros([len(every)], jnp.int32).at[positions].set(nonfinite)
        largest = among(largest, positions)
    with caching_norms(leaves, norms), caching_answer(leaves, together, Answer(finite, counts)):
        yield Summary(finite, norm.astype(jnp.float32), nonfinite, largest)


def _largest(squares: jax.Array, finite: jax.Array) -> Largest:
    """The leaves with the largest of these squared norms."""
    # The gradient of a sort would be computed for nothing where a step is differentiated.
    shares = lax.stop_gradient(squares / jnp.sum(squares)).astype(jnp.float32)
    shares = jnp.where(finite & (shares > 0), shares, 0)  # not NaN, which counts as large
    if len(shares) < LARGEST:
        shares = jnp.pad(shares, (0, LARGEST - len(shares)))
    shares, indices = lax.top_k(shares, LARGEST)
    return Largest(jnp.where(shares > 0, indices.astype(jnp.int32), ABSENT), shares)


def among(largest: Largest, positions: Any) -> Largest:
    """The same leaves in a longer list of leaves, in which `positions` (integers, [P]) are their indices."""
    indices = jnp.asarray(positions, jnp.int32)[jnp.maximum(largest.indices, 0)]
    return largest._replace(indices=jnp.where(largest.indices == ABSENT, ABSENT, indices))


def norm_of(updates: Any) -> jax.Array:
    """float32[]: the global L2 norm of the floating and complex leaves."""
    leaves = inexact_leaves(updates)
    if not leaves:
        return jnp.zeros([], jnp.float32)
    return jnp.sqrt(_together.get().any_order_total(squared_norms(leaves))).astype(jnp.float32)


def anywhere(test: Callable[[jax.Array], jax.Array], tree: Any) -> jax.Array:
    """Whether `test`, an elementwise function, is true for any value of any floating or complex leaf: bool[]."""
    found = [on_any_device(jnp.any(test(jnp.asarray(leaf)))) for leaf in inexact_leaves(tree)]
    return jnp.any(jnp.stack(found)) if found else jnp.array(False)


def mean_of_devices(value: jax.Array) -> jax.Array:
    """The mean of a float over the devices on which it may differ."""
    axes = _together.get().axes(value)
    mean: jax.Array = lax.pmean(value, axes) if axes else value  # type: ignore[no-untyped-call]
    return mean


def on_any_device(value: jax.Array) -> jax.Array:
    """The largest value over the devices on which it may differ; a bool is true if it is true on any device."""
    return _together.get().largest(value)
