"""The packed counters: before the first step, and after each step."""

import functools
import operator
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optwrap._core.trees import gradient_tree
from optwrap._reading.counters import (
    ABSENT,
    GRADIENT_STEPS,
    INTEGER_GAUGES,
    LARGEST,
    OUTCOMES,
    Counters,
    Sizes,
    advance,
    count_if,
    pack,
    split,
)
from optwrap._reading.unpack import Layout
from optwrap._step.gauges import gauges
from optwrap._step.grad_summary import among, norm_of
from optwrap._step.outcomes import Call, count_windows, judge
from optwrap._step.replicas import first_and_count
from optwrap._step.scalars import hyperparameters, values
from optwrap._step.wrappers import Wrapper


class Leaves(NamedTuple):
    """The parameters of a step's gradients, the flags of its replicas, and its scalars."""

    layout: Layout
    """All parameters' names."""
    indices: list[int] | None
    """For each leaf of the gradients the index of its parameter; None if every parameter has one, in order."""
    flags: jax.Array | None = None
    """bool[R]: the replicas whose own gradients were non-finite; None if the step was given no flags."""
    scalars: Mapping[str, jax.Array] = MappingProxyType({})
    """The scalars given to `update`, each float32[]."""


def first_counters(layout: Layout, windows: int) -> jax.Array:
    """The packed counters before the first step.

    Args:
      layout: the names of the parameters and scalars.
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
            largest=jnp.full([LARGEST], ABSENT, jnp.int32),
            largest_shares=jnp.zeros([LARGEST], jnp.float32),
            update_norm=jnp.array(ABSENT, jnp.float32),
            window_not_finite=jnp.zeros([windows], jnp.bool_),
            scalars=jnp.zeros([len(layout.scalars)], jnp.float32),
            parameters=zeros(size),
            not_finite_values=zeros(size),
        )
    )


def sizes(state: Any) -> Sizes:
    """The sizes of the packed counters of an optimizer with this state."""
    return Sizes(count_windows(state), len(hyperparameters(state)))


def counted(
    words: jax.Array, call: Call, inner_state: Any, wrappers: Sequence[Wrapper], leaves: Leaves, *, update_norm: bool
) -> jax.Array:
    """The packed counters after a step.

    Args:
      words: the packed counters before it.
      call: the step.
      inner_state: the optimizer's state after it.
      wrappers: the outermost wrappers in the optimizer.
      leaves: the parameters that the gradients belong to.
      update_norm: whether `call.returned` are updates whose norm is to be reported.
    """
    lengths = sizes(call.before)
    before, summary = split(words, lengths), call.summary
    outcome, window_not_finite = judge(wrappers, call, before.window_not_finite)
    not_finite, largest = summary.not_finite, summary.largest
    if leaves.indices is not None:
        largest = among(largest, leaves.indices)
        every = jnp.zeros(before.parameters.shape, not_finite.dtype)
        not_finite = every.at[jnp.array(leaves.indices, jnp.int32)].set(not_finite)
    streak = jnp.where(summary.finite, jnp.uint32(0), count_if(before.not_finite_streak, jnp.array(True)))
    levels = gauges(wrappers)
    replica, replicas_not_finite = first_and_count(leaves.flags)
    return advance(
        words,
        lengths,
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
            "largest": largest.indices,
            "largest_shares": largest.shares,
            "update_norm": _update_norm(call, outcome) if update_norm else jnp.array(ABSENT, jnp.float32),
            "scalars": values(hyperparameters(inner_state)),
            "window_not_finite": window_not_finite,
            "not_finite_values": not_finite,
        },
    )


def _update_norm(call: Call, outcome: jax.Array) -> jax.Array:
    """float32[]: the norm of the update that this step applied; ABSENT if it applied none."""
    norm = norm_of(gradient_tree(call.returned))
    applied = functools.reduce(operator.or_, [outcome == OUTCOMES.index(name) for name in GRADIENT_STEPS])
    # Beside a guard that skipped its parameters, others may have moved.
    return jnp.where(applied | (norm > 0), norm, ABSENT)
