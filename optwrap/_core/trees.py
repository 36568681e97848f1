"""Finite checks, norms and selects on trees: the arithmetic that every wrapper shares.

Wrappers that ask the same of the same gradients must ask with the same operations: XLA then merges the questions, and
a nest of wrappers pays for one pass over the gradients.
"""

import functools
from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from optwrap._core.checks import INT32_MAX
from optwrap._core.collectives import ALONE, Together, vary, varying
from optwrap._core.norm_cache import cached_answer, cached_norm

Tree = Any
"""Any pytree of arrays."""

_CHUNK: Final = 2**19
"""Values that are counted under one condition. A larger chunk needs more temporary memory on a CPU (4 bytes a value); a
smaller one means more conditions, each of which takes XLA as long to compile as ten reductions."""

_SCALE: Final = 2.0**-96
"""A power of two, so multiplying by it is exact. float32's largest values, 3.4e38, become 4.3e9, whose squares do not
overflow; what underflows is too small to matter beside them."""

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
      one scalar per numeric leaf: float64[] for float64 and complex128 leaves, else float32[]. It is not finite where a
      value of the leaf is not, or where the squares overflow. Leaves without numbers (PRNG keys, float0) are left out.
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

    The sum of `0 * value`: a finite value adds 0, NaN and Inf add NaN, and nothing overflows. XLA multiplies and adds
    in one pass. A test such as `isfinite` is written to memory first on a CPU, and a count may overflow.
    """
    return [_finite_probe(leaf) for leaf in leaves]


def all_finite(tree: Tree, together: Together = ALONE) -> jax.Array:
    """Whether every value of the tree is finite, however many there are: bool[]."""
    leaves = inexact_leaves(tree)
    if not leaves:
        return jnp.array(True)
    if (cached := cached_answer(leaves, together)) is not None:
        return cached.finite
    return jnp.isfinite(together.total(finite_probes(leaves)))


def suspects(leaves: Sequence[Any], probes: Sequence[jax.Array]) -> list[jax.Array]:
    """For each chunk of leaves, whether a value in it may be non-finite on this device: bool[].

    Args:
      leaves: floating or complex leaves, one at least.
      probes: for each leaf a scalar that is not finite if a value of the leaf is not: what `finite_probes` or
        `squared_norms` return.
    """
    return [jnp.any(~jnp.isfinite(jnp.stack([probes[i] for i in chunk]))) for chunk in _chunks(leaves)]


def nonfinite_counts(leaves: Sequence[Any], suspects: Sequence[jax.Array], together: Together = ALONE) -> jax.Array:
    """How many values of each floating or complex leaf are not finite.

    Args:
      leaves: the values, one leaf at least.
      suspects: what `suspects` returns for them. Only those chunks are counted.
      together: the devices that count together.

    Returns:
      One count for each leaf, of the default integer dtype (int32, or int64 where 64-bit types are enabled), saturated
      at its largest value.
    """
    counts, _ = _examined(leaves, suspects, jnp.ones([], jnp.float32), together)
    return counts


def counts_and_norm(
    leaves: Sequence[Any], norms: Sequence[jax.Array], total: jax.Array, together: Together = ALONE
) -> tuple[jax.Array, jax.Array]:
    """`nonfinite_counts`, and the L2 norm of the leaves, of leaves whose sum of squares is not finite.

    Args:
      leaves: floating or complex leaves, one at least.
      norms: what `squared_norms` returns for them.
      total: the sum of the norms over the devices: NaN or infinite.
      together: the devices that have parts of the leaves.

    Returns:
      The counts; and the norm, a scalar of the dtype of `total`. If all values are finite and only their squares
      overflow, it is the norm all the same; otherwise NaN or infinite.
    """
    # Were the scale a constant, XLA would square it, to 0, where a leaf is a scalar.
    scale = jnp.where(jnp.isfinite(total), jnp.ones_like(total), jnp.full_like(total, _SCALE))
    suspected = suspects(leaves, norms)
    counts, scaled = _examined(leaves, suspected, scale, together)

    def of_norms(chunk: list[int]) -> jax.Array:
        return jnp.sum(jnp.square(jnp.sqrt(jnp.stack([norms[i].astype(scale.dtype) for i in chunk])) * scale))

    squares = [
        lax.select(suspect, square, vary(of_norms(chunk), varying(jax.typeof(square))))
        for chunk, suspect, square in zip(_chunks(leaves), suspected, scaled, strict=True)
    ]
    norm = jnp.sqrt(together.total(squares)) / scale
    return counts, jnp.where(jnp.all(counts == 0), norm, jnp.sqrt(total))


def _examined(
    leaves: Sequence[Any], suspects: Sequence[jax.Array], scale: jax.Array, together: Together
) -> tuple[jax.Array, list[jax.Array]]:
    """Counts by leaf; and by chunk the sum of squares of the values times `scale`, 0 for those that are no suspects."""
    chunks, counts, squares = _chunks(leaves), [], []
    for chunk, suspect in zip(chunks, suspects, strict=True):
        values = [jnp.asarray(leaves[i]) for i in chunk]
        count, square = lax.cond(suspect, _examine, _skip, values, scale)
        counts.append(together.total_count(count, values[0].size))
        squares.append(square)
    return jnp.concatenate(counts)[np.argsort(np.concatenate(chunks))], squares


def count_dtype() -> np.dtype[Any]:
    """The default integer dtype, in which values are counted: int32, or int64 where 64-bit types are enabled."""
    return jax.dtypes.canonicalize_dtype(np.int64)


def saturating_sum(counts: jax.Array) -> jax.Array:
    """The sum of at most 2**15 counts, none of them negative, saturated at the largest value of their dtype."""
    largest, half = np.iinfo(counts.dtype).max, np.iinfo(counts.dtype).bits // 2
    # Summed as they are they could wrap. The sums of their upper and lower halves cannot.
    low = jnp.sum((counts & (2**half - 1)).astype(f"uint{2 * half}"), dtype=f"uint{2 * half}")
    high = jnp.sum((counts >> half).astype(low.dtype), dtype=low.dtype) + (low >> half)
    total = (high << half) | (low & (2**half - 1))
    return jnp.where(high >= 2 ** (half - 1), largest, total).astype(counts.dtype)


def select(condition: jax.Array, chosen: Tree, otherwise: Tree) -> Tree:
    """`chosen` where the condition holds, else `otherwise`, whose dtypes the result has. Nothing is blended.

    Unlike multiplication by a flag it keeps what is not finite on the side not taken out of the result.
    """
    return jax.tree.map(
        lambda a, b: select_leaf(condition, cast(a, jnp.result_type(b)), jnp.asarray(b)), chosen, otherwise
    )


def select_leaf(condition: jax.Array, chosen: jax.Array, otherwise: jax.Array) -> jax.Array:
    """One leaf of `select`; both have one type. jnp.where is a jitted function, which takes longer to trace."""
    leaf: jax.Array = lax.select(condition, chosen, otherwise)
    return leaf


def cast(leaf: Any, dtype: Any) -> jax.Array:
    """The leaf in the dtype given, not weak; PRNG keys as they are. The real part, where complex becomes real."""
    array: jax.Array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jnp.complexfloating) and not jnp.issubdtype(dtype, jnp.complexfloating):
        array = array.real
    return array if array.dtype == dtype and not getattr(array, "weak_type", False) else array.astype(dtype)


def common_dtype(*dtypes: Any) -> np.dtype[Any]:
    """The dtype in which to compute with values of these: JAX's, for tiny ones float32."""
    with jax.numpy_dtype_promotion("standard"):
        dtype: np.dtype[Any] = functools.reduce(
            jnp.promote_types, (jnp.dtype(jnp.float32) if _is_tiny(dtype) else jnp.dtype(dtype) for dtype in dtypes)
        )
    return dtype


