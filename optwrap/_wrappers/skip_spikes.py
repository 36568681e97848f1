"""`skip_spikes`: skips steps whose gradient norm jumps out of its own recent range."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optwrap._core import checks as _checks
from optwrap._core.collectives import Axes, AxisName
from optwrap._core.finite import inexact_leaves, squared_norms
from optwrap._core.norm_cache import Answer, caching_answer, caching_norms
from optwrap._core.trees import Tree, gradient_tree
from optwrap._wrappers import spike_rule as _rule
from optwrap._wrappers.guarded import guarded


class SkipSpikesState(NamedTuple):
    """State of `skip_spikes`. The attributes below name the numbers in the two arrays."""

    statistics: jax.Array
    """float32[5]: level, spread, logarithm of the last norm taken, mean logarithm of the recent spikes, and the limit
    of the last step."""
    counts: jax.Array
    """int32[8]: norms seen, four times the doubt, the last decision (0 taken, 1 skipped as large, 2 skipped as
    non-finite), steps, steps skipped as large, steps skipped as non-finite, rebases, steps that shadow mode would have
    skipped. They saturate at 2**31 - 1."""
    inner_state: Any
    """The state of the wrapped transformation."""

    @property
    def memory(self) -> _rule.Memory:
        """All these numbers by name."""
        return _rule.unpack(self.statistics, self.counts)

    @property
    def limit(self) -> jax.Array:
        """float32[]: the norm from which the last step would have been large; infinite if there was no limit."""
        return self.memory.limit

    @property
    def last_skipped(self) -> jax.Array:
        """bool[]: whether the last step was skipped."""
        return self.memory.decision != _rule.TAKEN

    @property
    def total_large(self) -> jax.Array:
        """int32[]: steps skipped because their norm was large."""
        return self.memory.skipped_large

    @property
    def total_notfinite(self) -> jax.Array:
        """int32[]: steps skipped because their norm was not finite."""
        return self.memory.skipped_not_finite

    @property
    def rebases(self) -> jax.Array:
        """int32[]: times that the guard made the mean of the norms it had skipped its new level."""
        return self.memory.rebases

    @property
    def would_skip(self) -> jax.Array:
        """int32[]: steps that were taken because of `shadow=True`, and would have been skipped for their norm."""
        return self.memory.would_skip


def skip_spikes(
    inner: optax.GradientTransformation,
    *,
    spreads: ArrayLike = 7.5,
    min_ratio: ArrayLike = 3.0,
    rebase_after: ArrayLike = 32,
    max_norm: ArrayLike | None = None,
    shadow: bool = False,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Skip the steps whose gradients are not finite, or whose global L2 norm jumps out of its own recent range.

    The guard follows the mean (*level*) and the *spread* of the logarithm of the norm, and skips a step at or
    above the *limit*: `spreads` spreads above the level, but at least `min_ratio` times the level. A skipped step
    returns zero updates and leaves the inner state unchanged, and its norm changes neither level nor spread. After
    `rebase_after` large steps, about in a row, the norms are at a new level: the guard takes their mean for it, takes
    the step, and counts a *rebase*. (Exactly: a large step adds 1 to a doubt, a step taken takes 1/4 away.)

    A norm that is not finite is always skipped: that of gradients with NaN or Inf, and that of finite gradients whose
    squares overflow (a norm of 1.8e19 or more in float32). The first 10 other steps are taken, whatever their norm. Up
    to the 64th the limit is at least 20 times the level. Steps whose norm is 0, and mini-steps of weight 0, are taken
    and change nothing.

        >>> tx = skip_spikes(optax.sgd(1.0))
        >>> state = tx.init(jnp.zeros(2))
        >>> for _ in range(64):
        ...     updates, state = tx.update(jnp.array([0.6, 0.8]), state)
        >>> updates, state = tx.update(jnp.array([6.0, 8.0]), state)
        >>> print(updates, state.limit, state.total_large)
        [0. 0.] 3.0 1

    The norms are those of the gradients that this transformation gets: around `MultiSteps` those of one mini-step,
    inside it those of the window's mean or sum. optax has no counterpart. docs/guides/guards.md has
    the rule, and compares it with others.

    Args:
      inner: the transformation to guard.
      spreads: the limit in spreads above the level; a number from 0. May be traced.
      min_ratio: a norm below this many times the level is never large; a number from 1. May be traced.
      rebase_after: large steps until the level is set anew; an integer from 1, 2**31 - 1 for never. May be traced.
      max_norm: a norm of this or more is always large, from the first step on, and never leads to a rebase; a number
        from 0, None for no such limit. May be traced.
      shadow: take every finite step, and only count those that would have been skipped. Steps that are not finite are
        skipped all the same.
      axis_name: axes of the `shard_map` or `pmap` in which `update` is called, along which the gradients differ. The
        devices along them decide together, from the norm over all of them.

    Returns:
      A transformation with state `SkipSpikesState(statistics: float32[5], counts: int32[8], inner_state)`. Extra args
      are passed on to the inner transformation. Statistics that are not finite, as after a damaged checkpoint, begin
      anew.

    Raises:
      TypeError: `inner` is not a transformation, a number is not a real scalar, `shadow` not a bool, or `axis_name` not
        a name; in `update`: `state` is not a `SkipSpikesState`, or the inner state changes its structure or shapes.
      ValueError: a number is out of range; in `update`: there is no axis `axis_name`, or the updates have other shapes
        than the parameters given with them.
    """
    inner = _checks.transformation("skip_spikes: inner", inner)
    settings = _rule.checked(
        "skip_spikes: ", _rule.Settings(spreads, min_ratio, rebase_after, math.inf if max_norm is None else max_norm)
    )
    shadow = _checks.flag("skip_spikes: shadow", shadow, "pass True to count what would be skipped and skip nothing")
    axes = Axes("skip_spikes: axis_name", axis_name)

    def init(params: Tree) -> SkipSpikesState:
        return SkipSpikesState(*_rule.pack(_rule.no_memory()), inner.init(params))

    @contextmanager
    def decide(
        updates: Tree, state: SkipSpikesState, params: Tree | None, extra_args: dict[str, Any]
    ) -> Iterator[tuple[jax.Array, SkipSpikesState]]:
        state = _checks.state("skip_spikes", state, SkipSpikesState)
        _checks.gradients("skip_spikes", updates, gradient_tree(params))
        together = axes.here()
        leaves = inexact_leaves(updates)
        norms = squared_norms(leaves)
        square = together.any_order_total(norms) if norms else jnp.zeros([], jnp.float32)
        # One pass: what is not finite, and finite gradients whose squares overflow, make this infinite or NaN.
        finite = jnp.isfinite(square)
        # The logarithm must not see NaN: `jax_debug_nans` would raise.
        log_norm = (0.5 * jnp.log(jnp.where(finite, square, 1.0))).astype(jnp.float32)
        weight = extra_args.get("weight")
        counts = True if weight is None else jnp.asarray(weight) > 0
        memory = _rule.judge(state.memory, log_norm, finite, settings, counts=counts, shadow=shadow)
        statistics, numbers = _rule.pack(memory)
        with caching_norms(leaves, norms), caching_answer(leaves, together, Answer(finite)):
            yield memory.decision == _rule.TAKEN, SkipSpikesState(statistics, numbers, state.inner_state)

    return guarded("skip_spikes", inner, init, decide)
