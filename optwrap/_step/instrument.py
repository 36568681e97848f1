"""`instrument`: wraps an optimizer and counts, inside the jitted step, what becomes of every call of `update`."""

import dataclasses
import re
import weakref
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optwrap._core.apply_gradients import Fused, add, apply_gradients
from optwrap._core.checks import INT32_MAX, shown, transformation
from optwrap._core.checks import gradients as check_gradients
from optwrap._core.collectives import Axes, AxisName
from optwrap._core.trees import gradient_tree, is_placeholder
from optwrap._reading.counters import (
    ABSENT,
    INT_GAUGES,
    MOST_WAITING,
    OF_REPLICAS,
    OUTCOMES,
    Counters,
    InstrumentState,
)
from optwrap._reading.unpack import Layout, has_instrumentation
from optwrap._step.callback import DEFAULT_EVERY, Observer, none_waiting, report
from optwrap._step.gauges import gauges
from optwrap._step.grad_summary import speaking_for, summarized
from optwrap._step.outcomes import Call, count_windows, judge
from optwrap._step.paths import parameter_paths
from optwrap._step.replicas import described as replicas_of
from optwrap._step.replicas import figures
from optwrap._step.wrappers import Wrapper, wrappers

DEFAULT_NAME: Final = "instrument"
"""The name of an instrumentation that was given none."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EMITS: Final = ("reading", "callback")


def instrument(
    tx: Any,
    monitor: Observer | None = None,
    *,
    emit: Literal["reading", "callback"] = "reading",
    name: str | None = None,
    axis_name: AxisName = None,
    callback_every: int = DEFAULT_EVERY,
    replica_axes: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Counts what becomes of every call of `tx.update`, and changes nothing in what `tx` does.

    Every call gets one outcome, judged from the outermost wrapper inwards:

    * `skipped_not_finite`, `skipped_large`, `skipped_other`: an `apply_if_finite` or `skip_if` rejected the gradients,
      or `MultiSteps` left both its counters as they were. Not finite if what it was given was not; else large if the
      skip function left a `norm_squared`, as `skip_large_updates` does; else other.
    * `accumulated`: taken into a window of `MultiSteps`, finite or not; nothing came of it yet.
    * `accepted_not_finite`: the inner optimizer consumed a value that is not finite, because the guard gave up, there
      was none, or the window had taken it in. (optax's own `MultiSteps` calls the inner optimizer in the midst of a
      window too, and lets through what it returns where that is not finite.)
    * `applied`: otherwise.

    Of several wrappers side by side (`optax.chain`, `optax.multi_transform`) the first of these that befell any one of
    them is the call's, in the order accepted, skipped, applied, accumulated. Beside windows that only took something
    in, parameters of no window that were moved make the call applied. A call with gradients that are not finite, or one
    that a wrapper left out, is accepted all the same if any of the updates that come back is not finite: the value was
    outside the mask of `masked`, or what is around the wrapper, as `optax.contrib.mechanize` is, let it through. A
    window whose mean overflows although all it took in was finite is seen by a guard inside, and not without one.

    Where something stands around the wrappers, `apply_gradients` has no updates to look at, but the new parameters:
    with parameters that were not finite before, such calls are all accepted ones there.

    Beside the outcome there are the norm of the incoming gradients, the values that are not finite by parameter, and
    the wrappers' own counters and limits. They are in the state, as arrays, and go with it into checkpoints; get them
    out with `optwrap.reading`.

    `update` takes `replica_flags`, too: what `optwrap.replica_flags` told of each replica's gradients before the mean.
    They are handed on to `tx` only if there is another instrumentation in it.

    optax's own wrappers do not tell their limits: those gauges are absent then, and whether its `apply_if_finite` gave
    up is seen from what it left behind: updates that are not zero, or a changed step counter in the inner state.

    Args:
      tx: the transformation to watch: any `optax.GradientTransformation`, or an object with its `init` and `update`
        such as `MultiSteps`; optwrap's or optax's, nested and chained.
      monitor: who is told how the parameters are called, when `init` and `update` are traced: a `Monitor`.
      emit: with "reading", you return `optwrap.reading(state)` from your jitted step and hand it to
        `monitor.observe`. With "callback", the step itself calls `monitor.observe`, and your loop does not change: for
        backends that have host callbacks (CPU, CUDA, ROCm, TPU), and not under `jax.export`. On several simulated CPU
        devices wait for each step: XLA's threads may run out, and it ends a process whose devices wait for each other.
      name: tells several instrumentations in one optimizer apart: 1 to 64 of `[A-Za-z0-9._-]`, "instrument" if None.
      axis_name: axes, a name or a tuple of names, of the `pmap`, or `shard_map` with check_vma=False, in which `update`
        is called, along which the gradients differ. There no type says that they do, and without it the reading is one
        device's view. Under `shard_map` with check_vma the types say so, and it is not needed.
      callback_every: with emit="callback", how many steps are handed to the host at once, 1 to 32: what that costs is
        nearly the same for one or many. They wait in the state meanwhile, and go with the first step in which something
        is amiss: skipped, or not finite. Those that still wait at the end, or at a checkpoint,
        `monitor.observe(optwrap.reading(jax.block_until_ready(state)))` hands over; none is told twice. A state that
        is restored, or gone back to, has to be observed then, with `restored=True`: what waits in it would otherwise
        be counted as new. Keep it below 10: the exporter calls a run stalled that is silent for ten of its steps (and
        5 min at least).
      replica_axes: the axes, a name or a tuple of names in the order that `replica_flags` was given, along which the
        replicas lie. Only where the flags cannot say so themselves, because they are not handed on as they were
        returned: out of the `shard_map` or `jit` they were computed in, or joined with others.

    Returns:
      A transformation with the updates of `tx`, and an `InstrumentState` around its state.

    Raises:
      TypeError: an argument is of the wrong type; by `update`, `replica_flags` that are none.
      ValueError: `emit`, `name` or `callback_every` is not one that is allowed, or emit="callback" lacks a monitor;
        by `update`, when the gradients have other leaves than the parameters that `init` was given, or other shapes
        than those given with them.
    """
    inner = transformation("tx", tx)
    key = _checked_name(name)
    axes = Axes("instrument: axis_name", axis_name, every_told=True)
    along = Axes("instrument: replica_axes", replica_axes).names
    _check_emission(monitor, emit, callback_every)

    identity = _Identity()  # lives as long as the functions below

    def describe(layout: Layout, *, stepping: bool = False) -> None:
        if monitor is not None:
            monitor.describe(dataclasses.replace(layout, source=weakref.ref(identity)), stepping=stepping)

    def init(params: Any) -> InstrumentState:
        tree = gradient_tree(params)
        layout = Layout(parameter_paths(tree))
        if not is_placeholder(params):
            describe(layout)
        inner_state = inner.init(params)
        waiting = none_waiting(callback_every if emit == "callback" else 1)
        return InstrumentState(inner_state, {key: _zero(layout, count_windows(inner_state), waiting)})

    def update(
        updates: Any, state: InstrumentState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, InstrumentState]:
        places, extra_args = described(updates, state, params, extra_args)
        with summarized(updates) as summary:
            new_updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        call = Call(state.inner_state, updates, new_updates, summary)
        return new_updates, counted(call, state, inner_state, params, places)

    def apply(grads: Any, state: InstrumentState, params: Any, **extra_args: Any) -> tuple[Any, InstrumentState]:
        if not isinstance(inner, Fused) or inner.apply is None:  # then there are updates to be judged
            new_updates, state = update(grads, state, params, **extra_args)
            return add(params, new_updates), state
        places, extra_args = described(grads, state, params, extra_args)
        with summarized(grads) as summary:
            new_params, inner_state = apply_gradients(inner, grads, state.inner_state, params, **extra_args)
        call = Call(state.inner_state, grads, new_params, summary, applied=True)
        return new_params, counted(call, state, inner_state, params, places)

    def described(
        gradients: Any, state: InstrumentState, params: Any, extra_args: dict[str, Any]
    ) -> tuple[_Places, dict[str, Any]]:
        """What is known of the gradients; and the extra arguments of the wrapped transformation."""
        check_gradients("instrument", gradients, gradient_tree(params))
        layout, indices = _layout(gradients, params, _own(state, key).parameters.shape[0])
        flags = extra_args.get("replica_flags")
        describe(dataclasses.replace(layout, replicas=replicas_of(flags, along)), stepping=True)
        if not has_instrumentation(state.inner_state):
            extra_args = {name: value for name, value in extra_args.items() if name != "replica_flags"}
        return _Places(layout, indices, flags), extra_args

    def counted(call: Call, state: InstrumentState, inner_state: Any, params: Any, places: _Places) -> InstrumentState:
        before = state.counters[key]
        found = wrappers(inner.init, call.gradients if params is None else params, state.inner_state, inner_state)
        after = _counted(before, call, found, places)
        if emit == "callback" and monitor is not None:
            after = after._replace(waiting=report(after, before.waiting, callback_every, monitor))
        return InstrumentState(inner_state, {key: after})

    return Fused(init, speaking_for(axes, update), speaking_for(axes, apply))


