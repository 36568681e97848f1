"""`apply_if_finite`: skips steps whose gradients are not finite."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optwrap._core import checks as _checks
from optwrap._core.collectives import Axes, AxisName
from optwrap._core.declarations import Guard, declare
from optwrap._core.finite import all_finite, inexact_leaves
from optwrap._core.norm_cache import Answer, caching_answer
from optwrap._core.trees import Tree, as_int32, gradient_tree
from optwrap._wrappers.guarded import guarded


def apply_if_finite(
    inner: optax.GradientTransformation,
    max_consecutive_errors: ArrayLike,
    *,
    on_limit: Literal["accept", "reject"] = "accept",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Skip the steps whose incoming updates are not all finite, up to a number in a row.

    A skipped step returns zero updates and leaves the inner state unchanged. In a streak of non-finite steps the first
    `max_consecutive_errors` are skipped. Then the wrapper gives up and takes every step until a finite one ends the
    streak. With `on_limit="reject"` it never gives up, and the limit is only reported. Counts saturate at 2**31 - 1.

        >>> tx = apply_if_finite(optax.sgd(1.0), max_consecutive_errors=2)
        >>> state = tx.init(jnp.zeros(2))
        >>> updates, state = tx.update(jnp.array([1.0, jnp.nan]), state)
        >>> print(updates, state.notfinite_count)
        [0. 0.] 1

    Drop-in for `optax.apply_if_finite` (optax 0.2.8), with the same state. The inner transformation may also return
    updates or a state with other dtypes than its inputs, or updates with another structure.

    Args:
      inner: the transformation to guard.
      max_consecutive_errors: steps in a row that may be skipped; an integer from 0 (every step is taken, and counted)
        to 2**31 - 1 (the wrapper never gives up). May be traced.
      on_limit: whether to "accept" (as optax does) or "reject" the non-finite steps after the limit.
      axis_name: axes of the `shard_map` or `pmap` in which `update` is called, along which the gradients differ. The
        devices along them decide together: if the gradients of one are not finite, all skip the step.

    Returns:
      A transformation with state `ApplyIfFiniteState(notfinite_count: int32[], last_finite: bool[],
      total_notfinite: int32[], inner_state)`. `last_finite` is true if the last incoming updates were finite. Extra
      args are passed on to the inner transformation.

    Raises:
      TypeError: `inner` is not a transformation, `max_consecutive_errors` not an integer, or `axis_name` not a name; in
        `update`: `state` is not an `ApplyIfFiniteState`, or the inner state changes its structure or shapes.
      ValueError: `max_consecutive_errors` is out of range, or `on_limit` not allowed; in `update`: there is no axis
        `axis_name`, or the updates have other shapes than the parameters given with them.
    """
    inner = _checks.transformation("apply_if_finite: inner", inner)
    limit = _checks.integer(
        "apply_if_finite: max_consecutive_errors",
        max_consecutive_errors,
        0,
        "pass the number of steps in a row that may be skipped; 2**31 - 1 never gives up",
    )
    _checks.one_of(
        "apply_if_finite: on_limit",
        on_limit,
        ("accept", "reject"),
        "pass 'accept' or 'reject' for the steps after max_consecutive_errors in a row",
    )
    axes = Axes("apply_if_finite: axis_name", axis_name)

    def init(params: Tree) -> optax.ApplyIfFiniteState:
        state = optax.ApplyIfFiniteState(
            notfinite_count=jnp.zeros([], jnp.int32),
            last_finite=jnp.array(True),
            total_notfinite=jnp.zeros([], jnp.int32),
            inner_state=inner.init(params),
        )
        return declare(state, Guard(limit, on_limit == "accept"))

    @contextmanager
    def decide(
        updates: Tree, state: optax.ApplyIfFiniteState, params: Tree | None, _: dict[str, Any]
    ) -> Iterator[tuple[jax.Array, optax.ApplyIfFiniteState]]:
        state = _checks.state("apply_if_finite", state, optax.ApplyIfFiniteState)
        _checks.gradients("apply_if_finite", updates, gradient_tree(params))
        together = axes.here()
        finite = all_finite(updates, together)
        count = jnp.where(finite, 0, optax.safe_increment(state.notfinite_count))
        after = state._replace(
            notfinite_count=count,
            last_finite=finite,
            total_notfinite=jnp.where(finite, state.total_notfinite, optax.safe_increment(state.total_notfinite)),
        )
        with caching_answer(inexact_leaves(updates), together, Answer(finite)):
            yield finite | (count > as_int32(limit, 0)) if on_limit == "accept" else finite, after

    return guarded("apply_if_finite", inner, init, decide)
