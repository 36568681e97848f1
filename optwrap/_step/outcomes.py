"""The outcome of one call of `update`, judged from the wrappers' states before and after it.

The outcome is found from the outermost wrapper inwards. Each wrapper either stops its input (skipped, accumulated) or
passes it on to the wrappers inside it, which are judged next. A wrapper that was not called in this step is not judged,
because its state is that of an earlier call. If there are several wrappers side by side (`optax.chain`,
`optax.multi_transform`), the call has the most severe of their outcomes. Damage that cannot be undone is most severe:

    accepted although not finite  >  skipped (not finite, large, other)  >  applied  >  accumulated

A transformation around or beside a wrapper leaves no trace in the wrapper's state. So the updates are read too, but
only if a value was non-finite, a step was skipped, or windows only accumulated.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optwrap._core.checks import INT32_MAX
from optwrap._core.trees import gradient_tree
from optwrap._reading.counters import OUTCOMES
from optwrap._step.grad_summary import Summary, anywhere, on_any_device
from optwrap._step.wrappers import WRAPPERS, Wrapper, depth_first, outermost
from optwrap._wrappers.skip_if import SkipIfState
from optwrap._wrappers.skip_spikes import SkipSpikesState
from optwrap._wrappers.spike_rule import LARGE, NOT_FINITE

_BY_SEVERITY: Final = (
    "accumulated",
    "applied",
    "skipped_other",
    "skipped_large",
    "skipped_not_finite",
    "accepted_not_finite",
)
# np.int32: a Python integer would be int64 where 64-bit types are enabled.
_ACCUMULATED, _APPLIED, _OTHER, _LARGE, _NOT_FINITE, _ACCEPTED = map(np.int32, range(len(_BY_SEVERITY)))


class Call(NamedTuple):
    """One call of an optimizer's `update`."""

    before: Any
    """The optimizer's state before it."""
    gradients: Any
    """The incoming gradients."""
    returned: Any
    """The returned updates, or the new parameters if `applied`."""
    summary: Summary
    """Finiteness and norm of the gradients."""
    applied: bool = False
    """Whether `returned` are new parameters (`optwrap.apply_gradients`). The old parameters are not kept, because XLA
    overwrites them in place, and would have to copy them in every step. So if the outcome depends on `returned` and the
    parameters were non-finite before the call, the call counts as `accepted_not_finite`."""


