"""`skip_if`: skips the steps that a function of the gradients chooses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optwrap._core import checks as _checks
from optwrap._core.collectives import Axes, AxisName
from optwrap._core.declarations import Limit, declare
from optwrap._core.trees import Tree, gradient_tree
from optwrap._wrappers.guarded import guarded
from optwrap._wrappers.skip_functions import ShouldSkipUpdateFunction, SkipFunction


class SkipIfState(NamedTuple):
    """State of `skip_if`. Counts saturate at 2**31 - 1."""

    gradient_step: jax.Array
    """int32[]: steps taken so far."""
    last_skipped: jax.Array
    """bool[]: whether the last step was skipped."""
    total_skipped: jax.Array
    """int32[]: steps skipped so far."""
    skip_state: Any
    """The state that the skip function returned for the last step."""
    inner_state: Any
    """The state of the wrapped transformation."""


def skip_if(
    inner: optax.GradientTransformation,
    should_skip_fn: ShouldSkipUpdateFunction,
    *,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Skip the steps that a skip function chooses.

    A skipped step returns zero updates and leaves the inner state unchanged. There is no limit on skips in a row.
    `skip_if` takes the skip functions of `MultiSteps`, for training without accumulation. optax has no counterpart.

        >>> spikes = functools.partial(optwrap.skip_large_updates, max_squared_norm=100.0)
        >>> tx = skip_if(optax.sgd(1.0), spikes)
        >>> state = tx.init(jnp.zeros(2))
        >>> updates, state = tx.update(jnp.array([6.0, 8.0]), state)
        >>> print(updates, state.total_skipped, state.skip_state["norm_squared"])
        [0. 0.] 1 100.0

    Args:
      inner: the transformation whose steps may be skipped.
      should_skip_fn: `skip_not_finite`, `functools.partial(skip_large_updates, max_squared_norm=...)` or your own: a
        `ShouldSkipUpdateFunction`. It is called once in `init`, with zeros, and once in every `update`, with the
        incoming updates, the steps taken so far and the parameters.
      axis_name: axes of the `shard_map` or `pmap` in which `update` is called, along which the gradients differ. The
        devices along them decide together: if one of them skips a step, all skip it.

    Returns:
      A transformation with state `SkipIfState(gradient_step: int32[], last_skipped: bool[], total_skipped: int32[],
      skip_state, inner_state)`. Extra args are passed on to the inner transformation.

    Raises:
      TypeError: `inner` is not a transformation, `should_skip_fn` not callable, or `axis_name` not a name; the skip
        function does not return a pair that begins with an array; in `update`: `state` is not a `SkipIfState`, or the
        inner state changes its structure or shapes.
      ValueError: `max_squared_norm` of `skip_large_updates` is negative or NaN; the skip function returns an array that
        is not bool[]; in `update`: there is no axis `axis_name`, or the updates have other shapes than the parameters
        given with them.
    """
    inner = _checks.transformation("skip_if: inner", inner)
    should_skip = SkipFunction("skip_if: should_skip_fn", should_skip_fn, together=axis_name is not None)
    axes = Axes("skip_if: axis_name", axis_name)

    def init(params: Tree) -> SkipIfState:
        state = SkipIfState(
            gradient_step=jnp.zeros([], jnp.int32),
            last_skipped=jnp.array(False),
            total_skipped=jnp.zeros([], jnp.int32),
            skip_state=should_skip.first_state(params),
            inner_state=inner.init(params),
        )
        return declare(state, Limit(should_skip.max_squared_norm))

    @contextmanager
    def decide(
        updates: Tree, state: SkipIfState, params: Tree | None, _: dict[str, Any]
    ) -> Iterator[tuple[jax.Array, SkipIfState]]:
        state = _checks.state("skip_if", state, SkipIfState)
        _checks.gradients("skip_if", updates, gradient_tree(params))
        skip, skip_state = should_skip(updates, state.gradient_step, params, axes.here())
        yield (
            ~skip,
            state._replace(
                gradient_step=jnp.where(skip, state.gradient_step, optax.safe_increment(state.gradient_step)),
                last_skipped=skip,
                total_skipped=jnp.where(skip, optax.safe_increment(state.total_skipped), state.total_skipped),
                skip_state=skip_state,
            ),
        )

    return guarded("skip_if", inner, init, decide)
