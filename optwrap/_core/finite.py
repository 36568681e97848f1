"""Whether gradients are finite, how large they are, and how many of their values are non-finite.

Everything here compiles to one reduction per leaf, and little more for the rare step with a non-finite value. With
hundreds of leaves, each further operation per leaf adds seconds of compile time.
"""

from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optwrap._core.checks import INT32_MAX
from optwrap._core.collectives import ALONE, Together, vary, varying
from optwrap._core.norm_cache import cached_answer, cached_norm
from optwrap._core.trees import Tree

_CHUNK: Final = 2**19
"""Values that are examined under one condition. Larger chunks need more temporary memory on a CPU: 4 bytes a value.
Smaller chunks need more conditions, and XLA compiles ten reductions in the time of one condition."""

_SCALE: Final = 2.0**-96
"""A power of two, so that multiplying by it is exact. float32's largest value times it is 4.3e9, so squares do not
overflow. Values that underflow are too small to change the sum."""

_PLAIN: Final = (jnp.inexact, jnp.integer, jnp.bool_)


def is_inexact(leaf: Any) -> bool:
    """Whether the leaf has a floating or complex dtype, so that it can hold NaN or Inf."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def inexact_leaves(tree: Tree) -> list[Any]:
    """The leaves that can hold NaN or Inf, in the tree's order."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]


def squared_norms(tree: Tree) -> list[jax.Array]:
    """The sum of squared absolute values of each leaf, in the tree's order.

    Returns:
      One scalar per numeric leaf: float64[] for float64 and complex128 leaves, else float32[]. It is non-finite if a
      value of the leaf is non-finite, or if the squares overflow. Leaves without numbers (PRNG keys, float0) are left
      out.
    """
    return [
        _squared_norm(leaf) if (cached := cached_norm(leaf)) is None else cached
        for leaf in jax.tree.leaves(tree)
        if _is_numeric(leaf)
    ]


def squared_norm(tree: Tree, together: Together = ALONE) -> jax.Array:
    """The sum of squared absolute values of the tree: a scalar of the widest dtype of `squared_norms`."""
    norms = squared_norms(tree)
    return together.total(norms) if norms else jnp.zeros([], jnp.float32)


def finite_probes(leaves: Sequence[Any]) -> list[jax.Array]:
    """A scalar for each floating or complex leaf: 0 where every value of it is finite, else NaN.

    It is the sum of `0 * value`: a finite value adds 0, NaN and Inf add NaN, and nothing overflows. XLA multiplies and
    adds in one pass. With `isfinite`, XLA:CPU would first write an array of flags to memory.
    """
    return [_finite_probe(leaf) for leaf in leaves]


def all_finite(tree: Tree, together: Together = ALONE) -> jax.Array:
    """Whether every value of the tree is finite: bool[]. This uses no count, because a count could overflow."""
    leaves = inexact_leaves(tree)
    if not leaves:
        return jnp.array(True)
    if (cached := cached_answer(leaves, together)) is not None:
        return cached.finite
    return jnp.isfinite(together.any_order_total(finite_probes(leaves)))


def suspects(leaves: Sequence[Any], probes: Sequence[jax.Array]) -> list[jax.Array]:
    """For each chunk of leaves, whether a value in it may be non-finite on this device: bool[].

    Args:
      leaves: floating or complex leaves, at least one.
      probes: one scalar per leaf, non-finite if a value of the leaf is: the result of `finite_probes` or
        `squared_norms`.
    """
    return [jnp.any(~jnp.isfinite(jnp.stack([probes[i] for i in chunk]))) for chunk in _chunks(leaves)]