def computable(leaf: Any) -> Any:
    """The leaf; tiny numbers, floats of 8 bits and integers of 4, in float32: JAX mixes them with no others."""
    return cast(leaf, jnp.float32) if _is_tiny(jnp.result_type(leaf)) else leaf


def _is_tiny(dtype: Any) -> bool:
    # JAX leaves both untyped.
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits <= 8  # type: ignore[no-untyped-call]
    return bool(jnp.issubdtype(dtype, jnp.integer)) and jnp.iinfo(dtype).bits < 8  # type: ignore[no-untyped-call]


def as_int32(value: ArrayLike, least: int) -> jax.Array:
    """An integer scalar as int32, brought into the range from `least` to 2**31 - 1."""
    if isinstance(value, int):
        value = min(value, INT32_MAX)
    number = jnp.asarray(value)
    if np.iinfo(number.dtype).max > INT32_MAX:
        number = jnp.minimum(number, INT32_MAX)
    return jnp.maximum(number.astype(jnp.int32), least)


def gradient_tree(params: Tree) -> Tree:
    """The tree that gradients have: that of the parameters, or of the fast ones where `lookahead` keeps a pair."""
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
    """Whether these are the stand-in parameters with which `optax.tree.map_params` calls `init`.

    They fit no mask and have no leaves, and must reach the inner `init` as they are.
    """
    return isinstance(params, _placeholder_type())


