"""`masked`: applies a transformation to some of the parameters."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optwrap._core import checks as _checks
from optwrap._core.apply_gradients import Fused, add, apply_gradients
from optwrap._core.trees import Tree, gradient_tree, is_placeholder


def masked(
    inner: optax.GradientTransformation,
    mask: Tree | Callable[[Tree], Tree],
    *,
    mask_compatible_extra_args: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Transform the updates where the mask is true, and pass the others through unchanged.

    The inner transformation gets `MaskedNode()`, a node without leaves, in place of each masked-out parameter, so it
    keeps no state for it.

    Drop-in for `optax.masked` (optax 0.2.8), with the same state.

    Args:
      inner: the transformation for the parameters where the mask is true.
      mask: a tree of bools with the structure of the parameters, or a prefix of it, in which one bool is for a whole
        subtree; or a function that returns such a tree, called with the parameters in `init` and with the updates in
        `update`. A tree counts as a function only if all its leaves are callable. The bools must be known when tracing.
      mask_compatible_extra_args: whether extra args with the tree structure of the updates are masked too.

    Returns:
      A transformation with state `MaskedState(inner_state)`. Extra args are passed on to the inner transformation.

    Raises:
      TypeError: `inner` is not a transformation; a leaf of the mask, or `mask_compatible_extra_args`, is not a bool; in
        `update`: `state` is not a `MaskedState`.
      ValueError: the mask does not fit the parameters or the updates, or the updates have other shapes than the
        parameters given with them.
    """
    inner = _checks.transformation("masked: inner", inner)
    mask_compatible_extra_args = _checks.flag(
        "masked: mask_compatible_extra_args",
        mask_compatible_extra_args,
        "pass whether extra args with the updates' structure are masked",
    )
    leaves = jax.tree.leaves(mask)
    called = bool(leaves) and all(callable(leaf) for leaf in leaves)
    if not called:
        mask = _checked_mask(mask)

    def mask_of(tree: Tree) -> Tree:
        return _checked_mask(mask(tree)) if called else mask

    def init(params: Tree) -> optax.MaskedState:
        if is_placeholder(params):
            return optax.MaskedState(inner.init(params))
        return optax.MaskedState(inner.init(_take(mask_of(params), params, "params")))

    def masked_args(chosen: Tree, updates: Tree, extra_args: dict[str, Any]) -> dict[str, Any]:
        if not mask_compatible_extra_args:
            return extra_args
        structure: Any = jax.tree.structure(updates)
        return {
            name: _take(chosen, value, name) if jax.tree.structure(value) == structure else value
            for name, value in extra_args.items()
        }

    def update(
        updates: Tree, state: optax.MaskedState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, optax.MaskedState]:
        state = _checks.state("masked", state, optax.MaskedState)
        _checks.gradients("masked", updates, gradient_tree(params))
        chosen = mask_of(updates)
        masked_updates = _take(chosen, updates, "updates")
        masked_params = None if params is None else _take(chosen, params, "params")
        extra_args = masked_args(chosen, updates, extra_args)
        new_updates, inner_state = inner.update(masked_updates, state.inner_state, masked_params, **extra_args)
        return _merged(chosen, new_updates, updates), optax.MaskedState(inner_state)

    def apply(grads: Tree, state: optax.MaskedState, params: Tree, **extra_args: Any) -> tuple[Tree, optax.MaskedState]:
        state = _checks.state("masked", state, optax.MaskedState)
        _checks.gradients("masked", grads, gradient_tree(params))
        chosen = mask_of(grads)
        masked_grads, masked_params = _take(chosen, grads, "updates"), _take(chosen, params, "params")
        extra_args = masked_args(chosen, grads, extra_args)
        new_params, inner_state = apply_gradients(inner, masked_grads, state.inner_state, masked_params, **extra_args)
        others = jax.tree.map(operator.not_, chosen)
        passed_by = add(_take(others, params, "params"), _take(others, grads, "updates"))
        return _merged(chosen, new_params, passed_by), optax.MaskedState(inner_state)

    return Fused(init, update, apply)


def _merged(mask: Tree, chosen: Tree, others: Tree) -> Tree:
    """`chosen` where the mask is true, else `others`."""
    return jax.tree.map(lambda keep, leaf, other: leaf if keep else other, mask, chosen, others)


def _checked_mask(mask: Tree) -> Tree:
    """The mask with Python bools as leaves."""

    def checked(path: Any, leaf: Any) -> bool:
        plain = isinstance(leaf, bool | np.bool_) or (isinstance(leaf, int | np.integer) and leaf in (0, 1))
        array = isinstance(leaf, jax.Array | np.ndarray) and leaf.dtype == jnp.bool_ and np.ndim(leaf) == 0
        if not (plain or (array and _checks.is_concrete(leaf))):
            raise TypeError(
                f"masked: mask{jax.tree_util.keystr(path)} must be True or False, got {_checks.shown(leaf)} "
                f"({type(leaf).__name__}): a mask chooses whole parameters, before the step is compiled; build it from "
                "shapes, dtypes or names"
            )
        return bool(leaf)

    return jax.tree_util.tree_map_with_path(checked, mask)


def _take(mask: Tree, tree: Tree, argument: str) -> Tree:
    """The tree with `MaskedNode()` where the mask is false."""
    try:
        return jax.tree.map(lambda keep, subtree: subtree if keep else optax.MaskedNode(), mask, tree)
    except ValueError as error:
        raise ValueError(
            f"masked: mask does not fit {argument}: {_misfit(mask, tree)}it has the structure "
            f"{jax.tree.structure(mask)}, which is neither that of {argument} nor a prefix of it, "
            f"{jax.tree.structure(tree)}: give a bool for every parameter, or for subtrees that hold all of them"
        ) from error


def _misfit(mask: Tree, tree: Tree) -> str:
    """The first leaf without a bool in the mask, and the first path that only the mask has, for an error message."""
    covering = [path for path, _ in jax.tree_util.tree_leaves_with_path(mask)]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: leaf is None)]
    uncovered = [path for path in paths if not any(path[: len(prefix)] == prefix for prefix in covering)]
    extra = [prefix for prefix in covering if not any(path[: len(prefix)] == prefix for path in paths)]
    messages = [f"it has no bool for {jax.tree_util.keystr(path)}" for path in uncovered[:1]]
    messages += [f"{jax.tree_util.keystr(path)} is in the mask only" for path in extra[:1]]
    return "".join(f"{message}; " for message in messages)
