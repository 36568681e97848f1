"""The outcome of one call of `update`, judged from the wrappers' states before and after it.

The judgement goes from the outermost wrapper inwards. Each wrapper either stops what it is given (skipped, accumulated)
or passes it on to what is inside it, which is judged next. A wrapper that was not called in this step is not judged:
its state is that of an earlier call. If wrappers stand side by side (`optax.chain`, `optax.multi_transform`), the call
has the most severe of their outcomes. What cannot be undone is the most severe:

    accepted although not finite  >  skipped (not finite, large, other)  >  applied  >  accumulated

A transformation around or beside a wrapper leaves no trace in the wrapper's state. So the updates are looked at too, in
the calls where that matters: those in which a value was not finite, a step was skipped, or windows only accumulated.
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
    """What came in."""
    returned: Any
    """What came out: updates, or new parameters."""
    summary: Summary
    """Finiteness and norm of the gradients."""
    applied: bool = False
    """Whether what came out are new parameters (`optwrap.apply_gradients`). The parameters before the call are not kept
    beside them: XLA overwrites them in place, and would copy them in every step if anything read them later. So where
    only what came out can tell, parameters that were not finite before the call count as its doing."""


def judge(wrappers: Sequence[Wrapper], call: Call, windows: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """The outcome of one call.

    Args:
      wrappers: the optimizer's outermost wrappers.
      call: what went in and came out.
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
    """What a part of the optimizer was given."""

    finite: jax.Array
    """bool[]: whether all of it was finite."""
    leaves: jax.Array | None
    """bool[P]: the same by leaf of the incoming gradients; None if the part was given a window's content."""
    alone: bool
    """Whether this part's updates are what the optimizer returned, unchanged."""


class _Context:
    """What is the same for every part of the optimizer, and the windows' flags as they are judged."""

    def __init__(self, call: Call, windows: jax.Array) -> None:
        self.paths = tuple(_leaves_by_path(call.gradients))
        self.returned = call.returned
        self.moves = call.gradients if call.applied else call.returned
        """Zero where a parameter does not move."""
        self.windows_before = iter(windows)
        """Each window takes the next one, depth first."""
        self.windows_after: list[jax.Array] = []
        """In the same order."""


def _judge(wrappers: Sequence[Wrapper], state: Any, given: _Input, context: _Context) -> jax.Array:
    """The severity (int32[]) of what became of `given` in a part of the optimizer.

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

    Zero updates are no step: frozen parameters have those. (`apply_gradients` has no updates to look at, so gradients
    that are not zero must do, and a frozen parameter looks like any other.) Windows whose leaves are not those of the
    gradients, as under `flatten`, are taken to hold all of them.
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

    The wrappers may not have been given it, or a transformation around them may use the gradients too. The updates are
    looked at only in a call with non-finite gradients or a skip: an optimizer whose state is already NaN returns NaN in
    every call.
    """
    suspect = (severity < _ACCEPTED) & (~given.finite | (severity >= _OTHER))
    return jnp.where(_any_if(suspect, _not_finite, context.returned), _ACCEPTED, severity)


def _judge_wrapper(wrapper: Wrapper, given: _Input, context: _Context) -> jax.Array:
    """The severity (int32[]) of what became of `given` in this wrapper."""
    match wrapper.old:
        case optax.ApplyIfFiniteState():
            return _judge_guard(wrapper, given, context)
        case optax.MultiStepsState():
            return _judge_window(wrapper, given, context)
        case SkipIfState():
            return _judge_skip(wrapper, given, context)
    # lookahead passes on what it is given, and changes what comes back.
    return _judge(wrapper.inside, wrapper.old.fast_state, given._replace(alone=False), context)


