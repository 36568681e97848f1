"""What became of one call of `update`: the outcome, judged from the wrappers' states before and after it.

From the outermost wrapper inwards: each looks at what it was given and either stops it there (skipped, accumulated) or
hands it to what is inside, which is judged in turn. Wrappers that were not called are not judged: what they hold is
from an earlier call. Side by side (in `optax.chain`, `optax.multi_transform`) the gravest fate is the call's, and what
cannot be undone is the gravest:

    accepted although not finite  >  skipped (not finite, large, other)  >  applied  >  accumulated

What stands around or beside a wrapper has no say of its own in the state. Where it matters, in the calls in which a
value was not finite or a step was left out, and in those that only fill a window, the updates tell what it did.
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

_BY_GRAVITY: Final = (
    "accumulated",
    "applied",
    "skipped_other",
    "skipped_large",
    "skipped_not_finite",
    "accepted_not_finite",
)
# int32 also where 64-bit types are enabled, and Python's integers are those.
_ACCUMULATED, _APPLIED, _OTHER, _LARGE, _NOT_FINITE, _ACCEPTED = map(
    np.int32, range(len(_BY_GRAVITY))
)  # int32 also where Python integers are int64


class Call(NamedTuple):
    """One call of an optimizer's `update`."""

    before: Any
    """The optimizer's state before it."""
    gradients: Any
    """What came in."""
    returned: Any
    """What came out: updates, or new parameters."""
    summary: Summary
    """Of the gradients."""
    applied: bool = False
    """Whether what came out are the new parameters (`optwrap.apply_gradients`). Those before are not kept beside them:
    XLA has overwritten them in place, and copies all of them in every step if they are looked at even once, be it
    before the step and only where the gradients are not finite. So parameters that were not finite before the call
    count as its doing, where nothing but what came out tells."""