class _Places(NamedTuple):
    """Where the gradients' leaves are among the parameters, and on which replicas they were not finite."""

    layout: Layout
    indices: list[int] | None
    """By leaf of the gradients; None where they are all, in order."""
    replicas: jax.Array | None
    """bool[R], what `replica_flags` returned; None where it was not asked."""


def _counted(before: Counters, call: Call, found: Sequence[Wrapper], places: _Places) -> Counters:
    """The counters after a call."""
    summary = call.summary
    outcome, windows = judge(found, call, before.window_not_finite)
    levels = gauges(found)
    not_finite = summary.not_finite
    if places.indices is not None:
        size = before.parameters.shape[0]
        not_finite = jnp.zeros([size], jnp.int32).at[jnp.array(places.indices, jnp.int32)].set(not_finite)
    streak = jnp.where(summary.finite, 0, _plus(before.not_finite_streak, True))
    return before._replace(
        outcomes=_plus(before.outcomes, jnp.arange(len(OUTCOMES), dtype=jnp.int32) == outcome),
        not_finite_steps=_plus(before.not_finite_steps, ~summary.finite),
        not_finite_streak=streak,
        not_finite_streak_peak=jnp.maximum(before.not_finite_streak_peak, streak),
        parameters=_plus(before.parameters, not_finite > 0),
        window_not_finite=windows,
        outcome=outcome,
        finite=summary.finite,
        gradient_norm=summary.norm,
        not_finite_values=not_finite,
        gauges=jnp.concatenate([levels.integers, figures(places.replicas)]),
        gradient_norm_limit=levels.gradient_norm_limit,
        fingerprint=jnp.array(places.layout.fingerprint, jnp.uint32),
    )


