"""The rule of `skip_spikes`: what becomes of a step, decided from the gradient norms so far.

It works on the logarithm `y` of the norm:

* *level*: exponential mean of y with rate 0.03, over the steps taken.
* *spread*: root of the exponential mean, with rate 0.01, of the squared difference between one step taken and the
  next, divided by 2. For independent noise that is its standard deviation. A level that rises or falls slowly does not
  change it. A difference counts as at most the distance from level to limit.
* *limit*: `level + max(spreads * max(spread, 0.02), ln(min_ratio))`. A step at or above the limit is a spike.
* *doubt*: each spike adds 1, each step taken takes 1/4 away, and it is never below 0. At `rebase_after` the norms are
  at a new level: the mean of the spikes becomes the level, and the step is taken.

The first 10 norms are taken as they are. Up to the 64th the limit is at least 20 times the level. Early on both means
are plain means. A spike, a norm of 0 and a step that does not count change neither level nor spread.
"""

import math
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from optwrap._core import checks as _checks

TAKEN: Final = 0
LARGE: Final = 1
NOT_FINITE: Final = 2

_BLIND: Final = 10
"""Norms that are taken as they are: their mean is the first level."""
_EARLY: Final = 64
"""Norms until the limit may be less than `_EARLY_RATIO` times the level."""
_EARLY_RATIO: Final = 20.0
_LEVEL_RATE: Final = 0.03
_SPREAD_RATE: Final = 0.01
_LEAST_SPREAD: Final = 0.02
"""For norms that hardly differ, as in full-batch training."""
_DOUBT: Final = 4
"""The unit of doubt: steps taken that outweigh one spike."""

_STATISTICS: Final = ("level", "spread", "previous", "pending", "limit")
_COUNTS: Final = (
    "seen",
    "doubt",
    "decision",
    "steps",
    "skipped_large",
    "skipped_not_finite",
    "rebases",
    "would_skip",
)


class Settings(NamedTuple):
    """The rule's settings. All may be traced."""

    spreads: ArrayLike = 7.5
    """float[]: the limit is this many spreads above the level."""
    min_ratio: ArrayLike = 3.0
    """float[]: a norm below this many times the level is never a spike."""
    rebase_after: ArrayLike = 32
    """int[]: spikes, about in a row, after which their mean is the new level."""
    max_norm: ArrayLike = math.inf
    """float[]: a norm of this or more is always large, and never enters a level."""


class Memory(NamedTuple):
    """What the rule knows of the steps so far. Counts are int32[] and saturate at 2**31 - 1, all else is float32[]."""

    level: jax.Array
    """Mean logarithm of the norm."""
    spread: jax.Array
    """Typical deviation from it."""
    previous: jax.Array
    """Logarithm of the norm of the last step that was taken."""
    pending: jax.Array
    """Mean logarithm of the norms of the spikes that make up the doubt."""
    limit: jax.Array
    """The norm at which the last step was large; infinite if there was no limit."""
    seen: jax.Array
    """Norms that level and spread come from."""
    doubt: jax.Array
    """Four times the doubt."""
    decision: jax.Array
    """About the last step: TAKEN, LARGE or NOT_FINITE."""
    steps: jax.Array
    """Steps judged."""
    skipped_large: jax.Array
    """Steps skipped for their norm."""
    skipped_not_finite: jax.Array
    """Steps skipped because their norm was not finite."""
    rebases: jax.Array
    """Times that the mean of the spikes became the level."""
    would_skip: jax.Array
    """Steps taken in shadow mode that would have been skipped for their norm."""


