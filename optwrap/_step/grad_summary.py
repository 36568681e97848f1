"""What one pass over the gradients tells: whether all are finite, how large they are, and which parameters are not.

Inside `shard_map` a value may differ from device to device. What is counted must not, so here everything is summed over
the mesh axes that it varies along, and over those that were named because types say nothing; under plain jit there are
none, and the compiler does the same unasked.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from optwrap._core.checks import INT32_MAX
from optwrap._core.collectives import Axes, Together
from optwrap._core.norm_cache import Answer, knowing_answer
from optwrap._core.trees import Update, count_dtype, inexact_leaves, not_finite_counts, squared_norms

_SCALE: Final = 2.0**-96
"""A power of two, so exact. Values whose squares overflow float32 in sum, scaled by it, neither overflow (3.4e38
becomes 4.3e9) nor matter where they underflow."""


_EVERY_AXIS: Final = Together(None, frozenset())
_together: Final = contextvars.ContextVar("optwrap_together", default=_EVERY_AXIS)
"""For whom one speaks: for the devices along every axis that a value varies along, as far as its type says."""


def speaking_for(axes: Axes, update: Update) -> Update:
    """An `update` such that what is summarized inside it is so over the devices along these axes, too."""

    @functools.wraps(update)
    def speaking(*args: Any, **kwargs: Any) -> Any:
        token = _together.set(axes.here())
        try:
            return update(*args, **kwargs)
        finally:
            _together.reset(token)

    return cast(Update, speaking)


class Summary(NamedTuple):
    """Of one tree of gradients with P leaves."""

    finite: jax.Array
    """bool[]: whether every value is finite."""
    norm: jax.Array
    """float32[]: global L2 norm of the floating and complex leaves."""
    not_finite: jax.Array
    """int32[P]: how many values of each leaf are not finite, saturating."""


@contextlib.contextmanager
def summarized(tree: Any) -> Iterator[Summary]:
    """Judge and measure `tree` in one pass, and look closer only where something is wrong.

    A sum of squares is finite only if every value is, so the norm decides. Only where it is not finite are the values
    looked at one by one: that tells the leaves apart, and huge gradients whose squares overflow from those that are not
    finite. While it lasts, the wrappers that would ask the same of the tree have it from here.
    """
    every = jax.tree.leaves(tree)
    leaves = inexact_leaves(every)
    if not leaves:
        yield Summary(jnp.array(True), jnp.zeros([], jnp.float32), jnp.zeros([len(every)], jnp.int32))
        return
    together = _together.get()
    norms = squared_norms(every)
    total = together.total(squared_norms(leaves))

    def as_usual() -> tuple[jax.Array, jax.Array, jax.Array]:
        return jnp.array(True), jnp.sqrt(total), jnp.zeros([len(every)], count_dtype())

    def one_by_one() -> tuple[jax.Array, jax.Array, jax.Array]:
        counts = jnp.stack(not_finite_counts(every, norms, together))
        finite = jnp.all(counts == 0)
        # Where a value is not finite the sum is as it is, NaN or Inf. What overflowed is the sum of finite ones.
        return finite, lax.cond(finite, lambda: _scaled_norm(leaves, total), lambda: jnp.sqrt(total)), counts

    finite, norm, counts = lax.cond(jnp.isfinite(total), as_usual, one_by_one)
    with knowing_answer(leaves, together, Answer(finite, counts)):
        yield Summary(finite, norm.astype(jnp.float32), jnp.minimum(counts, INT32_MAX).astype(jnp.int32))


def anywhere(test: Callable[[jax.Array], jax.Array], tree: Any) -> jax.Array:
    """Whether `test`, value by value, holds for any value of any floating or complex leaf: bool[]."""
    found = [on_any_device(jnp.any(test(jnp.asarray(leaf)))) for leaf in inexact_leaves(tree)]
    return jnp.any(jnp.stack(found)) if found else jnp.array(False)


def on_any_device(value: jax.Array) -> jax.Array:
    """The largest of a value over the devices on which it may differ; of a flag, whether it is set on any of them."""
    return _together.get().largest(value)


def _scaled_norm(leaves: Sequence[jax.Array], total: jax.Array) -> jax.Array:
    """The norm of finite leaves the sum of whose squares, `total`, is not finite."""
    # Were it a constant, XLA would square it, to 0, where a leaf is a scalar. What the total is it does not know.
    scale = jnp.where(jnp.isfinite(total), jnp.ones_like(total), jnp.full_like(total, _SCALE))
    return jnp.sqrt(_together.get().total(squared_norms([_scaled(leaf, scale) for leaf in leaves]))) / scale


def _scaled(leaf: Any, scale: jax.Array) -> jax.Array:
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = leaf.astype(scale.dtype)
    scaled: jax.Array = leaf * scale.astype(leaf.dtype)
    return scaled