def _is_numeric(leaf: Any) -> bool:
    dtype = jnp.result_type(leaf)
    return dtype != jax.dtypes.float0 and any(jnp.issubdtype(dtype, plain) for plain in _PLAIN)


def _squared_norm(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _sum(lax.square(lax.real(leaf))) + _sum(lax.square(lax.imag(leaf)))
    # Not narrower than float32: 90,000 ones already overflow a float16 sum. Not vdot: on a mesh it gathers the leaf.
    return _sum(lax.square(_widened(leaf)))


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
    # jnp.sum is a jitted function of its own: tracing one for each of 600 leaves takes a second.
    total: jax.Array = lax.reduce_sum(leaf, axes=tuple(range(leaf.ndim)))
    return total


def _chunks(leaves: Sequence[Any]) -> list[list[int]]:
    """Indices of leaves that are counted together: leaves of one type, of `_CHUNK` values at most unless it is one."""
    alike: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        alike.setdefault(jax.typeof(jnp.asarray(leaf)), []).append(i)
    chunks = []
    for places in alike.values():
        length = max(1, _CHUNK // max(1, jnp.size(leaves[places[0]])))
        chunks += [places[start : start + length] for start in range(0, len(places), length)]
    return chunks


# The branches of conditions. They are functions of the module, because outside jit JAX compiles a condition anew
# whenever its branches are other functions than before.


def _skip(leaves: list[jax.Array], scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    axes = varying(jax.typeof(leaves[0])) | varying(jax.typeof(scale))
    return vary(jnp.zeros([len(leaves)], count_dtype()), axes), vary(jnp.zeros_like(scale), axes)


def _examine(leaves: list[jax.Array], scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The stack is a copy of at most `_CHUNK` values. XLA compiles two reductions of it instead of two for each leaf.
    values = leaves[0] if len(leaves) == 1 else jnp.stack(leaves)
    if len(leaves) == 1:
        counts = _nonfinite_count(values)[None]
    else:
        counts = jnp.sum(~jnp.isfinite(values), axis=tuple(range(1, values.ndim)), dtype=count_dtype())
    if not jnp.issubdtype(values.dtype, jnp.complexfloating):
        values = values.astype(scale.dtype)
    square = _squared_norm(values * scale.astype(values.dtype)).astype(scale.dtype)
    axes = varying(jax.typeof(values)) | varying(jax.typeof(scale))
    return vary(counts, axes), vary(square, axes)


def _nonfinite_count(leaf: jax.Array) -> jax.Array:
    nonfinite = ~jnp.isfinite(leaf)
    dtype = count_dtype()
    if dtype == np.int64 or nonfinite.size <= INT32_MAX:
        return _sum(nonfinite.astype(dtype))
    # More values than int32 can count. The wider type is for this one sum; what comes out is int32 again.
    with jax.enable_x64(True):
        return jnp.minimum(jnp.sum(nonfinite, dtype=np.int64), INT32_MAX).astype(dtype)
