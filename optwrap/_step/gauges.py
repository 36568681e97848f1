"""The wrappers' own counters and limits after a call of `update`."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optwrap._reading.counters import ABSENT, INTEGER_GAUGES
from optwrap._step.grad_summary import on_any_device
from optwrap._step.wrappers import Wrapper, depth_first
from optwrap._wrappers.skip_if import SkipIfState
from optwrap._wrappers.skip_spikes import SkipSpikesState


class Gauges(NamedTuple):
    """The gauges that are read from the wrappers' states."""

    integers: list[jax.Array]
    """9 of int32[], in the order of INTEGER_GAUGES; ABSENT where no wrapper has that gauge."""
    gradient_norm_limit: jax.Array
    """float32[]: a step with this norm or a larger one is skipped; ABSENT if there is no such limit."""


def gauges(wrappers: Sequence[Wrapper]) -> Gauges:
    """The gauges of an optimizer with these outermost wrappers.

    If there are several wrappers of a kind, one is reported:

    * MultiSteps and lookahead: the outermost.
    * apply_if_finite: the one nearest to its limit, even if it was not called in this step; if no limit is known, the
      one with the largest count.
    * skip_spikes: the outermost.
    * the norm limit: that of the outermost MultiSteps, skip_if or skip_spikes. A limit inside a window is not reported,
      because it does not apply to the incoming gradients.
    """
    every = tuple(depth_first(wrappers))
    values: dict[str, jax.Array | None] = {}
    norm_limit: jax.Array | None = None
    for wrapper in reversed(every):  # the outermost comes last and overwrites the others
        match wrapper.new:
            case optax.MultiStepsState() as window:
                values |= {
                    "mini_step": window.mini_step,
                    "every_k": _limit(wrapper),
                    "gradient_step": window.gradient_step,
                }
                norm_limit = _norm_limit(wrapper)
            case SkipIfState():
                own = _norm_limit(wrapper)
                norm_limit = norm_limit if own is None else own
            case SkipSpikesState() as spikes:
                memory = spikes.memory
                values |= {"guard_rebases": memory.rebases, "guard_would_skip_steps": memory.would_skip}
                none = jnp.array(ABSENT, jnp.float32) if norm_limit is None else norm_limit
                norm_limit = jnp.where(jnp.isfinite(memory.limit), memory.limit, none)
            case optax.LookaheadState() as lookahead:
                values |= {"steps_since_sync": lookahead.steps_since_sync, "sync_period": _limit(wrapper)}
    guards = [wrapper for wrapper in every if isinstance(wrapper.new, optax.ApplyIfFiniteState)]
    if guards:
        values["guard_not_finite_count"], values["guard_not_finite_limit"] = _nearest(guards)

    def integer(value: jax.Array | None) -> jax.Array:
        return jnp.array(ABSENT, jnp.int32) if value is None else on_any_device(jnp.asarray(value).astype(jnp.int32))

    return Gauges(
        integers=[integer(values.get(name)) for name in INTEGER_GAUGES],
        gradient_norm_limit=jnp.array(ABSENT, jnp.float32) if norm_limit is None else on_any_device(norm_limit),
    )


def _limit(wrapper: Wrapper) -> jax.Array | None:
    return None if wrapper.limits is None else wrapper.limits.limit


def _norm_limit(wrapper: Wrapper) -> jax.Array | None:
    squared = None if wrapper.limits is None else wrapper.limits.squared_norm
    return None if squared is None else jnp.sqrt(squared)


def _nearest(guards: Sequence[Wrapper]) -> tuple[jax.Array, jax.Array | None]:
    """Count and limit of the guard that has the fewest errors left before it gives up; the outermost of several."""
    limited = [(guard.new.notfinite_count, limit) for guard in guards if (limit := _limit(guard)) is not None]
    if not limited:
        counts = [guard.new.notfinite_count for guard in guards]
        return jnp.max(jnp.stack(counts)), None
    count, limit = limited[0]
    for other_count, other_limit in limited[1:]:
        nearer = other_limit - other_count < limit - count
        count, limit = jnp.where(nearer, other_count, count), jnp.where(nearer, other_limit, limit)
    return count, limit
