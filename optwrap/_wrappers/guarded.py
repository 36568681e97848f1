"""What the guards share: they take the wrapped transformation's step, or skip it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import optax

from optwrap._core.apply_gradients import Fused, apply_gradients
from optwrap._core.cond import apply_if, step_if
from optwrap._core.trees import Tree

Decide = Callable[[Tree, Any, Tree | None, dict[str, Any]], AbstractContextManager[tuple[jax.Array, Any]]]
"""`(updates, state, params, extra_args)` -> whether to take the step (bool[]), and the state after it with the inner
state unchanged. Inside the block the wrapped transformation may use what the decision was made from."""


def guarded(
    name: str, inner: optax.GradientTransformationExtraArgs, init: Callable[[Tree], Any], decide: Decide
) -> Fused:
    """A transformation that calls `inner` only in the steps that it takes. Its state has a field `inner_state`.

    Args:
      name: for messages.
      inner: the wrapped transformation.
      init: makes the state.
      decide: decides about each step.
    """

    def update(updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any) -> tuple[Tree, Any]:
        with decide(updates, state, params, extra_args) as (take, after):
            before = after.inner_state
            step = step_if(take, lambda: inner.update(updates, before, params, **extra_args), before, name=name)
        return step.updates, after._replace(inner_state=step.state)

    def apply(grads: Tree, state: Any, params: Tree, **extra_args: Any) -> tuple[Tree, Any]:
        with decide(grads, state, params, extra_args) as (take, after):
            before = after.inner_state
            applied = apply_if(
                take, lambda: apply_gradients(inner, grads, before, params, **extra_args), params, before, name=name
            )
        return applied.params, after._replace(inner_state=applied.state)

    return Fused(init, update, apply)