def nonfinite_counts(leaves: Sequence[Any], suspects: Sequence[jax.Array], together: Together = ALONE) -> jax.Array:
    """The number of non-finite values in each floating or complex leaf.

    Args:
      leaves: the leaves, at least one.
      suspects: the result of `suspects` for them. Only the chunks for which it is true are counted.
      together: the devices over which counts are summed.

    Returns:
      One count for each leaf, of the default integer dtype (int32, or int64 where 64-bit types are enabled), saturated
      at its largest value.
    """
    counts, _ = _examine_chunks(leaves, suspects, jnp.ones([], jnp.float32), together)
    return counts


def counts_and_norm(
    leaves: Sequence[Any], norms: Sequence[jax.Array], total: jax.Array, together: Together = ALONE
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The non-finite counts, the L2 norm and the leaves' squared norms, if their sum is not finite.

    Args:
      leaves: floating or complex leaves, at least one.
      norms: the result of `squared_norms` for them.
      total: the sum of `norms` over leaves and devices: NaN or infinite.
      together: the devices that hold parts of the leaves.

    Returns:
      The counts, as `nonfinite_counts` returns them; the norm, a scalar of the dtype of `total`; and the squared norm
      of each leaf times a common factor. If all values are finite and only their squares overflow, this is the true
      norm, and the squared norms are finite. If a value is non-finite, the norm is NaN or infinite.
    """
    # If the scale were a constant, XLA would square it, which gives 0, where a leaf is a scalar.
    scale = jnp.where(jnp.isfinite(total), jnp.ones_like(total), jnp.full_like(total, _SCALE))
    suspected = suspects(leaves, norms)
    counts, scaled = _examine_chunks(leaves, suspected, scale, together)

    def of_norms(chunk: list[int]) -> jax.Array:
        return jnp.square(jnp.sqrt(jnp.stack([norms[i].astype(scale.dtype) for i in chunk])) * scale)

    squares = [
        lax.select(suspect, square, vary(of_norms(chunk), varying(jax.typeof(square))))
        for chunk, suspect, square in zip(_chunks(leaves), suspected, scaled, strict=True)
    ]
    each = together.totals(squares)[_order(leaves)]
    norm = jnp.sqrt(jnp.sum(each)) / scale
    return counts, jnp.where(jnp.all(counts == 0), norm, jnp.sqrt(total)), each


def _examine_chunks(
    leaves: Sequence[Any], suspects: Sequence[jax.Array], scale: jax.Array, together: Together
) -> tuple[jax.Array, list[jax.Array]]:
    """A count for each leaf; by chunk, the squared norms of the leaves times `scale`, or 0 if not suspect."""
    chunks, counts, squares = _chunks(leaves), [], []
    for chunk, suspect in zip(chunks, suspects, strict=True):
        values = [jnp.asarray(leaves[i]) for i in chunk]
        count, square = lax.cond(suspect, _examine, _leave, values, scale)
        counts.append(together.total_count(count, values[0].size))
        squares.append(square)
    return jnp.concatenate(counts)[_order(leaves)], squares


def count_dtype() -> np.dtype[Any]:
    """The dtype of counts, which is the default integer dtype: int32, or int64 where 64-bit types are enabled."""
    return jax.dtypes.canonicalize_dtype(np.int64)


def saturating_sum(counts: jax.Array) -> jax.Array:
    """The sum of at most 2**15 counts, none of them negative, saturated at the largest value of their dtype."""
    largest, half = np.iinfo(counts.dtype).max, np.iinfo(counts.dtype).bits // 2
    # A plain sum could wrap. The sums of the upper and lower halves of the counts cannot.
    low = jnp.sum((counts & (2**half - 1)).astype(f"uint{2 * half}"), dtype=f"uint{2 * half}")
    high = jnp.sum((counts >> half).astype(low.dtype), dtype=low.dtype) + (low >> half)
    total = (high << half) | (low & (2**half - 1))
    return jnp.where(high >= 2 ** (half - 1), largest, total).astype(counts.dtype)


def _is_numeric(leaf: Any) -> bool:
    dtype = jnp.result_type(leaf)
    return dtype != jax.dtypes.float0 and any(jnp.issubdtype(dtype, plain) for plain in _PLAIN)


def _squared_norm(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _sum(lax.square(lax.real(leaf))) + _sum(lax.square(lax.imag(leaf)))
    # Not narrower than float32: 90,000 ones already overflow a float16 sum. Not vdot: on a mesh it gathers the leaf.
    return _sum(lax.square(_widened(leaf)))


def _squared_norms(stacked: jax.Array) -> jax.Array:
    """The squared norm of each leaf of a stack."""
    axes = tuple(range(1, stacked.ndim))
    if jnp.issubdtype(stacked.dtype, jnp.complexfloating):
        return jnp.sum(lax.square(lax.real(stacked)) + lax.square(lax.imag(stacked)), axis=axes)
    return jnp.sum(lax.square(_widened(stacked)), axis=axes)


def _finite_probe(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _times_zero(lax.real(leaf)) + _times_zero(lax.imag(leaf))
    return _times_zero(_widened(leaf))


def _times_zero(leaf: jax.Array) -> jax.Array:
    return _sum(leaf * np.zeros([], leaf.dtype))


def _widened(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32)


def _sum(leaf: jax.Array) -> jax.Array:
    # jnp.sum is a jitted function: tracing it for 600 leaves takes a second.
    total: jax.Array = lax.reduce_sum(leaf, axes=tuple(range(leaf.ndim)))
    return total


def _chunks(leaves: Sequence[Any]) -> list[list[int]]:
    """The indices of the leaves in each chunk: leaves of one type with at most `_CHUNK` values, or one leaf."""
    alike: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        alike.setdefault(jax.typeof(jnp.asarray(leaf)), []).append(i)
    chunks = []
    for indices in alike.values():
        length = max(1, _CHUNK // max(1, jnp.size(leaves[indices[0]])))
        chunks += [indices[start : start + length] for start in range(0, len(indices), length)]
    return chunks


def _order(leaves: Sequence[Any]) -> Any:
    """Maps each leaf to its index in the concatenated chunks."""
    return np.argsort(np.concatenate(_chunks(leaves)))


# The branches of conditions. They are module-level functions, because outside jit JAX recompiles a condition whenever
# its branches are new function objects.


def _leave(leaves: list[jax.Array], scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    axes = varying(jax.typeof(leaves[0])) | varying(jax.typeof(scale))
    return vary(jnp.zeros([len(leaves)], count_dtype()), axes), vary(jnp.zeros([len(leaves)], scale.dtype), axes)


def _examine(leaves: list[jax.Array], scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The stack is a copy of at most `_CHUNK` values. XLA compiles two reductions of it instead of two for each leaf.
    values = leaves[0] if len(leaves) == 1 else jnp.stack(leaves)
    if len(leaves) == 1:
        counts = _nonfinite_count(values)[None]
    else:
        counts = jnp.sum(~jnp.isfinite(values), axis=tuple(range(1, values.ndim)), dtype=count_dtype())
    if not jnp.issubdtype(values.dtype, jnp.complexfloating):
        values = values.astype(scale.dtype)
    scaled = values * scale.astype(values.dtype)
    square = (_squared_norm(scaled)[None] if len(leaves) == 1 else _squared_norms(scaled)).astype(scale.dtype)
    axes = varying(jax.typeof(values)) | varying(jax.typeof(scale))
    return vary(counts, axes), vary(square, axes)


def _nonfinite_count(leaf: jax.Array) -> jax.Array:
    nonfinite = ~jnp.isfinite(leaf)
    dtype = count_dtype()
    if dtype == np.int64 or nonfinite.size <= INT32_MAX:
        return _sum(nonfinite.astype(dtype))
    # More values than int32 can count: sum in 64 bits, and saturate.
    with jax.enable_x64(True):
        return jnp.minimum(jnp.sum(nonfinite, dtype=np.int64), INT32_MAX).astype(dtype)