def judge(wrappers: Sequence[Wrapper], call: Call, windows: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """The outcome of one call.

    Args:
      wrappers: the optimizer's outermost wrappers.
      call: the call.
      windows: bool[W], for each accumulation window whether it held a non-finite value before the call.

    Returns:
      int32[], an index into OUTCOMES; and W of bool[], `windows` after the call.
    """
    context = _Context(call, windows)
    given = _Input(call.summary.finite, call.summary.not_finite == 0, alone=not call.applied)
    severity = on_any_device(_judge(wrappers, call.before, given, context))
    outcome_by_severity = jnp.array([OUTCOMES.index(outcome) for outcome in _BY_SEVERITY], jnp.int32)
    return outcome_by_severity[severity], [on_any_device(window) for window in context.windows_after]


def count_windows(state: Any) -> int:
    """The number of accumulation windows (`MultiStepsState`) in an optimizer's state, at any depth."""
    nodes = outermost(state, WRAPPERS)
    return sum(isinstance(node, optax.MultiStepsState) + count_windows(tuple(node)) for node in nodes)


class _Input(NamedTuple):
    """The input of a part of the optimizer."""

    finite: jax.Array
    """bool[]: whether all values are finite."""
    leaves: jax.Array | None
    """bool[P]: the same by leaf of the incoming gradients; None if the input is the content of a window."""
    alone: bool
    """Whether this part's updates are what the optimizer returned, unchanged."""


class _Context:
    """The data that every part of the optimizer shares, and the windows' flags."""

    def __init__(self, call: Call, windows: jax.Array) -> None:
        self.paths = tuple(_leaves_by_path(call.gradients))
        self.returned = call.returned
        self.moves = call.gradients if call.applied else call.returned
        """Zero where a parameter does not move."""
        self.windows_before = iter(windows)
        """The flags of the windows that are not judged yet, depth first."""
        self.windows_after: list[jax.Array] = []
        """The flags of the windows that are judged, in the same order."""


def _judge(wrappers: Sequence[Wrapper], state: Any, given: _Input, context: _Context) -> jax.Array:
    """The severity (int32[]) of the outcome of `given` in a part of the optimizer.

    Args:
      wrappers: the outermost wrappers in the part.
      state: the part's state before the call.
      given: the part's input.
      context: the call.
    """
    if not wrappers:
        return jnp.where(given.finite, _APPLIED, _ACCEPTED)
    # One wrapper that is the whole part, or wrappers with something around or beside them.
    whole = len(wrappers) == 1 and wrappers[0].old is state
    severities = [_judge_wrapper(one, given._replace(alone=given.alone and whole), context) for one in wrappers]
    severity = jnp.max(jnp.stack(severities))
    if whole:
        return severity
    return _accepted_if_let_through(_applied_if_moved(severity, wrappers, context), given, context)


def _applied_if_moved(severity: jax.Array, wrappers: Sequence[Wrapper], context: _Context) -> jax.Array:
    """`severity`, but "applied" if all windows only accumulated while parameters outside the windows moved.

    Frozen parameters have zero updates, so zero updates do not count as a move. (`apply_gradients` has no updates, so
    nonzero gradients count as a move, even those of a frozen parameter.) If the leaves of a window are not those of the
    gradients, as under `flatten`, it is assumed to hold all of them.
    """
    windows = [wrapper.old for wrapper in depth_first(wrappers) if isinstance(wrapper.old, optax.MultiStepsState)]
    held = {path for window in windows for path in _leaves_by_path(window.acc_grads)}
    moves = _leaves_by_path(gradient_tree(context.moves))
    outside = [moves[path] for path in context.paths if path not in held and path in moves]
    if not windows or not outside or not held.issubset(context.paths):
        return severity
    moved = _any_if(severity == _ACCUMULATED, lambda x: x != 0, outside)
    return jnp.where(moved, _APPLIED, severity)


def _accepted_if_let_through(severity: jax.Array, given: _Input, context: _Context) -> jax.Array:
    """`severity`, but "accepted" if a non-finite value got past the wrappers.

    The value may not have been in their input, or a transformation around them may also use the gradients. The updates
    are read only in a call with non-finite gradients or a skip, because an optimizer whose state is already NaN returns
    NaN in every call.
    """
    suspect = (severity < _ACCEPTED) & (~given.finite | (severity >= _OTHER))
    return jnp.where(_any_if(suspect, _not_finite, context.returned), _ACCEPTED, severity)


def _judge_wrapper(wrapper: Wrapper, given: _Input, context: _Context) -> jax.Array:
    """The severity (int32[]) of the outcome of `given` in this wrapper."""
    match wrapper.old:
        case optax.ApplyIfFiniteState():
            return _judge_guard(wrapper, given, context)
        case optax.MultiStepsState():
            return _judge_window(wrapper, given, context)
        case SkipIfState():
            return _judge_skip(wrapper, given, context)
        case SkipSpikesState():
            return _judge_spikes(wrapper, given, context)
    # lookahead passes its input on unchanged, and changes the updates.
    return _judge(wrapper.inside, wrapper.old.fast_state, given._replace(alone=False), context)


def _judge_guard(wrapper: Wrapper, given: _Input, context: _Context) -> jax.Array:
    old, new, limits = wrapper.old, wrapper.new, wrapper.limits
    # Use the guard's own flag, not `given`: its input may be only some of the leaves, or a mean that overflowed. The
    # flag belongs to this call only if the total rose, or is saturated.
    called = (new.total_notfinite != old.total_notfinite) | (new.total_notfinite == INT32_MAX)
    # optax.contrib.sam turns the flag into an integer.
    bad = ~new.last_finite.astype(jnp.bool_) & called
    leaves = None if given.leaves is None else given.leaves | ~bad
    inside = _judge(wrapper.inside, old.inner_state, given._replace(finite=~bad, leaves=leaves), context)
    if limits is not None and not limits.gives_up:
        accepted = jnp.array(False)
    elif limits is not None and limits.limit is not None:
        accepted = new.notfinite_count > limits.limit
    else:
        accepted = _inner_has_stepped(old.inner_state, new.inner_state, bad, given.alone, context.returned)
    return jnp.where(bad & ~accepted, _NOT_FINITE, inside)


def _judge_skip(wrapper: Wrapper, given: _Input, context: _Context) -> jax.Array:
    old, new = wrapper.old, wrapper.new
    skipped = new.last_skipped & ((new.total_skipped != old.total_skipped) | (new.total_skipped == INT32_MAX))
    called = skipped | (new.gradient_step != old.gradient_step) | (new.gradient_step == INT32_MAX)
    # Its input may be only some of the leaves, or other values than the gradients, so use the skip function's state.
    # But an infinite norm may also be an overflow.
    state = new.skip_state if isinstance(new.skip_state, Mapping) else {}
    finite = given.finite
    if "num_not_finite" in state:
        finite = jnp.where(called, state["num_not_finite"] == 0, finite)
    elif "norm_squared" in state:
        is_nan = called & jnp.isnan(state["norm_squared"])
        finite = ~is_nan & (finite | (called & jnp.isfinite(state["norm_squared"])))
    leaves = None if given.leaves is None else given.leaves | finite
    inside = _judge(wrapper.inside, old.inner_state, given._replace(finite=finite, leaves=leaves), context)
    return jnp.where(skipped, _skip_severity(finite, new.skip_state), inside)


def _judge_spikes(wrapper: Wrapper, given: _Input, context: _Context) -> jax.Array:
    old, new = wrapper.old.memory, wrapper.new.memory
    called = (new.steps != old.steps) | (new.steps == INT32_MAX)
    # Use its own decision: its input may be only some of the leaves, or the mean of a window.
    finite = jnp.where(called, new.decision != NOT_FINITE, given.finite)
    leaves = None if given.leaves is None else given.leaves | finite
    inside = _judge(wrapper.inside, wrapper.old.inner_state, given._replace(finite=finite, leaves=leaves), context)
    severity = jnp.where(called & (new.decision == LARGE), _LARGE, inside)
    # The norm of finite gradients overflows if they are large.
    overflow = given.finite if given.leaves is not None else jnp.array(False)
    return jnp.where(called & ~finite, jnp.where(overflow, _LARGE, _NOT_FINITE), severity)


def _judge_window(wrapper: Wrapper, given: _Input, context: _Context) -> jax.Array:
    old, new, limits = wrapper.old, wrapper.new, wrapper.limits
    finite = _finite_in(old.acc_grads, given, context.paths)
    emitted = new.gradient_step != old.gradient_step
    skipped = ~emitted & (new.mini_step == old.mini_step)

    before = next(context.windows_before)
    if limits is not None:
        before = before & (old.mini_step != 0)  # the window may have been flushed
    bad = ~finite
    if limits is not None and limits.weighted:
        bad = bad & (new.skip_state["weight"] > 0)  # a mini-step of weight 0 is not accumulated
    after = jnp.where(skipped, before, before | bad)
    # optwrap empties a window with zeros. optax multiplies by 0, so a non-finite value stays in it for ever.
    context.windows_after.append(after if limits is None else after & (new.mini_step != 0))

    inside = _judge(wrapper.inside, old.inner_opt_state, given._replace(finite=~after, leaves=None), context)
    accumulated = jnp.array(_ACCUMULATED)
    if limits is None:
        # optax calls the inner optimizer in every mini-step and multiplies its updates by 0: NaN stays NaN.
        leaked = _any_if(after & ~skipped & ~emitted, _not_finite, context.returned)
        accumulated = jnp.where(leaked, _ACCEPTED, _ACCUMULATED)
    return jnp.where(skipped, _skip_severity(finite, new.skip_state), jnp.where(emitted, inside, accumulated))


def _finite_in(accumulated: Any, given: _Input, paths: tuple[Any, ...]) -> jax.Array:
    """Whether the accumulated leaves were finite; under `masked` these are only some of the input's leaves."""
    taken = _leaves_by_path(accumulated)
    indices = [index for index, path in enumerate(paths) if path in taken]
    if given.leaves is None or len(indices) != len(taken) or len(indices) == len(paths):
        return given.finite
    return jnp.all(given.leaves[jnp.array(indices, jnp.int32)])


def _skip_severity(finite: jax.Array, skip_state: Any) -> jax.Array:
    """The severity (int32[]) of a skip.

    Args:
      finite: bool[], whether the input was finite.
      skip_state: the skip function's state.
    """
    state = skip_state if isinstance(skip_state, Mapping) else {}
    if "num_not_finite" in state:
        finite = finite & (state["num_not_finite"] == 0)
    if "norm_squared" in state:
        finite = finite & ~jnp.isnan(state["norm_squared"])
    # A one-mini-step window of weight 0 also leaves both counters unchanged: it was not skipped for its norm.
    large = jnp.where(state.get("should_skip", True), _LARGE, _OTHER) if "norm_squared" in state else _OTHER
    return jnp.where(finite, large, _NOT_FINITE)


def _inner_has_stepped(old: Any, new: Any, bad: jax.Array, alone: bool, updates: Any) -> jax.Array:
    """Whether the non-finite values (`bad`) reached the inner optimizer of a guard with an unknown limit: bool[].

    optax's guards do not declare a limit. When the guard rejects a step, the inner state stays unchanged and the
    updates are zero. Only the counters in the state are compared, because to compare moments every step would have to
    keep the old and the new ones.
    """
    counters = [
        (before, after)
        for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
        if jnp.ndim(before) == 0 and jnp.issubdtype(jnp.result_type(before), jnp.integer)
    ]
    if counters:
        return bad & jnp.any(jnp.stack([before != after for before, after in counters]))
    test = (lambda x: x != 0) if alone else _not_finite
    return _any_if(bad, test, updates)


def _any_if(condition: jax.Array, test: Callable[[jax.Array], jax.Array], tree: Any) -> jax.Array:
    """Whether `condition` holds and `test` is true for any value of `tree`: bool[]. Reads `tree` only if needed."""
    result: jax.Array = lax.cond(on_any_device(condition), lambda: anywhere(test, tree), lambda: jnp.array(False))
    return result


def _leaves_by_path(tree: Any) -> dict[tuple[Any, ...], Any]:
    return dict(jax.tree_util.tree_leaves_with_path(tree))


def _not_finite(x: jax.Array) -> jax.Array:
    return ~jnp.isfinite(x)