def _judge_guard(wrapper: Wrapper, given: _Input, context: _Context) -> jax.Array:
    old, new, limits = wrapper.old, wrapper.new, wrapper.limits
    # The guard's own flag counts, not `given`: it may have been given only some leaves, or a mean that overflowed. The
    # flag is of this call only if the total rose, or can rise no more.
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
    # It may have been given only some of the leaves, or other values than came in; the skip function's state is about
    # those. But an infinite norm may also have overflowed.
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


def _judge_window(wrapper: Wrapper, given: _Input, context: _Context) -> jax.Array:
    old, new, limits = wrapper.old, wrapper.new, wrapper.limits
    finite = _finite_in(old.acc_grads, given, context.paths)
    emitted = new.gradient_step != old.gradient_step
    skipped = ~emitted & (new.mini_step == old.mini_step)

    before = next(context.windows_before)
    if limits is not None:
        before = before & (old.mini_step != 0)  # the window may have been flushed since
    bad = ~finite
    if limits is not None and limits.weighted:
        bad = bad & (new.skip_state["weight"] > 0)  # a mini-step of weight 0 is not taken in
    after = jnp.where(skipped, before, before | bad)
    # An empty window holds nothing. But optax empties its window as 0 * x, so a non-finite value stays in it for good.
    context.windows_after.append(after if limits is None else after & (new.mini_step != 0))

    inside = _judge(wrapper.inside, old.inner_opt_state, given._replace(finite=~after, leaves=None), context)
    accumulated = jnp.array(_ACCUMULATED)
    if limits is None:
        # optax calls the inner optimizer in every mini-step and multiplies what it returns by 0: NaN goes through.
        leaked = _any_if(after & ~skipped & ~emitted, _not_finite, context.returned)
        accumulated = jnp.where(leaked, _ACCEPTED, _ACCUMULATED)
    return jnp.where(skipped, _skip_severity(finite, new.skip_state), jnp.where(emitted, inside, accumulated))


def _finite_in(accumulated: Any, given: _Input, paths: tuple[Any, ...]) -> jax.Array:
    """Whether the leaves that are accumulated were finite; under `masked` these are only some of the input's."""
    taken = _leaves_by_path(accumulated)
    indices = [index for index, path in enumerate(paths) if path in taken]
    if given.leaves is None or len(indices) != len(taken) or len(indices) == len(paths):
        return given.finite
    return jnp.all(given.leaves[jnp.array(indices, jnp.int32)])


def _skip_severity(finite: jax.Array, skip_state: Any) -> jax.Array:
    """The severity (int32[]) of a skip, from whether the input was finite and from the skip function's state."""
    state = skip_state if isinstance(skip_state, Mapping) else {}
    if "num_not_finite" in state:
        finite = finite & (state["num_not_finite"] == 0)
    if "norm_squared" in state:
        finite = finite & ~jnp.isnan(state["norm_squared"])
    # A window of one mini-step that weighs nothing stays as it was, whatever the norm: that is no large step.
    large = jnp.where(state.get("should_skip", True), _LARGE, _OTHER) if "norm_squared" in state else _OTHER
    return jnp.where(finite, large, _NOT_FINITE)


def _inner_has_stepped(old: Any, new: Any, bad: jax.Array, alone: bool, updates: Any) -> jax.Array:
    """Whether non-finite values (`bad`) reached the inner optimizer, seen from their effects (bool[]).

    For a guard of optax, whose limit is not known. What it rejects leaves the inner state unchanged and returns zero
    updates. Only the counters in the state are compared: to compare moments, old and new would have to be kept in every
    step.
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
    """Whether `condition` holds, and `test` for any value of `tree`: bool[]. Otherwise `tree` is not read."""
    result: jax.Array = lax.cond(on_any_device(condition), lambda: anywhere(test, tree), lambda: jnp.array(False))
    return result


def _leaves_by_path(tree: Any) -> dict[tuple[Any, ...], Any]:
    return dict(jax.tree_util.tree_leaves_with_path(tree))


def _not_finite(x: jax.Array) -> jax.Array:
    return ~jnp.isfinite(x)
