"""`instrument`: wraps an optimizer and counts, inside the jitted step, the outcome of every call of `update`."""

import dataclasses
import logging
import re
import weakref
from typing import Any, Final, Literal

import jax
import optax

from optwrap._core.apply_gradients import Fused, add, apply_gradients
from optwrap._core.checks import gradients as check_gradients
from optwrap._core.checks import shown, transformation
from optwrap._core.collectives import Axes, AxisName
from optwrap._core.trees import gradient_tree, is_placeholder
from optwrap._reading.counters import parameter_count
from optwrap._reading.observer import Observer
from optwrap._reading.scalars import MAX_SCALARS
from optwrap._reading.state import InstrumentState, has_instrumentation
from optwrap._reading.unpack import Layout, Source
from optwrap._step.callback import report
from optwrap._step.count import Leaves, counted, first_counters, sizes
from optwrap._step.grad_summary import reducing_over, summarized
from optwrap._step.outcomes import Call, count_windows
from optwrap._step.paths import parameter_paths
from optwrap._step.replicas import flags_and_replicas
from optwrap._step.scalars import given, hyperparameters
from optwrap._step.wrappers import wrappers

DEFAULT_NAME: Final = "instrument"
"""The name of an instrumentation if `name` is None."""

_log: Final = logging.getLogger("optwrap")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EMITS: Final = ("reading", "callback")


