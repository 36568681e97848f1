"""`flatten`: gives the inner transformation a few long vectors instead of many small arrays."""

import math
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from optwrap._core import checks as _checks
from optwrap._core.apply_gradients import Fused, apply_gradients
from optwrap._core.trees import Tree, cast, gradient_tree, is_placeholder

_WHOLE: Final = P()  # type: ignore[no-untyped-call]  # JAX leaves it untyped


def flatten(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Give the inner transformation one vector instead of a tree of arrays.

    This saves time if there are many small arrays. Arrays of several dtypes become a dict with one vector per dtype,
    keyed by the dtype's name; a tree without arrays becomes an empty dict. An elementwise transformation
    gives the same result as without `flatten`. One that works on whole arrays, such as a norm per layer, does not. On a
    mesh, sharded arrays are gathered.

    Drop-in for `optax.flatten` (optax 0.2.8), with the same state if all arrays have one dtype.

    Args:
      inner: the transformation that gets the vectors.

    Returns:
      A transformation with the state of `inner`. If the parameters have several dtypes, and the updates have other
      dtypes than the parameters, `update` needs the parameters. Extra args are passed on unchanged.

    Raises:
      TypeError: `inner` is not a transformation.
      ValueError: in `update`: updates and parameters have different structures or shapes.
    """
    inner = _checks.transformation("flatten: inner", inner)

    def init(params: Tree) -> Tree:
        if is_placeholder(params):
            return inner.init(params)
        return inner.init(_each(lambda tree: _vectors(tree, _dtypes(tree)), params))

    def update(updates: Tree, state: Tree, params: Tree | None = None, **extra_args: Any) -> tuple[Tree, Tree]:
        groups = _groups(updates, params)
        vectors = None if params is None else _each(lambda tree: _vectors(tree, groups), params)
        flat, state = inner.update(_vectors(updates, groups), state, vectors, **extra_args)
        return _each(lambda tree: _unflattened(tree, updates, groups), flat), state

    def apply(grads: Tree, state: Tree, params: Tree, **extra_args: Any) -> tuple[Tree, Tree]:
        groups = _groups(grads, params)
        vectors = _each(lambda tree: _vectors(tree, groups), params)
        flat, state = apply_gradients(inner, _vectors(grads, groups), state, vectors, **extra_args)
        return _each(lambda tree: _unflattened(tree, gradient_tree(params), groups), flat), state

    return Fused(init, update, apply)


def _groups(updates: Tree, params: Tree | None) -> list[str]:
    """For each array of the updates the name of its vector."""
    # The parameters' dtypes if they are known, because the state was made from the parameters.
    groups = _dtypes(updates if params is None else gradient_tree(params))
    if len(groups) != len(jax.tree.leaves(updates)):
        raise ValueError(
            f"flatten: updates have {len(jax.tree.leaves(updates))} arrays, params {len(groups)}: "
            "pass the gradients of these parameters"
        )
    if params is not None:
        _check_shapes(updates, gradient_tree(params))
    return groups


def _check_shapes(updates: Tree, params: Tree) -> None:
    # Leaf by leaf, because the two may be trees of different containers.
    for (path, update), param in zip(
        jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(params), strict=True
    ):
        if jnp.shape(update) != jnp.shape(param):
            raise ValueError(
                f"flatten: updates{jax.tree_util.keystr(path)} must have the shape of its parameter, "
                f"{jnp.shape(param)}, got {jnp.shape(update)}: pass the gradients of these parameters"
            )


def _each(function: Callable[[Tree], Tree], tree: Tree) -> Tree:
    """`function(tree)`. If `tree` is the pair of `lookahead`, `function` is applied to both of its trees."""
    if isinstance(tree, optax.LookaheadParams):
        return optax.LookaheadParams(fast=function(tree.fast), slow=function(tree.slow))
    return function(tree)


def _dtypes(tree: Tree) -> list[str]:
    """For each leaf the name of its dtype, which is also the name of its vector."""
    return [str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]


def _vectors(tree: Tree, groups: list[str]) -> Tree:
    """A dict with one vector for each group of leaves; if there is only one group, the vector itself."""
    leaves = jax.tree.leaves(tree)
    vectors = {
        group: _concatenated([leaf for leaf, its in zip(leaves, groups, strict=True) if its == group])
        for group in sorted(set(groups))
    }
    return next(iter(vectors.values())) if len(vectors) == 1 else vectors


def _concatenated(leaves: list[Any]) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*leaves)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        size = sum(math.prod(leaf.shape) for leaf in leaves)
        return jax.ShapeDtypeStruct((size,), dtype)  # type: ignore[no-untyped-call]  # JAX leaves it untyped
    return jnp.concatenate([jnp.ravel(cast(_resharded(leaf, _WHOLE), dtype)) for leaf in leaves])


def _resharded(array: Any, spec: P) -> Any:
    """The array, resharded to `spec` if its type has an explicit sharding. Otherwise the compiler decides."""
    current = jax.typeof(array).sharding.spec
    if not any(current) and not any(spec):
        return array
    return jax.sharding.reshard(array, spec)  # type: ignore[no-untyped-call]  # JAX leaves it untyped


def _unflattened(flat: Tree, like: Tree, groups: list[str]) -> Tree:
    """The inverse of `_vectors`: arrays with the structure and shapes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    vectors: dict[str, Any] = flat if isinstance(flat, dict) else dict.fromkeys(groups, flat)
    mixed = {
        group
        for group in vectors
        if len({jnp.result_type(x) for x, its in zip(leaves, groups, strict=True) if its == group}) > 1
    }
    offsets = dict.fromkeys(vectors, 0)
    arrays = []
    for leaf, group in zip(leaves, groups, strict=True):
        start, size = offsets[group], math.prod(jnp.shape(leaf))
        offsets[group] = start + size
        array = vectors[group][start : start + size].reshape(jnp.shape(leaf))
        # The array was widened to share a vector: cast it back.
        array = cast(array, jnp.result_type(leaf)) if group in mixed else array
        arrays.append(_resharded(array, jax.typeof(leaf).sharding.spec))
    return jax.tree.unflatten(structure, arrays)