class _Identity:
    """What a Monitor knows an instrumentation by."""


def _checked_name(name: str | None) -> str:
    allowed = "1 to 64 of the characters A-Z a-z 0-9 . _ -, beginning with a letter or digit, or None"
    if name is None:
        return DEFAULT_NAME
    if not isinstance(name, str):
        raise TypeError(f"name must be {allowed}, got {shown(name)} ({type(name).__name__}): pass a string")
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must be {allowed}, got {shown(name)}: it becomes a key in checkpoints")
    return name


def _check_emission(monitor: Any, emit: Any, callback_every: Any) -> None:
    if monitor is not None and (isinstance(monitor, type) or not isinstance(monitor, Observer)):
        raise TypeError(
            f"monitor must be an optwrap.Monitor, or an object with its methods describe and observe, or None, got "
            f"{shown(monitor)} ({type(monitor).__name__}): pass optwrap.Monitor(run=...)"
        )
    if emit not in _EMITS:
        raise ValueError(
            f"emit must be one of {', '.join(map(repr, _EMITS))}, got {shown(emit)}: leave it out for the first"
        )
    if emit == "callback" and monitor is None:
        raise ValueError(
            'monitor must be given with emit="callback", got None: the step has nobody to report to; pass '
            'optwrap.Monitor(run=...), or use emit="reading"'
        )
    allowed = f"a Python integer from 1 to {MOST_WAITING}"
    if not isinstance(callback_every, int) or isinstance(callback_every, bool):
        raise TypeError(
            f"callback_every must be {allowed}, got {shown(callback_every)} ({type(callback_every).__name__}): say how "
            "many steps are handed to the host at once"
        )
    if not 1 <= callback_every <= MOST_WAITING:
        raise ValueError(
            f"callback_every must be {allowed}, got {callback_every}: 1 hands over each step by itself, and more than "
            f"{MOST_WAITING} cannot wait in the state"
        )


def _own(state: Any, key: str) -> Counters:
    if not isinstance(state, InstrumentState):
        raise TypeError(
            f"state must be the InstrumentState that this transformation's init returned, got {type(state).__name__}: "
            "call init of the instrumented transformation, and pass on what update returns"
        )
    if key not in state.counters:
        names = ", ".join(map(repr, state.counters))
        raise ValueError(
            f"state must be that of the instrumentation named {key!r}, got one of {names}: give instrument the name "
            "that the state, or its checkpoint, was made under"
        )
    return state.counters[key]


def _zero(layout: Layout, windows: int, waiting: jax.Array) -> Counters:
    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.int32)

    return Counters(
        outcomes=zeros(len(OUTCOMES)),
        not_finite_steps=zeros(),
        not_finite_streak=zeros(),
        not_finite_streak_peak=zeros(),
        parameters=zeros(len(layout.parameters)),
        window_not_finite=jnp.zeros([max(windows, 1)], jnp.bool_),  # orbax saves no array without values
        outcome=jnp.array(-1, jnp.int32),
        finite=jnp.array(True),
        gradient_norm=jnp.zeros([], jnp.float32),
        not_finite_values=zeros(len(layout.parameters)),
        gauges=jnp.full([len(INT_GAUGES) + len(OF_REPLICAS)], ABSENT, jnp.int32),
        gradient_norm_limit=jnp.array(ABSENT, jnp.float32),
        fingerprint=jnp.array(layout.fingerprint, jnp.uint32),
        waiting=waiting,
    )


def _layout(updates: Any, params: Any, size: int) -> tuple[Layout, list[int] | None]:
    """How the P = `size` parameters are called, and which of them the gradients are of; None where of all, in order."""
    paths = parameter_paths(updates)
    if len(paths) == size:
        return Layout(paths), None
    every = parameter_paths(gradient_tree(params))
    if len(every) == size and set(paths) <= set(every):  # frozen parameters, whose gradients are None
        return Layout(every), [every.index(path) for path in paths]
    raise ValueError(
        f"updates must have the {size} leaves of the parameters that init was given, or, where update is given params, "
        f"some of them, got {len(paths)} leaves, {shown(paths)}: call init with the parameters that are trained"
    )


def _plus(count: jax.Array, event: jax.Array | bool) -> jax.Array:
    """`count`, int32, and one more where there was an event; saturating."""
    return count + (jnp.asarray(event) & (count < INT32_MAX)).astype(jnp.int32)
