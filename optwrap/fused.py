"""Update and apply in one, so that a step which is not taken touches nothing."""

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import optax

from optwrap import _checks
from optwrap._trees import Tree, gradient_tree

Apply = Callable[..., tuple[Tree, Tree]]
"""`(gradients, state, params, **extra_args) -> (new parameters, new state)`."""

_REMEDY: Final = "pass the gradients of these parameters, to a transformation that returns updates alike"


class Fused(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # optax ships no types
    """A transformation that can also take a whole step: `apply` does what `update` and `optax.apply_updates` do.

    To optax it is like any other. What wraps it and is not one itself (`optax.chain`) hides `apply`, and then the two
    are called one after the other; and so they are of what `_replace` or `jax.tree.map` make of one, which know of two
    functions only.
    """

    apply: Apply | None

    def __new__(cls, init: Any, update: Any, apply: Apply | None = None) -> "Fused":
        """Make it of its three functions; without `apply` it is a transformation like any other."""
        self: Fused = super().__new__(cls, init, update)
        self.apply = apply
        return self


def apply_gradients(
    tx: optax.GradientTransformation, grads: Tree, state: Tree, params: Tree, **extra_args: Any
) -> tuple[Tree, Tree]:
    """One step of the optimizer: what `tx.update` and then `optax.apply_updates` do, in one, and faster.

    Where `tx` is a wrapper of optwrap (`instrument` included) its condition is put around both the update and its
    application: a step that is skipped, or that only accumulates, touches neither the parameters nor the state inside
    the wrapper. The same holds for wrappers of optwrap directly inside it. Through any other transformation
    (`optax.chain`, `optax.inject_hyperparams`, optax's own wrappers) it is the two calls.

    A step that is taken equals, bit for bit, what the inner optimizer's own jitted update and apply give. The two calls
    around a wrapper may differ from that by the rounding of an update, since XLA compiles them differently; flags and
    counters are the same exactly.

    Donate the state and the parameters, in the order in which your step returns them: JAX pairs what is donated with
    what is returned by order, and XLA then works in place::

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def train_step(params, opt_state, batch):
            grads = jax.grad(loss)(params, batch)
            return optwrap.apply_gradients(tx, grads, opt_state, params)

    Args:
      tx: the transformation; `MultiSteps` too.
      grads: the gradients; of the fast parameters under `lookahead`.
      state: what `tx.init`, or the step before, returned.
      params: the parameters.
      **extra_args: handed to `tx`.

    Returns:
      the new parameters, with the structure, shapes and dtypes of `params`, and the new state.

    Raises:
      TypeError: `tx` is no transformation, or `params` is None; and what `tx.update` raises.
      ValueError: when first traced: gradients or updates have other shapes than the parameters; nothing is broadcast.
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
    """The parameters after updates of their own shapes: `optax.apply_updates`, which broadcasts any others.

    Raises:
      ValueError: an update is missing, or has another shape than its parameter.
    """
    # Further leaves are let pass, as optax does where there is an update of a parameter that is None.
    _checks.alike("apply_gradients: updates", updates, params, "params", _REMEDY, more=True)
    return optax.apply_updates(params, updates)


def settle(state: Tree) -> Tree:
    """The state with every empty accumulation window holding zeros, as optax leaves it.

    What an empty window (`mini_step` 0) holds has no meaning to optwrap, whose first mini-step overwrites it. optax
    adds to it: whatever is left there, NaN for one, stays. optwrap's own steps, `update` and `apply_gradients` alike,
    leave zeros; use this on a state that comes from elsewhere, such as one that optax itself has poisoned.

    Args:
      state: any optimizer state, with `MultiStepsState` anywhere in it; under `jax.vmap`-ed training, stacked states
        with leading axes. An abstract one too, of `jax.ShapeDtypeStruct`s, such as checkpoints are restored into.

    Returns:
      the same state, and zeros in `acc_grads` where `mini_step` is 0. May be jitted, and the state donated. An abstract
      state comes back as it is, with its shardings: it says of the one as much as of the other.
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
            its = empty.reshape(empty.shape + (1,) * (jnp.ndim(leaf) - empty.ndim))
            return jnp.where(its, jnp.zeros_like(leaf), leaf)

        return node._replace(
            acc_grads=jax.tree.map(emptied, node.acc_grads), inner_opt_state=settle(node.inner_opt_state)
        )

    return jax.tree.map(settled, state, is_leaf=is_window)
