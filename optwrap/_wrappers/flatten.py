"""Many small arrays as few long ones."""

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
    """Hand the inner transformation one vector instead of a tree of arrays, where all have one dtype.

    Saves time where there are many small arrays. Arrays of several dtypes become a dict of one vector per dtype, keyed
    by its name, so that each keeps its dtype; a tree without arrays becomes an empty dict. What the inner
    transformation does to each value by itself is the same as without; what it does to each array, such as a norm per
    layer, is not. On a mesh it gathers sharded arrays.

    Drop-in for `optax.flatten` (optax 0.2.8), with the same state where all arrays have one dtype.

    Args:
      inner: the transformation to hand vectors to.

    Returns:
      A transformation with the state of `inner`. Parameters of several dtypes must be given to `update`, too, if the
      updates do not have the same dtypes. Extra args reach the inner transformation as they are.

    Raises:
      TypeError: `inner` is no transformation.
      ValueError: when first traced: updates and parameters have different structures or shapes.
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
    """Per array of the updates, the vector it goes to."""
    # By the parameters' dtypes where they are known: the state was made from those.
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
    # Leaf by leaf: the two may be trees of different containers, of which the vectors know nothing.
    for (path, update), param in zip(
        jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(params), strict=True
    ):
        if jnp.shape(update) != jnp.shape(param):
            raise ValueError(
                f"flatten: updates{jax.tree_util.keystr(path)} must have the shape of its parameter, "
                f"{jnp.shape(param)}, got {jnp.shape(update)}: pass the gradients of these parameters"
            )


def _each(function: Callable[[Tree], Tree], tree: Tree) -> Tree:
    """The function of the tree; of both trees, where `lookahead` has a pair."""
    if isinstance(tree, optax.LookaheadParams):
        return optax.LookaheadParams(fast=function(tree.fast), slow=function(tree.slow))
    return function(tree)


def _dtypes(tree: Tree) -> list[str]:
    """Per leaf, the name of its dtype: of the vector it goes to."""
    return [str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]


def _vectors(tree: Tree, groups: list[str]) -> Tree:
    """The leaves of each group as one vector; the vector itself where there is one group."""
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
    return jnp.concatenate([jnp.ravel(cast(_laid(leaf, _WHOLE), dtype)) for leaf in leaves])


def _laid(array: Any, spec: P) -> Any:
    """The array, lying on an explicit mesh as `spec` says; elsewhere types say nothing, and the compiler sees to it."""
    lies = jax.typeof(array).sharding.spec
    if not any(lies) and not any(spec):
        return array
    return jax.sharding.reshard(array, spec)  # type: ignore[no-untyped-call]  # JAX leaves it untyped


def _unflattened(flat: Tree, like: Tree, groups: list[str]) -> Tree:
    """What `_vectors` did, undone: arrays with the structure and shapes of `like`."""
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
        # Arrays that shared a vector of a wider dtype than their own get their own back.
        array = cast(array, jnp.result_type(leaf)) if group in mixed else array
        arrays.append(_laid(array, jax.typeof(leaf).sharding.spec))
    return jax.tree.unflatten(structure, arrays)