def checked(where: str, settings: Settings) -> Settings:
    """The settings, checked; `where` precedes an argument's name in messages.

    Raises:
      TypeError: one is not a real scalar, or `rebase_after` not an integer.
      ValueError: one is out of range.
    """
    remedy = "pass the limit in spreads above the level, such as 7.5"
    spreads = _checks.real(f"{where}spreads", settings.spreads, math.inf, remedy)
    remedy = "pass the ratio to the level below which no norm is a spike, such as 3"
    min_ratio = _checks.real(f"{where}min_ratio", settings.min_ratio, math.inf, remedy)
    if _checks.is_concrete(min_ratio) and np.less(min_ratio, 1):
        raise ValueError(f"{where}min_ratio must be a number from 1, got {min_ratio}: {remedy}")
    remedy = "pass the number of large steps until the level is set anew, such as 32"
    rebase_after = _checks.integer(f"{where}rebase_after", settings.rebase_after, 1, remedy)
    remedy = "pass the norm from which every step is skipped, or leave it out for no such limit"
    max_norm = _checks.real(f"{where}max_norm", settings.max_norm, math.inf, remedy)
    return Settings(spreads, min_ratio, rebase_after, max_norm)


def no_memory() -> Memory:
    """Before the first step."""
    zero = {name: jnp.zeros([], jnp.float32) for name in _STATISTICS}
    count = {name: jnp.zeros([], jnp.int32) for name in _COUNTS}
    return Memory(**{**zero, "limit": jnp.array(jnp.inf, jnp.float32)}, **count)


