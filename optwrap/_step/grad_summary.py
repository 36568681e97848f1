"""What one pass over the gradients tells: whether all are finite, how large they are, and which parameters are not.

Inside `shard_map` a value may differ from device to device. What is counted must not, so here everything is summed over
the mesh axes that it varies along, and over those that were named because types say nothing; under plain jit there are
none, and the compiler does the same unasked.
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
from optwrap._core.norm_cache import Answer, caching_answer, caching_norms
from optwrap._core.trees import count_dtype, counts_and_norm, inexact_leaves, is_inexact, squared_norms

Update = TypeVar("Update", bound=Callable[..., Any])

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
    """Measure `tree` in one pass, and count only where something is wrong.

    A sum of squares is finite only if every value is, so the norm decides. Where it is not finite, the values are
    counted: that tells the leaves apart, and finite gradients whose squares overflow from non-finite ones. Inside the
    block the wrappers take norms and counts from here.
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
    """Whether `test`, value by value, holds for any value of any floating or complex leaf: bool[]."""
    found = [on_any_device(jnp.any(test(jnp.asarray(leaf)))) for leaf in inexact_leaves(tree)]
    return jnp.any(jnp.stack(found)) if found else jnp.array(False)


def on_any_device(value: jax.Array) -> jax.Array:
    """The largest of a value over the devices on which it may differ; of a flag, whether it is set on any of them."""
    return _together.get().largest(value)