def instrument(
    tx: Any,
    monitor: Observer | None = None,
    *,
    emit: Literal["reading", "callback"] = "reading",
    name: str | None = None,
    axis_name: AxisName = None,
    update_norm: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Count the outcome of every call of `tx.update`. The updates and the state of `tx` stay the same.

    Every call has exactly one outcome. It is found from the outermost wrapper inwards:

    * `skipped_not_finite`, `skipped_large`, `skipped_other`: an `apply_if_finite`, `skip_if` or `skip_spikes` rejected
      the gradients, or `MultiSteps` skipped the mini-step. `skipped_not_finite` if the wrapper's input had a non-finite
      value; else `skipped_large` under `skip_spikes`, and if the skip function returns a `norm_squared`, as
      `skip_large_updates` does; else `skipped_other`.
    * `accumulated`: a window of `MultiSteps` accumulated the gradients, finite or not, and is not complete.
    * `accepted_not_finite`: a non-finite value reached the inner optimizer: there was no guard, the guard gave up, or
      the window had accumulated the value. (optax's own `MultiSteps` also calls the inner optimizer in the middle of a
      window, and returns its non-finite updates.)
    * `applied`: otherwise.

    If there are several wrappers side by side (`optax.chain`, `optax.multi_transform`), the call has the most severe of
    their outcomes, in the order accepted, skipped, applied, accumulated. If all windows only accumulated, but
    parameters outside the windows changed, the outcome is `applied`. If the gradients were non-finite or a wrapper
    skipped them, and a returned update is still non-finite, the outcome is `accepted_not_finite`: the value was outside
    the mask of `masked`, or a transformation around the wrapper, such as `optax.contrib.mechanize`, used it. If the
    mean of a window overflows although all its gradients were finite, only a guard inside the window detects that.

    Under `apply_gradients` a transformation around the wrappers returns new parameters, not updates. If the parameters
    were already non-finite, such calls count as `accepted_not_finite`.

    The state also has the norm of the incoming gradients, the three parameters with the largest shares of its square,
    the number of non-finite values by parameter, the counters and limits of the wrappers, and the scalar
    hyperparameters that `optax.inject_hyperparams` holds, such as `learning_rate` (of the first 16). All of this is one
    array, which is saved in checkpoints; `optwrap.reading` returns it.

    `update` also takes `replica_flags`, the result of `optwrap.replica_flags` before the mean. It is passed on to `tx`
    only if `tx` contains another instrumentation. With emit="callback", `update` and `optwrap.apply_gradients` also
    take `scalars`, a dict of real numbers without axes that are reported with the step: `scalars={"loss": loss}`. It
    is not passed on. With emit="reading" it is ignored: pass the scalars to `monitor.observe`.

    optax's own wrappers do not declare their limits, so those gauges are absent. optax's `apply_if_finite` is assumed
    to have given up if its updates are not zero, or if a step counter in its inner state changed.

    Args:
      tx: the transformation to watch: any `optax.GradientTransformation`, or an object with `init` and `update` such
        as `MultiSteps`; optwrap's or optax's, nested and chained.
      monitor: the `Monitor`, or another `Observer`, that gets the readings. When `init` and `update` are traced,
        they pass it the parameters' names.
      emit: with "reading", your jitted step returns `optwrap.reading(state)` and your loop passes it to
        `monitor.observe`. With "callback" the step calls `monitor.observe` through a host callback, and your loop does
        not change. That needs a backend with host callbacks (CPU, CUDA, ROCm, TPU) and does not work under
        `jax.export` or `jax.vmap`. On several simulated CPU devices, wait for each step (`jax.block_until_ready`):
        otherwise XLA may run out of threads and abort the process. If a signal handler raises while the main thread
        runs the callback (Ctrl-C, for one), JAX raises a `jax.errors.JaxRuntimeError` from the step in place of that
        exception.
      name: tells several instrumentations in one optimizer apart: 1 to 64 of `[A-Za-z0-9._-]`, "instrument" if None.
      axis_name: axes of the `pmap`, or of the `shard_map` with check_vma=False, in which `update` is called, along
        which the gradients differ: a name or a tuple of names. Without it each device counts its own gradients. Under
        `shard_map` with check_vma it is not needed, because types show what differs.
      update_norm: whether the reading also has the global L2 norm of the returned updates, in steps whose outcome is
        `applied` or `accepted_not_finite`, and in others if it is above 0: then one of several guards has skipped its
        parameters, and others have moved. Under `lookahead` it is that of the fast updates. It costs one more pass, and
        `optwrap.apply_gradients` then calls `update` and applies the updates afterwards, as optax does.

    Returns:
      A transformation with the updates of `tx`, and an `InstrumentState` around its state.

    Raises:
      TypeError: an argument, or `replica_flags` in `update`, has the wrong type.
      ValueError: `emit` or `name` is not allowed, or emit="callback" has no monitor, or one with a stop policy; in
        `update`: the gradients have other leaves than the parameters in `init`, or other shapes than the parameters in
        `update`.
    """
    inner = transformation("tx", tx)
    key = _checked_name(name)
    axes = Axes("instrument: axis_name", axis_name, every_typed=True)
    _check_emission(monitor, emit)
    if not isinstance(update_norm, bool):
        raise TypeError(f"update_norm must be True or False, got {shown(update_norm)}")

    source = Source()  # lives as long as the functions below

    def describe(layout: Layout, *, stepping: bool = False) -> None:
        if monitor is not None:
            monitor.describe(dataclasses.replace(layout, source=weakref.ref(source)), stepping=stepping)

    def init(params: Any) -> InstrumentState:
        inner_state = inner.init(params)
        layout = Layout(parameter_paths(gradient_tree(params)), tuple(hyperparameters(inner_state)))
        if not is_placeholder(params):
            describe(layout)
        return InstrumentState(inner_state, {key: first_counters(layout, count_windows(inner_state))})

    def update(
        updates: Any, state: InstrumentState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, InstrumentState]:
        leaves, extra_args = described(updates, state, params, extra_args)
        with summarized(updates) as summary:
            new_updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        call = Call(state.inner_state, updates, new_updates, summary)
        return new_updates, after(call, state, inner_state, params, leaves)

    def apply(grads: Any, state: InstrumentState, params: Any, **extra_args: Any) -> tuple[Any, InstrumentState]:
        if update_norm or not isinstance(inner, Fused) or inner.apply is None:  # then the updates are available
            new_updates, state = update(grads, state, params, **extra_args)
            return add(params, new_updates), state
        leaves, extra_args = described(grads, state, params, extra_args)
        with summarized(grads) as summary:
            new_params, inner_state = apply_gradients(inner, grads, state.inner_state, params, **extra_args)
        call = Call(state.inner_state, grads, new_params, summary, applied=True)
        return new_params, after(call, state, inner_state, params, leaves)

    def described(
        gradients: Any, state: InstrumentState, params: Any, extra_args: dict[str, Any]
    ) -> tuple[Leaves, dict[str, Any]]:
        """Describe the step to the monitor; returns what belongs to its gradients, and the extra arguments for `tx`."""
        check_gradients("instrument", gradients, gradient_tree(params))
        words = _counters_of(state, key)
        size = parameter_count(words.shape[-1], sizes(state.inner_state))
        injected = tuple(hyperparameters(state.inner_state))
        leaves = _leaves(gradients, params, size, injected)
        scalars = given(extra_args.pop("scalars", None), MAX_SCALARS - len(injected))
        if scalars and emit != "callback":
            _log.warning(
                'optwrap: the scalars given to update are ignored, because emit is "reading": pass them to '
                "monitor.observe, with the reading"
            )
        flags, replicas = flags_and_replicas(extra_args.get("replica_flags"))
        describe(dataclasses.replace(leaves.layout, replicas=replicas), stepping=True)
        if not has_instrumentation(state.inner_state):
            extra_args = {name: value for name, value in extra_args.items() if name != "replica_flags"}
        return leaves._replace(flags=flags, scalars=scalars), extra_args

    def after(call: Call, state: InstrumentState, inner_state: Any, params: Any, leaves: Leaves) -> InstrumentState:
        """The state after the step."""
        outermost = wrappers(inner.init, call.gradients if params is None else params, state.inner_state, inner_state)
        words = counted(
            state.counters[key],
            call,
            inner_state,
            outermost,
            leaves,
            update_norm=update_norm,
        )
        if emit == "callback" and monitor is not None:
            words = report(words, monitor, leaves.scalars)
        return InstrumentState(inner_state, {key: words})

    return Fused(init, reducing_over(axes, update), reducing_over(axes, apply))


def _checked_name(name: str | None) -> str:
    allowed = "1 to 64 of the characters A-Z a-z 0-9 . _ -, beginning with a letter or digit, or None"
    if name is None:
        return DEFAULT_NAME
    if not isinstance(name, str):
        raise TypeError(f"name must be {allowed}, got {shown(name)} ({type(name).__name__}): pass a string")
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must be {allowed}, got {shown(name)}: it becomes a key in checkpoints")
    return name


def _check_emission(monitor: Any, emit: Any) -> None:
    if monitor is not None and (isinstance(monitor, type) or not isinstance(monitor, Observer)):
        raise TypeError(
            f"monitor must be an optwrap.Monitor, or an object with its methods describe and observe, or None, got "
            f"{shown(monitor)} ({type(monitor).__name__}): pass optwrap.Monitor(run=...)"
        )
    if emit not in _EMITS:
        raise ValueError(
            f"emit must be one of {', '.join(map(repr, _EMITS))}, got {shown(emit)}: leave it out for 'reading'"
        )
    if emit == "callback" and monitor is None:
        raise ValueError(
            'monitor must be given with emit="callback", got None: the step needs an observer to call; pass '
            'optwrap.Monitor(run=...), or use emit="reading"'
        )
    if emit == "callback" and getattr(monitor, "stop_policy", None) is not None:
        raise ValueError(
            'monitor must have no stop policy with emit="callback", got one: callbacks arrive at another time on each '
            'host, so the hosts could stop at different steps; use emit="reading", or leave out the Monitor\'s stop'
        )


def _counters_of(state: Any, key: str) -> jax.Array:
    if not isinstance(state, InstrumentState):
        raise TypeError(
            f"state must be the InstrumentState that this transformation's init returned, got {type(state).__name__}: "
            "pass the state that init or the last update of the instrumented transformation returned"
        )
    if key not in state.counters:
        names = ", ".join(map(repr, state.counters))
        raise ValueError(
            f"state must be that of the instrumentation named {key!r}, got that of {names}: give instrument the name "
            "with which the state or its checkpoint was made"
        )
    return state.counters[key]


def _leaves(updates: Any, params: Any, size: int, scalars: tuple[str, ...]) -> Leaves:
    """Match the leaves of the gradients to the `size` parameters that `init` was called with."""
    paths = parameter_paths(updates)
    if len(paths) == size:
        return Leaves(Layout(paths, scalars), None)
    every = parameter_paths(gradient_tree(params))
    if len(every) == size and set(paths) <= set(every):  # frozen parameters, whose gradients are None
        return Leaves(Layout(every, scalars), [every.index(path) for path in paths])
    raise ValueError(
        f"updates must have the {size} leaves of the parameters in init (or some of them, if update also gets params), "
        f"got {len(paths)} leaves, {shown(paths)}: pass the gradients of the parameters that init was called with"
    )