def judge(
    before: Memory,
    log_norm: jax.Array,
    finite: jax.Array,
    settings: Settings,
    *,
    counts: jax.Array | bool = True,
    shadow: bool = False,
) -> Memory:
    """The memory after one more step. Its `decision` says what becomes of the step.

    If a statistic is not finite, as after a damaged checkpoint, all of them begin anew.

    Args:
      before: the memory before the step.
      log_norm: float32[], the logarithm of its gradients' norm: -inf for a norm of 0. Ignored if not `finite`.
      finite: bool[], whether the norm is finite.
      settings: the rule's settings.
      counts: bool[], whether the step counts: if not, it is taken if it is finite, and nothing is learned from it.
      shadow: whether to take the steps that are large, and only count them.
    """
    before = _healed(before)
    seen, doubt, spread = before.seen, before.doubt, before.spread
    informative = finite & (log_norm > -jnp.inf) & counts
    y = jnp.where(informative, log_norm, 0.0).astype(jnp.float32)

    margin = jnp.maximum(_float(settings.spreads) * jnp.maximum(spread, _LEAST_SPREAD), _log_ratio(settings.min_ratio))
    margin = jnp.where(seen < _EARLY, jnp.maximum(margin, math.log(_EARLY_RATIO)), margin)
    max_norm = _float(settings.max_norm)
    log_limit = jnp.where(seen < _BLIND, jnp.inf, before.level + margin)

    beyond = finite & ~(log_norm < jnp.log(max_norm)) & counts
    spike = informative & ~beyond & (y >= log_limit)
    taken = informative & ~beyond & ~spike

    # The unit is a quarter, so that it is an integer.
    doubt_after = jnp.where(spike, doubt + _DOUBT, jnp.where(taken, jnp.maximum(doubt - 1, 0), doubt))
    weight = _DOUBT / jnp.maximum(doubt_after, _DOUBT).astype(jnp.float32)
    pending = jnp.where(doubt == 0, y, before.pending + weight * (y - before.pending))
    pending = jnp.where(spike, pending, before.pending)
    rebase = spike & (doubt_after >= _DOUBT * _rebase_after(settings.rebase_after))

    number = jnp.maximum(seen, 1).astype(jnp.float32)
    level = before.level + jnp.maximum(_LEVEL_RATE, 1 / (number + 1)) * (y - before.level)
    level = jnp.where(seen == 0, y, level)
    difference = jnp.minimum(jnp.abs(y - before.previous), margin)
    square = jnp.square(spread) + jnp.maximum(_SPREAD_RATE, 1 / number) * (
        jnp.square(difference) / 2 - jnp.square(spread)
    )
    wider = jnp.where(seen == 0, 0.0, jnp.sqrt(jnp.maximum(square, 0.0)))

    def kept(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(rebase, pending, jnp.where(taken, new, old))

    large = (beyond | spike) & ~rebase
    skipped = large & (not shadow)
    return Memory(
        level=kept(level, before.level),
        spread=jnp.where(taken, wider, spread),
        previous=kept(y, before.previous),
        pending=pending,
        limit=jnp.minimum(jnp.exp(log_limit), max_norm),
        seen=_add(seen, taken),
        doubt=jnp.where(rebase, 0, doubt_after),
        decision=jnp.where(finite, jnp.where(skipped, LARGE, TAKEN), NOT_FINITE).astype(jnp.int32),
        steps=_add(before.steps, True),
        skipped_large=_add(before.skipped_large, skipped),
        skipped_not_finite=_add(before.skipped_not_finite, ~finite),
        rebases=_add(before.rebases, rebase),
        would_skip=_add(before.would_skip, large & shadow),
    )


def replay(norms: ArrayLike, settings: Settings) -> Memory:
    """The memory after each of these norms: arrays with the same axes.

    Args:
      norms: float[..., n], global L2 norms in the order of their steps; NaN or infinite where a step was not finite.
      settings: the rule's settings.
    """
    given = jnp.asarray(norms, jnp.float32)
    after: Memory = jax.tree.map(
        lambda values: values.reshape(given.shape), _replay(given.reshape(-1, given.shape[-1]), settings)
    )
    return after


@jax.jit
def _replay(rows: jax.Array, settings: Settings) -> Memory:
    def step(memory: Memory, norm: jax.Array) -> tuple[Memory, Memory]:
        finite = jnp.isfinite(norm)
        memory = judge(memory, jnp.log(jnp.where(finite, norm, 1.0)), finite, settings)
        return memory, memory

    after: Memory = jax.vmap(lambda row: lax.scan(step, no_memory(), row)[1])(rows)
    return after


def pack(memory: Memory) -> tuple[jax.Array, jax.Array]:
    """The statistics, float32[5], and the counts, int32[8]: two arrays cost less in a step than thirteen."""
    return _vector(memory, _STATISTICS), _vector(memory, _COUNTS)


def unpack(statistics: jax.Array, counts: jax.Array) -> Memory:
    """The memory in these arrays, which may have leading axes."""
    floats = {name: statistics[..., i] for i, name in enumerate(_STATISTICS)}
    return Memory(**floats, **{name: counts[..., i] for i, name in enumerate(_COUNTS)})


def _healed(memory: Memory) -> Memory:
    """The memory without statistics if one of them is not finite, and without negative counts."""
    statistics = (memory.level, memory.spread, memory.previous, memory.pending)
    healthy = jnp.all(jnp.isfinite(jnp.stack(statistics)))
    level, spread, previous, pending = (jnp.where(healthy, value, 0.0) for value in statistics)
    seen, doubt = (jnp.where(healthy, jnp.maximum(count, 0), 0) for count in (memory.seen, memory.doubt))
    return memory._replace(
        level=level, spread=jnp.maximum(spread, 0.0), previous=previous, pending=pending, seen=seen, doubt=doubt
    )


def _vector(memory: Memory, names: tuple[str, ...]) -> jax.Array:
    # Not a concatenation, for which XLA:CPU would compile one kernel for each scalar.
    index = lax.iota(jnp.int32, len(names))
    first = getattr(memory, names[0])
    vector: jax.Array = jnp.broadcast_to(first, (len(names),))
    for i, name in enumerate(names[1:], 1):
        vector = jnp.where(index == i, getattr(memory, name), vector)
    return vector


def _float(value: ArrayLike) -> jax.Array:
    return jnp.asarray(value).astype(jnp.float32)


def _log_ratio(min_ratio: ArrayLike) -> jax.Array:
    return jnp.log(jnp.maximum(_float(min_ratio), 1.0))


def _rebase_after(value: ArrayLike) -> jax.Array:
    most = _checks.INT32_MAX // (2 * _DOUBT)
    return jnp.clip(jnp.asarray(np.minimum(value, most) if isinstance(value, int) else value), 1, most).astype(
        jnp.int32
    )


def _add(count: jax.Array, event: jax.Array | bool) -> jax.Array:
    """`count` plus one if there was an event; saturated."""
    # One selection less than `jnp.where(event, optax.safe_increment(count), count)`.
    return jnp.where(event & (count < _checks.INT32_MAX), count + 1, count)
