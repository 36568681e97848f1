"""Finite checks, norms and selects on trees: the arithmetic that every wrapper shares.

Wrappers that ask the same of the same gradients must ask with the same operations: XLA then merges the questions, and
a nest of wrappers pays for one pass over the gradients.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from typing import cast as typed

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from optwrap._core.checks import INT32_MAX
from optwrap._core.collectives import ALONE, Together, vary, varying
from optwrap._core.norm_cache import answer_about, knowing_norms, norm_of

Tree = Any
"""Any pytree of arrays."""

Update = TypeVar("Update", bound=Callable[..., Any])

_LARGE: Final = 2**14
"""Values from which on a leaf is worth a condition of its own before each is asked."""

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
      one scalar per numeric leaf, float64 for float64 and complex128 leaves, else float32. It is not finite where a
      value of the leaf is not, or where the squares overflow. Leaves without numbers (PRNG keys, float0) are left out.
    """
    return [
        _squared_norm(leaf) if (known := norm_of(leaf)) is None else known
        for leaf in jax.tree.leaves(tree)
        if _is_numeric(leaf)
    ]


def sharing_norms(update: Update) -> Update:
    """An `update` such that all inside it who ask for the norms of its updates have the same ones."""

    @functools.wraps(update)
    def shared(updates: Tree, *args: Any, **kwargs: Any) -> Any:
        # Of tracers only: the norm of an array that is known would be a tracer of this trace, and the array may be in
        # another, which outlives this one.
        leaves = [leaf for leaf in jax.tree.leaves(updates) if isinstance(leaf, jax.core.Tracer) and _is_numeric(leaf)]
        with knowing_norms(leaves, squared_norms(leaves)):
            return update(updates, *args, **kwargs)

    return typed(Update, shared)


def squared_norm(tree: Tree, together: Together = ALONE) -> jax.Array:
    """The sum of squared absolute values of the tree: a scalar of the widest dtype of `squared_norms`."""
    norms = squared_norms(tree)
    return together.total(norms) if norms else jnp.zeros([], jnp.float32)


def all_finite(tree: Tree, together: Together = ALONE) -> jax.Array:
    """Whether every value of the tree is finite, however many there are: bool[].

    A sum of squares in float32 or wider is finite only if every value is, and costs less than asking each value. It
    may also overflow on finite values; those are told apart, each value asked, where it is not finite.
    """
    leaves = inexact_leaves(tree)
    if not leaves:
        return jnp.array(True)
    if (known := answer_about(leaves, together)) is not None:
        return known.finite
    norms = squared_norms(leaves)
    finite = jnp.isfinite(together.total(norms))
    decided: jax.Array = lax.cond(finite, _as_known, _asking_each(together), finite, leaves, norms)
    return decided


def not_finite_counts(tree: Tree, norms: Sequence[jax.Array], together: Together = ALONE) -> list[jax.Array]:
    """How many values of each leaf are not finite, in the tree's order.

    Args:
      tree: the values.
      norms: what `squared_norms` says of them, each device of its own.
      together: the devices that count together.

    Returns:
      one scalar per leaf, of the default integer dtype (int32, or int64 where 64-bit types are enabled), saturated at
      its largest value; 0 for leaves that cannot hold NaN.
    """
    leaves, known = jax.tree.leaves(tree), iter(norms)
    counts = [_not_finite_count(leaf, next(known) if _is_numeric(leaf) else None) for leaf in leaves]
    return [together.total_count(count, jnp.size(leaf)) for count, leaf in zip(counts, leaves, strict=True)]


def count_dtype() -> np.dtype[Any]:
    """The default integer dtype, in which values are counted: int32, or int64 where 64-bit types are enabled."""
    return jax.dtypes.canonicalize_dtype(np.int64)


def saturating_sum(counts: list[jax.Array]) -> jax.Array:
    """The sum of counts, in `count_dtype`, saturated at its largest value."""
    total = jnp.zeros([], count_dtype())
    largest = np.iinfo(total.dtype).max
    for count in counts:
        total = jnp.where(count > largest - total, largest, total + count)
    return total


def select(condition: jax.Array, chosen: Tree, otherwise: Tree) -> Tree:
    """`chosen` where the condition holds, else `otherwise`, whose dtypes the result has. Nothing is blended.

    Unlike multiplication by a flag it keeps what is not finite on the side not taken out of the result.
    """
    return jax.tree.map(lambda a, b: jnp.where(condition, cast(a, jnp.result_type(b)), b), chosen, otherwise)


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
        return jnp.sum(jnp.square(leaf.real) + jnp.square(leaf.imag))
    # Not narrower than float32: 90,000 ones already overflow a float16 sum. Not vdot: on a mesh it gathers the leaf.
    return jnp.sum(jnp.square(leaf.astype(jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32)))


# A leaf whose sum of squares is finite need not be asked again. Each large one has a condition of its own: where the
# loss was NaN the first of them decides, and where one parameter went bad it alone is read a second time. (XLA:CPU also
# writes out which values are finite before it sums them: under conditions, for one leaf after the other in the same
# memory, else for all.) Small ones are asked together: a condition costs as much, and takes time to compile.
#
# Without jit a condition is compiled anew wherever its branches are other functions than before: they are defined once.


def _as_known(finite: jax.Array, *_: Any) -> jax.Array:
    # An operand, not a constant, so that both branches vary over the same axes of a mesh.
    return finite


@functools.cache
def _asking_each(together: Together) -> Callable[..., jax.Array]:
    def decide(_: jax.Array, leaves: Sequence[jax.Array], norms: Sequence[jax.Array]) -> jax.Array:
        return ~together.largest(~_every_value_finite(leaves, norms))

    return decide


def _every_value_finite(leaves: Sequence[jax.Array], norms: Sequence[jax.Array]) -> jax.Array:
    small = [jnp.all(jnp.isfinite(leaf)) for leaf in leaves if jnp.size(leaf) < _LARGE]
    finite = jnp.all(jnp.stack(small)) if small else jnp.array(True)
    for leaf, norm in zip(leaves, norms, strict=True):
        if jnp.size(leaf) >= _LARGE:
            finite = lax.cond(finite & ~jnp.isfinite(norm), _and_these, _whatever_these, finite, leaf)
    return finite


def _and_these(finite: jax.Array, leaf: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf)) & finite


def _whatever_these(finite: jax.Array, leaf: jax.Array) -> jax.Array:
    return vary(finite, varying(jax.typeof(leaf)))


def _not_finite_count(leaf: Any, norm: jax.Array | None) -> jax.Array:
    if norm is None or not is_inexact(leaf):
        return jnp.zeros([], count_dtype())
    leaf = jnp.asarray(leaf)
    if leaf.size < _LARGE:
        return _not_finite_values(leaf)
    count: jax.Array = lax.cond(jnp.isfinite(norm), _no_values, _not_finite_values, leaf)
    return count


def _no_values(leaf: jax.Array) -> jax.Array:
    return vary(jnp.zeros([], count_dtype()), varying(jax.typeof(leaf)))


def _not_finite_values(leaf: jax.Array) -> jax.Array:
    bad = ~jnp.isfinite(leaf)
    dtype = count_dtype()
    if dtype == np.int64 or bad.size <= INT32_MAX:
        return jnp.sum(bad, dtype=dtype)
    # More values than int32 can count. The wider type is for this one sum; what comes out is int32 again.
    with jax.enable_x64(True):
        return jnp.minimum(jnp.sum(bad, dtype=np.int64), INT32_MAX).astype(dtype)
