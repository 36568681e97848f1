"""`apply_gradients`: update and apply under one condition, so that a skipped step touches nothing."""

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import optax

from optwrap._core import checks as _checks
from optwrap._core.trees import Tree, gradient_tree

Apply = Callable[..., tuple[Tree, Tree]]
"""`(gradients, state, params, **extra_args) -> (new parameters, new state)`."""

_REMEDY: Final = "pass the gradients of these parameters, to a transformation that returns updates of their shapes"


class Fused(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # optax ships no types
    """A transformation with a third function, `apply`, that does the work of `update` and `optax.apply_updates`.

    optax treats it like any other transformation. A transformation around it that has no `apply` itself, such as
    `optax.chain`, hides it; then `update` and `optax.apply_updates` are called. A copy made by `_replace` or
    `jax.tree.map` has only the two functions, too.
    """

    apply: Apply | None

    def __new__(cls, init: Any, update: Any, apply: Apply | None = None) -> "Fused":
        """Make a transformation from its functions. Without `apply` it is an ordinary one."""
        self: Fused = super().__new__(cls, init, update)
        self.apply = apply
        return self


def apply_gradients(
    tx: optax.GradientTransformation, grads: Tree, state: Tree, params: Tree, **extra_args: Any
) -> tuple[Tree, Tree]:
    """One step of the optimizer: `tx.update` and `optax.apply_updates` in one, and faster.

    If `tx` is a wrapper of optwrap (`instrument` included), its condition encloses both the update and its application:
    a step that is skipped, or that only accumulates, changes neither the parameters nor the state inside the wrapper.
    The same holds for wrappers of optwrap directly inside it. For any other transformation (`optax.chain`,
    `optax.inject_hyperparams`, optax's own wrappers) the two functions are called one after the other.

    A step that is taken is bitwise equal to the inner optimizer's own jitted update and apply. The two separate
    calls may differ from that by rounding, because XLA compiles them differently; flags and counters are equal.

    Donate the parameters and the state in the order in which your step returns them: JAX matches donated arguments and
    results by order, and XLA then works in place::

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def train_step(params, opt_state, batch):
            grads = jax.grad(loss)(params, batch)
            return optwrap.apply_gradients(tx, grads, opt_state, params)

    Args:
      tx: the transformation, or a `MultiSteps`.
      grads: the gradients; under `lookahead` those of the fast parameters.
      state: the state that `tx.init`, or the step before, returned.
      params: the parameters.
      **extra_args: passed on to `tx`.

    Returns:
      The new parameters, with the structure, shapes and dtypes of `params`, and the new state.

    Raises:
      TypeError: `tx` is no transformation, or `params` is None; or whatever `tx.update` raises.
      ValueError: gradients or updates have other shapes than the parameters. Nothing is broadcast.
    """
    tx = _checks.transformation("apply_gradients: tx", tx)
    if params is None:
        raise TypeError(
            "apply_gradients: params must be the parameters to apply the update to, got None: pass them, or call "
            "tx.update for the update alone"
        )
    if isinstance(tx, Fused) and tx.apply is not None:
        return tx.apply(grads, state, params, **extra_args)
    _checks.gradients("apply_gradients", grads, gradient_tree(params))
    updates, state = tx.update(grads, state, params, **extra_args)
    return add(params, updates), state


def add(params: Tree, updates: Tree) -> Tree:
    """`optax.apply_updates`, but updates of other shapes raise; optax broadcasts them.

    Raises:
      ValueError: an update is missing, or has another shape than its parameter.
    """
    # More leaves are allowed: optax ignores an update of a parameter that is None.
    _checks.alike("apply_gradients: updates", updates, params, "params", _REMEDY, more=True)
    return optax.apply_updates(params, updates)


def settle(state: Tree) -> Tree:
    """The state with zeros in every empty accumulation window.

    In an empty window (`mini_step` 0) optax's accumulator may still hold NaN, and optax adds the next gradients to it.
    optwrap overwrites the accumulator in the first mini-step, and leaves zeros after the last. Call this before optax
    continues from such a state.

    Args:
      state: any optimizer state, with `MultiStepsState` anywhere in it. Its arrays may have leading axes, as in a
        training under `jax.vmap`. It may also consist of `jax.ShapeDtypeStruct`s.

    Returns:
      The same state, with zeros in `acc_grads` where `mini_step` is 0. A state of `jax.ShapeDtypeStruct`s is returned
      unchanged. `settle` works under jit, and the state may be donated.
    """

    def is_window(node: Any) -> bool:
        return isinstance(node, optax.MultiStepsState)

    def settled(node: Any) -> Any:
        if not is_window(node):
            return node
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((node.mini_step, node.acc_grads))):
            return node._replace(inner_opt_state=settle(node.inner_opt_state))
        empty = jnp.asarray(node.mini_step == 0)

        def emptied(leaf: jax.Array) -> jax.Array:
            broadcast = empty.reshape(empty.shape + (1,) * (jnp.ndim(leaf) - empty.ndim))
            return jnp.where(broadcast, jnp.zeros_like(leaf), leaf)

        return node._replace(
            acc_grads=jax.tree.map(emptied, node.acc_grads), inner_opt_state=settle(node.inner_opt_state)
        )

    return jax.tree.map(settled, state, is_leaf=is_window)
