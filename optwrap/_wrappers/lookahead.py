"""`lookahead`: slow weights that follow fast weights."""

from typing import Any, Final

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optwrap._core import checks as _checks
from optwrap._core.apply_gradients import Fused, apply_gradients
from optwrap._core.collectives import vary, varying
from optwrap._core.declarations import Sync, declare
from optwrap._core.trees import Tree, as_int32, cast, is_placeholder, select

_REMEDY: Final = "keep the pair as init_synced made it, and take gradients with respect to its `fast`"


def lookahead(
    fast_optimizer: optax.GradientTransformation,
    sync_period: ArrayLike,
    slow_step_size: ArrayLike,
    reset_state: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Run a fast optimizer. Every `sync_period` steps slow weights move towards the fast ones, which restart from them.

    Parameters and updates are pairs, `LookaheadParams(fast, slow)`. Gradients have the tree of the fast parameters.
    Pass the updates to `optax.apply_updates` unchanged: otherwise fast and slow weights differ after a synchronisation.

    Drop-in for `optax.lookahead` (optax 0.2.8), with the same state. It also takes extra args. A step without a
    synchronisation never changes the slow parameters, even if gradients are non-finite.

    Args:
      fast_optimizer: the optimizer of the fast parameters.
      sync_period: fast steps per synchronisation; an integer from 1. May be traced; a traced value below 1 counts as 1.
      slow_step_size: how far the slow parameters move towards the fast ones, 0 (not at all) to 1 (all the way). May be
        traced.
      reset_state: whether a synchronisation also resets the fast optimizer's state to that of `init`.

    Returns:
      A transformation with state `LookaheadState(fast_state, steps_since_sync: int32[])`. `init` takes the pair
      or the fast parameters alone; `update` needs the pair.

    Raises:
      TypeError: an argument has the wrong type; in `update`: `params` is not a pair, or `state` not a
        `LookaheadState`.
      ValueError: `sync_period` is below 1, or `slow_step_size` outside 0 to 1; in `update`: the gradients, or the slow
        parameters, have other leaves or shapes than the fast parameters.

    References:
      Zhang et al., Lookahead Optimizer: k steps forward, 1 step back, 2019, https://arxiv.org/abs/1907.08610
    """
    fast_optimizer = _checks.transformation("lookahead: fast_optimizer", fast_optimizer)
    period = _checks.integer(
        "lookahead: sync_period", sync_period, 1, "pass the number of fast steps per synchronisation"
    )
    _checks.real(
        "lookahead: slow_step_size",
        slow_step_size,
        1.0,
        "pass the fraction of the distance that slow weights move, 0 to 1",
    )
    reset_state = _checks.flag(
        "lookahead: reset_state", reset_state, "pass whether a synchronisation resets the fast optimizer's state"
    )

    def init(params: Tree) -> optax.LookaheadState:
        # Fast parameters alone are allowed, because a wrapper around this one may only have a tree like the gradients.
        fast = params if is_placeholder(params) else getattr(params, "fast", params)
        state = optax.LookaheadState(
            fast_state=fast_optimizer.init(fast),
            steps_since_sync=jnp.zeros([], jnp.int32),
        )
        return declare(state, Sync(period))

    def checked(state: Any, params: Any) -> Any:
        if params is None or not (hasattr(params, "fast") and hasattr(params, "slow")):
            raise TypeError(
                f"lookahead: params of update must be LookaheadParams, got {type(params).__name__}: keep the pair "
                "LookaheadParams.init_synced(params), pass it here and take gradients with respect to its `fast`"
            )
        _checks.state("lookahead", state, optax.LookaheadState)
        _checks.alike("lookahead: params.slow", params.slow, params.fast, "params.fast", _REMEDY)
        return params

    def synchronises(state: optax.LookaheadState) -> jax.Array:
        sync: jax.Array = state.steps_since_sync >= as_int32(period, 1) - 1
        return sync

    def after(state: optax.LookaheadState, sync: jax.Array, fast_state: Tree) -> optax.LookaheadState:
        return optax.LookaheadState(
            fast_state=fast_state,
            steps_since_sync=jnp.where(sync, 0, optax.safe_increment(state.steps_since_sync)),
        )

    def update(
        updates: Tree, state: optax.LookaheadState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[optax.LookaheadParams, optax.LookaheadState]:
        pair = checked(state, params)
        updates, fast_state = fast_optimizer.update(updates, state.fast_state, pair.fast, **extra_args)
        # Checked here, not on input: an optimizer may take per-sample gradients and return updates of the batch.
        _checks.alike("lookahead: updates", updates, pair.fast, "params.fast", _REMEDY)
        sync = synchronises(state)
        if reset_state:
            fast_state = select(sync, fast_optimizer.init(pair.fast), fast_state)
        return _pair(updates, pair, sync, slow_step_size), after(state, sync, fast_state)

    def apply(
        grads: Tree, state: optax.LookaheadState, params: optax.LookaheadParams, **extra_args: Any
    ) -> tuple[optax.LookaheadParams, optax.LookaheadState]:
        pair = checked(state, params)
        fast, fast_state = apply_gradients(fast_optimizer, grads, state.fast_state, pair.fast, **extra_args)
        sync = synchronises(state)

        def alike(either: optax.LookaheadParams) -> optax.LookaheadParams:
            # Both branches must return the same types: the same varying axes, and no weak types.
            def typed(leaf: jax.Array, fast: jax.Array, slow: jax.Array) -> jax.Array:
                axes = frozenset().union(*(varying(jax.typeof(jnp.asarray(x))) for x in (fast, slow, sync)))
                return vary(cast(leaf, jnp.result_type(leaf)), axes)

            return optax.LookaheadParams(*(jax.tree.map(typed, tree, fast, pair.slow) for tree in either))

        def meet() -> tuple[optax.LookaheadParams, Tree]:
            slow = jax.tree.map(lambda fast, slow: _towards(fast, slow, slow_step_size), fast, pair.slow)
            again = select(jnp.array(True), fast_optimizer.init(pair.fast), fast_state) if reset_state else fast_state
            return alike(optax.LookaheadParams(fast=slow, slow=slow)), again

        def run_ahead() -> tuple[optax.LookaheadParams, Tree]:
            return alike(optax.LookaheadParams(fast=fast, slow=pair.slow)), fast_state

        met, fast_state = jax.lax.cond(sync, meet, run_ahead)
        return met, after(state, sync, fast_state)

    return Fused(init, update, apply)


def _towards(fast: jax.Array, slow: jax.Array, slow_step_size: ArrayLike) -> jax.Array:
    """The slow parameters after a move towards the fast ones."""
    with jax.numpy_dtype_promotion("standard"):
        moved = slow + slow_step_size * (fast - slow)
    return cast(moved, jnp.result_type(slow))


def _pair(updates: Tree, params: Any, sync: jax.Array, slow_step_size: ArrayLike) -> optax.LookaheadParams:
    """The updates of both parameters.

    At a synchronisation both become slow + slow_step_size * ahead, where ahead = fast + updates - slow is how far the
    fast parameters are ahead after their own step.
    """
    with jax.numpy_dtype_promotion("standard"):
        ahead = jax.tree.map(lambda fast, update, slow: fast + update - slow, params.fast, updates, params.slow)
        to_slow = jax.tree.map(lambda distance: slow_step_size * distance, ahead)
        back = 1 - slow_step_size
        to_fast = jax.tree.map(lambda update, distance: update - back * distance, updates, ahead)
    return optax.LookaheadParams(
        fast=jax.tree.map(
            lambda there, update: jnp.where(sync, there, cast(update, jnp.result_type(there))), to_fast, updates
        ),
        slow=jax.tree.map(lambda there: jnp.where(sync, there, jnp.zeros_like(there)), to_slow),
    )
