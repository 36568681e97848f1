"""The accumulation window of `MultiSteps`: its length, its content, and the gradients for the optimizer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optwrap._core import checks as _checks
from optwrap._core.cond import empty_if
from optwrap._core.trees import Tree, as_int32, cast, common_dtype, computable, select_leaf
from optwrap._wrappers.weights import Weights


def every_k(every_k_schedule: Any) -> Callable[[jax.Array], jax.Array]:
    """The schedule as a function from the gradient step to k: int32[], at least 1.

    Raises:
      TypeError: the schedule is neither a function nor an integer; when called: it does not return an integer.
      ValueError: it is an integer below 1; when called: it returns a Python or numpy integer below 1.
    """
    remedy = "pass the number of mini-steps per optimizer step"
    if not callable(every_k_schedule):
        k = _checks.integer(
            "MultiSteps: every_k_schedule", every_k_schedule, 1, remedy + ", or a function that returns it"
        )
        return lambda _: as_int32(k, 1)

    def schedule(gradient_step: jax.Array) -> jax.Array:
        k = every_k_schedule(gradient_step)
        returned = "MultiSteps: the result of every_k_schedule"
        # The device cannot raise, so only the type of a traced k is checked, and its value is clipped.
        if isinstance(k, jax.Array):
            _checks.integer_type(returned, k, "an integer scalar", remedy)
        else:
            k = _checks.integer(returned, k, 1, remedy)
        return as_int32(k, 1)

    return schedule


def checked_dtype(dtype: Any) -> np.dtype[Any] | None:
    """Check the `accumulator_dtype`: floating or complex, or None.

    Raises:
      TypeError: it is not one of these.
    """
    if dtype is None:
        return None
    remedy = "pass jnp.float32, another floating dtype, or None for the parameters' own"
    try:
        canonical = jax.dtypes.canonicalize_dtype(dtype)
    except TypeError as error:
        raise TypeError(f"MultiSteps: accumulator_dtype must be a dtype, got {dtype!r}: {remedy}") from error
    if not jnp.issubdtype(canonical, jnp.inexact):
        raise TypeError(f"MultiSteps: accumulator_dtype must be floating or complex, got {canonical}: {remedy}")
    return canonical


def zeros(grads: Tree, dtype: np.dtype[Any] | None) -> Tree:
    """An empty accumulator with the shapes of the gradients, and with this dtype, or their own dtypes if it is None."""
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=_widened(dtype, jnp.result_type(leaf))), grads)


def accumulated(
    updates: Tree, state: optax.MultiStepsState, skip: jax.Array | None, weights: Weights | None, *, mean: bool
) -> Tree:
    """The mean (or sum) of the window after this mini-step, in the wider dtype of gradients and accumulator.

    Args:
      updates: the gradients of the mini-step.
      state: the state before it.
      skip: bool[], whether it is skipped; None if there is no skip function.
      weights: the window's weights, this mini-step included; None if mini-steps have no weights.
      mean: whether to return the mean, not the sum.
    """
    first, taken = state.mini_step == 0, state.mini_step + 1

    def share(update: Any, before: jax.Array) -> jax.Array:
        """The amount that this mini-step adds to the accumulator."""
        if weights is None:
            return (update - before) / taken if mean else jnp.asarray(update)
        part = (update - before) * weights.share if mean else update * weights.own
        return jnp.where(weights.own > 0, part, jnp.zeros_like(part))  # not a product: 0 * NaN is NaN

    def add_share(update: Any, held: jax.Array) -> jax.Array:
        update, held = computable(update), computable(held)
        # The first mini-step overwrites the accumulator, which may still hold NaN from an earlier window of optax.
        before = select_leaf(first, jnp.zeros_like(held), held)
        with jax.numpy_dtype_promotion("standard"):
            after = jnp.add(before, share(update, before))
        return after if skip is None else select_leaf(skip, cast(held, after.dtype), after)

    return jax.tree.map(add_share, updates, state.acc_grads)


def as_gradients(window: Tree, updates: Tree) -> Tree:
    """The content of the window as gradients for the optimizer: in the dtypes of the updates."""
    return jax.tree.map(lambda leaf, update: cast(leaf, jnp.result_type(update)), window, updates)


def next_accumulator(window: Tree, emitted: jax.Array, state: optax.MultiStepsState) -> Tree:
    """The accumulator after the mini-step, in its own dtypes; zeros if the mini-step completed the window.

    `emitted` is a result of the optimizer's step, which reads the window. So XLA empties the window after that step,
    and can do it in place.
    """
    return empty_if(emitted, jax.tree.map(lambda leaf, before: cast(leaf, before.dtype), window, state.acc_grads))


def _widened(accumulator: np.dtype[Any] | None, leaf: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of a leaf's accumulator: the requested one, or a wider one if float32 would lose precision."""
    if accumulator is None:
        return leaf
    if jnp.issubdtype(leaf, jnp.complexfloating) or (accumulator == jnp.float32 and leaf == jnp.float64):
        return common_dtype(accumulator, leaf)
    return accumulator