def judge(found: Sequence[Wrapper], call: Call, windows: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """The outcome of one call.

    Args:
      found: the optimizer's outermost wrappers.
      call: what went in and came out.
      windows: bool[W], for each accumulation window whether it held something not finite before the call.

    Returns:
      int32[], an index into OUTCOMES; and `windows` as they are after the call.
    """
    hearing = _Hearing(call, windows)
    given = _Given(call.summary.finite, call.summary.not_finite == 0, alone=not call.applied)
    gravity = on_any_device(_judge(found, call.before, given, hearing))
    by_gravity = jnp.array([OUTCOMES.index(outcome) for outcome in _BY_GRAVITY], jnp.int32)
    return by_gravity[gravity], [on_any_device(window) for window in hearing.after]


def count_windows(state: Any) -> int:
    """How many accumulation windows (`MultiStepsState`) there are in an optimizer's state, at any depth."""
    nodes = outermost(state, WRAPPERS)
    return sum(isinstance(node, optax.MultiStepsState) + count_windows(tuple(node)) for node in nodes)


class _Given(NamedTuple):
    """What a part of the optimizer was given."""

    finite: jax.Array
    """bool[]: whether it was finite."""
    leaves: jax.Array | None
    """bool[P]: the same by leaf of the incoming gradients; None where it is a window's content."""
    alone: bool
    """Whether the updates that this part made of it are what the optimizer returned."""


class _Hearing:
    """What is the same for every part of the optimizer, and what the parts leave behind."""

    def __init__(self, call: Call, windows: jax.Array) -> None:
        self.paths = tuple(_leaves_by_path(call.gradients))
        self.returned = call.returned
        self.moves = call.gradients if call.applied else call.returned
        self.before = iter(windows)  # taken by the windows as they are come upon, depth first
        self.after: list[jax.Array] = []  # and given back in the same order


def _judge(found: Sequence[Wrapper], state: Any, given: _Given, hearing: _Hearing) -> jax.Array:
    """The gravity of what became of `given` in the part of the optimizer that has `found` and had `state`: int32[]."""
    if not found:
        return jnp.where(given.finite, _APPLIED, _ACCEPTED)
    whole = len(found) == 1 and found[0].old is state
    fates = [_judge_wrapper(wrapper, given._replace(alone=given.alone and whole), hearing) for wrapper in found]
    gravity = jnp.max(jnp.stack(fates))
    return gravity if whole else _passed_by(_moved_beside(gravity, found, hearing), given, hearing)


def _moved_beside(gravity: jax.Array, found: Sequence[Wrapper], hearing: _Hearing) -> jax.Array:
    """`gravity`, and "applied" where all windows only took something in, while parameters of no window were moved.

    Zero updates are no step: those of frozen parameters. (Where updates are applied at once, gradients that are not
    zero have to do, and frozen parameters look like others.) Windows of other leaves than the gradients have, as under
    `flatten`, are taken to hold all of them.
    """
    windows = [wrapper.old for wrapper in depth_first(found) if isinstance(wrapper.old, optax.MultiStepsState)]
    held = {path for window in windows for path in _leaves_by_path(window.acc_grads)}
    moves = _leaves_by_path(gradient_tree(hearing.moves))
    beside = [moves[path] for path in hearing.paths if path not in held and path in moves]
    if not windows or not beside or not held.issubset(hearing.paths):
        return gravity
    moved = _looked_at(gravity == _ACCUMULATED, lambda x: x != 0, beside)
    return jnp.where(moved, _APPLIED, gravity)


def _passed_by(gravity: jax.Array, given: _Given, hearing: _Hearing) -> jax.Array:
    """`gravity`, and "accepted" where what was not finite got past the wrappers, whatever these made of it.

    It may never have come to them, or what is around them may have looked at the gradients too. Only in a call with
    something amiss are the updates looked at: an optimizer that was spoilt earlier goes on returning NaN.
    """
    amiss = (gravity < _ACCEPTED) & (~given.finite | (gravity >= _OTHER))
    return jnp.where(_looked_at(amiss, _not_finite, hearing.returned), _ACCEPTED, gravity)


def _judge_wrapper(wrapper: Wrapper, given: _Given, hearing: _Hearing) -> jax.Array:
    """The gravity of what became of `given` in this wrapper: int32[]."""
    match wrapper.old:
        case optax.ApplyIfFiniteState():
            return _judge_guard(wrapper, given, hearing)
        case optax.MultiStepsState():
            return _judge_window(wrapper, given, hearing)
        case SkipIfState():
            return _judge_skip(wrapper, given, hearing)
    # lookahead hands on what it is given, and changes what comes back.
    return _judge(wrapper.inside, wrapper.old.fast_state, given._replace(alone=False), hearing)


def _judge_guard(wrapper: Wrapper, given: _Given, hearing: _Hearing) -> jax.Array:
    old, new = wrapper.old, wrapper.new
    # Its own judgement, not ours: it may have been given only some of the leaves, or a window's mean that overflowed.
    # What it found in an earlier call is no matter of this one: in this one it was not called.
    called = (new.total_notfinite != old.total_notfinite) | (new.total_notfinite == INT32_MAX)
    # A flag, although optax.contrib.sam makes an integer of it.
    bad = ~new.last_finite.astype(jnp.bool_) & called
    leaves = None if given.leaves is None else given.leaves | ~bad
    inside = _judge(wrapper.inside, old.inner_state, given._replace(finite=~bad, leaves=leaves), hearing)
    if wrapper.limits is not None and not wrapper.limits.gives_up:
        accepted = jnp.array(False)
    elif wrapper.limits is not None and wrapper.limits.limit is not None:
        accepted = new.notfinite_count > wrapper.limits.limit
    else:
        accepted = _left_a_trace(old.inner_state, new.inner_state, bad, given.alone, hearing.returned)
    return jnp.where(bad & ~accepted, _NOT_FINITE, inside)


def _judge_skip(wrapper: Wrapper, given: _Given, hearing: _Hearing) -> jax.Array:
    old, new = wrapper.old, wrapper.new
    skipped = new.last_skipped & ((new.total_skipped != old.total_skipped) | (new.total_skipped == INT32_MAX))
    called = skipped | (new.gradient_step != old.gradient_step) | (new.gradient_step == INT32_MAX)
    # It may have been given only some of the leaves, or others than came in. What the skip function said is of those:
    # all but why a norm is infinite, which may also have overflowed.
    said = new.skip_state if isinstance(new.skip_state, Mapping) else {}
    finite = given.finite
    if "num_not_finite" in said:
        finite = jnp.where(called, said["num_not_finite"] == 0, finite)
    elif "norm_squared" in said:
        saw = called & jnp.isnan(said["norm_squared"])
        finite = ~saw & (finite | (called & jnp.isfinite(said["norm_squared"])))
    leaves = None if given.leaves is None else given.leaves | finite
    inside = _judge(wrapper.inside, old.inner_state, given._replace(finite=finite, leaves=leaves), hearing)
    return jnp.where(skipped, _skip_reason(finite, new.skip_state), inside)


def _judge_window(wrapper: Wrapper, given: _Given, hearing: _Hearing) -> jax.Array:
    old, new = wrapper.old, wrapper.new
    finite = _finite_in(old.acc_grads, given, hearing.paths)
    emitted = new.gradient_step != old.gradient_step
    skipped = ~emitted & (new.mini_step == old.mini_step)

    before = next(hearing.before)
    if wrapper.limits is not None:
        before = before & (old.mini_step != 0)  # the window may have been flushed since
    spoilt = ~finite
    if wrapper.limits is not None and wrapper.limits.weighted:
        spoilt = spoilt & (new.skip_state["weight"] > 0)  # what weighs nothing is not taken in
    after = jnp.where(skipped, before, before | spoilt)
    # An empty window holds nothing. But optax empties it as 0 * x: what was not finite never leaves it again.
    hearing.after.append(after if wrapper.limits is None else after & (new.mini_step != 0))

    inside = _judge(wrapper.inside, old.inner_opt_state, given._replace(finite=~after, leaves=None), hearing)
    waiting = jnp.array(_ACCUMULATED)
    if wrapper.limits is None:
        # optax calls the inner in every mini-step, and multiplies what it returns by 0: NaN goes through.
        leaked = _looked_at(after & ~skipped & ~emitted, _not_finite, hearing.returned)
        waiting = jnp.where(leaked, _ACCEPTED, _ACCUMULATED)
    return jnp.where(skipped, _skip_reason(finite, new.skip_state), jnp.where(emitted, inside, waiting))


def _finite_in(accumulated: Any, given: _Given, paths: tuple[Any, ...]) -> jax.Array:
    """Whether what is given was finite in the leaves that are accumulated: under `masked` those are only some."""
    taken = _leaves_by_path(accumulated)
    places = [place for place, path in enumerate(paths) if path in taken]
    if given.leaves is None or len(places) != len(taken) or len(places) == len(paths):
        return given.finite
    return jnp.all(given.leaves[jnp.array(places, jnp.int32)])


def _skip_reason(finite: jax.Array, skip_state: Any) -> jax.Array:
    """The gravity of a mini-step that was skipped, from what the skip function left (int32[])."""
    said = skip_state if isinstance(skip_state, Mapping) else {}
    if "num_not_finite" in said:
        finite = finite & (said["num_not_finite"] == 0)
    if "norm_squared" in said:
        finite = finite & ~jnp.isnan(said["norm_squared"])
    # A window of one mini-step that weighs nothing is left as it was, whatever the norm.
    large = jnp.where(said.get("should_skip", True), _LARGE, _OTHER) if "norm_squared" in said else _OTHER
    return jnp.where(finite, large, _NOT_FINITE)


def _left_a_trace(old: Any, new: Any, bad: jax.Array, alone: bool, updates: Any) -> jax.Array:
    """Whether values that were not finite (`bad`) went into the inner optimizer, seen from what it did (bool[]).

    For a guard that hides its limit. What it rejects leaves the inner state as it was, and gives updates of zero. Of
    the state only counters are compared: for moments, both the old and the new would have to be kept in every step.
    """
    counters = [
        (before, after)
        for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
        if jnp.ndim(before) == 0 and jnp.issubdtype(jnp.result_type(before), jnp.integer)
    ]
    if counters:
        return bad & jnp.any(jnp.stack([before != after for before, after in counters]))
    test = (lambda x: x != 0) if alone else _not_finite
    return _looked_at(bad, test, updates)


def _looked_at(when: jax.Array, test: Callable[[jax.Array], jax.Array], tree: Any) -> jax.Array:
    """Whether `test` holds for any value of `tree`, which is looked at in the calls where `when` holds only: bool[]."""
    found: jax.Array = lax.cond(on_any_device(when), lambda: anywhere(test, tree), lambda: jnp.array(False))
    return found


def _leaves_by_path(tree: Any) -> dict[tuple[Any, ...], Any]:
    return dict(jax.tree_util.tree_leaves_with_path(tree))


def _not_finite(x: jax.Array) -> jax.Array:
    return ~jnp.isfinite(x)
