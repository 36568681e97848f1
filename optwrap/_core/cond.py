"""Runs the wrapped transformation under a condition that is decided on the device.

`step_if` runs its update. `apply_if` also applies the update: a skipped step changes neither parameters nor state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optwrap._core.collectives import vary, varying
from optwrap._core.trees import Tree, cast, common_dtype


class Step(NamedTuple):
    """The result of `step_if`."""

    updates: Any
    """The updates of the wrapped transformation, or zeros."""
    state: Any
    """Its new state, or the state before."""
    taken: jax.Array
    """bool[]: whether the step was taken. It equals the condition, but it is an output of the branches. Whatever
    depends on it is computed after them, so XLA can overwrite their inputs in place."""


class Applied(NamedTuple):
    """The result of `apply_if`."""

    params: Any
    """The new parameters, or the parameters before."""
    state: Any
    """As in `Step`."""
    taken: jax.Array
    """As in `Step`."""


def step_if(
    condition: jax.Array, step: Callable[[], tuple[Tree, Tree]], state: Tree, *, name: str, keep_dtypes: bool = False
) -> Step:
    """Returns `step()` if the condition holds, else zero updates and `state` unchanged.

    The updates may differ from the gradients in structure or dtype: lookahead returns a pair, and bfloat16 parameters
    may have float32 gradients. So the zeros have the shapes of the step's result. The step is traced once.

    Args:
      condition: bool[].
      step: calls the wrapped transformation's update.
      state: the wrapped transformation's state before the step.
      name: the wrapper's name, for messages.
      keep_dtypes: if True, the new state is cast to the dtypes of `state`, as optax.MultiSteps does. If False, the
        result has the wider dtype of the two, so that no value loses precision.

    Raises:
      TypeError: the step returns a state with another structure or other shapes than `state`.
    """
    return Step(*_one_of(condition, step, None, state, name=name, keep_dtypes=keep_dtypes))


def apply_if(
    condition: jax.Array,
    step: Callable[[], tuple[Tree, Tree]],
    params: Tree,
    state: Tree,
    *,
    name: str,
    keep_dtypes: bool = False,
) -> Applied:
    """Returns `step()`, the new parameters and state, if the condition holds, else `params` and `state` unchanged.

    Args:
      condition: bool[].
      step: runs the wrapped transformation's update and applies it.
      params: the parameters before it.
      state: the wrapped transformation's state before it.
      name: the wrapper's name, for messages.
      keep_dtypes: as in `step_if`.

    Raises:
      TypeError: the step returns a state or parameters with another structure or other shapes than those before.
    """
    return Applied(*_one_of(condition, step, params, state, name=name, keep_dtypes=keep_dtypes))


def _one_of(
    condition: jax.Array,
    step: Callable[[], tuple[Tree, Tree]],
    params: Tree | None,
    state: Tree,
    *,
    name: str,
    keep_dtypes: bool,
) -> tuple[Tree, Tree, jax.Array]:
    """Returns `step()`, or the old `params` (zeros like the updates if it is None) and the old `state`."""
    params, state = jax.tree.map(jnp.asarray, (params, state))
    old_types, old_params = jax.tree.map(jax.typeof, (state, params))
    returned: tuple[Tree, Tree] | None = None

    def common(leaf: jax.Array, old: Any, new: Any) -> jax.Array:
        dtype = old.dtype if keep_dtypes or old.dtype == new.dtype else common_dtype(old.dtype, new.dtype)
        return vary(cast(leaf, dtype), varying(old) | varying(new))

    def take() -> tuple[Tree, Tree, jax.Array]:
        nonlocal returned
        result, new_state = jax.tree.map(jnp.asarray, step())
        _check_same_shape(name, "state", old_types, new_state)
        if params is not None:
            _check_same_shape(name, "params", old_params, result)
        returned = jax.tree.map(jax.typeof, (result, new_state))
        if params is not None:
            result = jax.tree.map(common, result, old_params, returned[0])
        return result, jax.tree.map(common, new_state, old_types, returned[1]), jnp.array(True)

    def keep() -> tuple[Tree, Tree, jax.Array]:
        if returned is None:  # cond traces the true branch first; without jit it runs one branch only
            jax.eval_shape(take)
        assert returned is not None
        result = (
            jax.tree.map(_zeros, returned[0])
            if params is None
            else jax.tree.map(common, params, old_params, returned[0])
        )
        return result, jax.tree.map(common, state, old_types, returned[1]), jnp.array(False)

    # The branch that changes nothing must be the false one. Otherwise XLA:CPU copies the state.
    taken: tuple[Tree, Tree, jax.Array] = lax.cond(condition, take, keep)
    return taken


@jax.custom_jvp
def empty_if(condition: jax.Array, tree: Tree) -> Tree:
    """Zeros if the condition holds, else `tree` unchanged; in place, if XLA may overwrite `tree`.

    XLA would fuse a select with the computation of `tree` and keep a copy. It does not fuse a while loop, so this is a
    loop that runs once or not at all. Such a loop has no transpose, so the derivative is defined below.

    Args:
      condition: bool[].
      tree: any arrays.
    """
    axes = varying(jax.typeof(condition))
    _, emptied = lax.while_loop(_flag, _emptied, (condition, jax.tree.map(lambda leaf: vary(leaf, axes), tree)))
    return emptied


@empty_if.defjvp
def _empty_if_jvp(primals: tuple[jax.Array, Tree], tangents: tuple[Any, Tree]) -> tuple[Tree, Tree]:
    condition, tree = primals

    def tangent(leaf: jax.Array) -> jax.Array:
        return leaf if leaf.dtype == jax.dtypes.float0 else jnp.where(condition, jnp.zeros_like(leaf), leaf)

    return empty_if(condition, tree), jax.tree.map(tangent, tangents[1])


def _flag(carry: tuple[jax.Array, Tree]) -> jax.Array:
    return carry[0]


def _emptied(carry: tuple[jax.Array, Tree]) -> tuple[jax.Array, Tree]:
    flag, tree = carry
    # Not constants: the result must vary along the same mesh axes as the input, and XLA would copy constants.
    return flag & False, jax.tree.map(lambda leaf: lax.select(flag, jnp.zeros_like(leaf), leaf), tree)


def _check_same_shape(name: str, what: str, old: Tree, new: Tree) -> None:
    remedy = (
        "a skipped step keeps the old arrays, so both must have the same structure and shapes; wrap a "
        "transformation that keeps them"
    )
    returned = f"{name}: the wrapped transformation's update returned"
    expected: Any = jax.tree.structure(old)
    if jax.tree.structure(new) != expected:
        raise TypeError(
            f"{returned} a {what} with another structure than its input: "
            f"{jax.tree.structure(new)}, expected {expected}: {remedy}"
        )
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if before.shape != after.shape:
            raise TypeError(
                f"{returned} {what}{jax.tree_util.keystr(path)} with shape "
                f"{after.shape}, expected {before.shape}: {remedy}"
            )


def _zeros(like: Any) -> jax.Array:
    """Zeros of an abstract array's type, its sharding and varying axes included."""
    return vary(jnp.zeros(like.shape, like.dtype, out_sharding=like.sharding), varying(like))
