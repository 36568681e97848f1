"""The packed counters: before the first step, and after each step."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optwrap._reading.counters import ABSENT, INTEGER_GAUGES, OUTCOMES, Counters, advance, count_if, pack, split
from optwrap._reading.unpack import Layout
from optwrap._step.gauges import gauges
from optwrap._step.outcomes import Call, count_windows, judge
from optwrap._step.replicas import first_and_count
from optwrap._step.wrappers import Wrapper


class Leaves(NamedTuple):
    """The parameters of a step's gradients, and the flags of its replicas."""

    layout: Layout
    """All parameters' names."""
    indices: list[int] | None
    """For each leaf of the gradients the index of its parameter; None if every parameter has one, in order."""
    flags: jax.Array | None = None
    """bool[R]: the replicas whose own gradients were non-finite; None if the step was given no flags."""


def first_counters(layout: Layout, windows: int) -> jax.Array:
    """The packed counters before the first step.

    Args:
      layout: the parameters' names.
      windows: number of accumulation windows in the wrapped state.
    """

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.uint32)

    size = len(layout.parameters)
    return pack(
        Counters(
            fingerprint=jnp.array(layout.fingerprint, jnp.uint32),
            outcomes=zeros(len(OUTCOMES)),
            not_finite_steps=zeros(),
            not_finite_streak=zeros(),
            not_finite_streak_peak=zeros(),
            outcome=jnp.array(-1, jnp.int32),
            finite=jnp.array(True),
            gradient_norm=jnp.zeros([], jnp.float32),
            gradient_norm_limit=jnp.array(ABSENT, jnp.float32),
            gauges=jnp.full([len(INTEGER_GAUGES)], ABSENT, jnp.int32),
            replica=jnp.array(ABSENT, jnp.int32),
            replicas_not_finite=jnp.array(ABSENT, jnp.int32),
            window_not_finite=jnp.zeros([windows], jnp.bool_),
            parameters=zeros(size),
            not_finite_values=zeros(size),
        )
    )


def counted(words: jax.Array, call: Call, wrappers: Sequence[Wrapper], leaves: Leaves) -> jax.Array:
    """The packed counters after a step.

    Args:
      words: the packed counters before it.
      call: the step.
      wrappers: the outermost wrappers in the optimizer.
      leaves: the parameters that the gradients belong to.
    """
    windows = count_windows(call.before)
    before, summary = split(words, windows), call.summary
    outcome, window_not_finite = judge(wrappers, call, before.window_not_finite)
    not_finite = summary.not_finite
    if leaves.indices is not None:
        every = jnp.zeros(before.parameters.shape, not_finite.dtype)
        not_finite = every.at[jnp.array(leaves.indices, jnp.int32)].set(not_finite)
    streak = jnp.where(summary.finite, jnp.uint32(0), count_if(before.not_finite_streak, jnp.array(True)))
    levels = gauges(wrappers)
    replica, replicas_not_finite = first_and_count(leaves.flags)
    return advance(
        words,
        windows,
        events={
            "outcomes": [outcome == i for i in range(len(OUTCOMES))],
            "not_finite_steps": ~summary.finite,
            "parameters": not_finite > 0,
        },
        values={
            "fingerprint": jnp.array(leaves.layout.fingerprint, jnp.uint32),
            "not_finite_streak": streak,
            "not_finite_streak_peak": jnp.maximum(before.not_finite_streak_peak, streak),
            "outcome": outcome,
            "finite": summary.finite,
            "gradient_norm": summary.norm,
            "gradient_norm_limit": levels.gradient_norm_limit,
            "gauges": levels.integers,
            "replica": replica,
            "replicas_not_finite": replicas_not_finite,
            "window_not_finite": window_not_finite,
            "not_finite_values": not_finite,
        },
    )
