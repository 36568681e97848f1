"""One step of the optimizer from several mini-batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from optwrap import _checks
from optwrap._declarations import Window, declare
from optwrap._devices import Axes, AxisName
from optwrap._inner import apply_if, empty_if, step_if
from optwrap._trees import Tree, as_int32, cast, common_dtype, computable, gradient_tree
from optwrap.fused import Fused, apply_gradients
from optwrap.skipping import ShouldSkipUpdateFunction, SkipFunction, not_skipped_if, said_to_skip


class Decision(NamedTuple):
    """What becomes of one mini-step, known before anything is accumulated."""

    skip: jax.Array | None
    """bool[]: it is left out; None where no skip function was given."""
    emit: jax.Array
    """bool[]: it completes the window, and the optimizer takes a step."""
    mini_step: jax.Array
    """int32[]: mini-steps in the window after this one."""
    gradient_step: jax.Array
    """int32[]: optimizer steps after this one."""
    skip_state: Any
    """What the skip function said."""

    def state(self, inner_opt_state: Tree, acc_grads: Tree) -> optax.MultiStepsState:
        """The wrapper's state after the mini-step, with the inner state and the accumulator that came of it."""
        return optax.MultiStepsState(
            mini_step=self.mini_step,
            gradient_step=self.gradient_step,
            inner_opt_state=inner_opt_state,
            acc_grads=acc_grads,
            skip_state=self.skip_state,
        )


class MultiSteps:
    """Accumulate the gradients of `k` mini-steps, and let the optimizer take one step with their mean or sum.

    Mini-steps before the k-th return zero updates; the optimizer itself runs on the k-th only.

    Drop-in for `optax.MultiSteps` (optax 0.2.8), with the same state. A mini-step that is not finite, and that no skip
    function leaves out, makes the mean of its own window not finite, and of no other. See
    `docs/differences-from-optax.md` for the rest.
    """

    def __init__(
        self,
        opt: optax.GradientTransformation,
        every_k_schedule: ArrayLike | Callable[[jax.Array], ArrayLike],
        use_grad_mean: bool = True,
        should_skip_update_fn: ShouldSkipUpdateFunction | None = None,
        accumulator_dtype: DTypeLike | None = jnp.float32,
        *,
        axis_name: AxisName = None,
    ) -> None:
        """Make the wrapper.

        Args:
          opt: the optimizer that takes a step every k mini-steps.
          every_k_schedule: k, an integer from 1, of Python, numpy or jax, which may be traced; or a function of the
            gradient step, int32[], that returns k. A jax array below 1 counts as 1.
          use_grad_mean: whether the optimizer gets the mean of the window's gradients (else their sum).
          should_skip_update_fn: which mini-steps to leave out. One that is left out changes `skip_state` only.
          accumulator_dtype: floating dtype of the accumulator, or None for that of the parameters. float64 parameters
            have a float64 accumulator where this says float32, and complex ones always have a complex one.
          axis_name: axes of the `shard_map` or `pmap` in which `update` is called, along which the gradients differ:
            the devices along them decide together. A mini-step that one of them leaves out is left out by all, and
            `skip_state` is what `skip_not_finite` or `skip_large_updates` say of the gradients of all. A skip function
            of your own is asked on each device; its `skip_state` stays each one's, but for the key `should_skip`.

        Raises:
          TypeError: `opt` is no transformation; k is no integer; `use_grad_mean` is no bool; `should_skip_update_fn`
            is not callable; `accumulator_dtype` is not floating; `axis_name` is no name; when first traced: what the
            schedule or the skip function returns has the wrong type.
          ValueError: k is below 1; `max_squared_norm` of `skip_large_updates` is negative or NaN; when first traced:
            the schedule returns a Python or numpy integer below 1, or `axis_name` is no axis there.
        """
        self._opt = _checks.transformation("MultiSteps: opt", opt)
        self._every_k = _every_k(every_k_schedule)
        self._use_grad_mean = _checks.flag(
            "MultiSteps: use_grad_mean", use_grad_mean, "True for the mean of the window, False for its sum"
        )
        self._skip = (
            None
            if should_skip_update_fn is None
            else SkipFunction(
                "MultiSteps: should_skip_update_fn", should_skip_update_fn, together=axis_name is not None
            )
        )
        self._axes = Axes("MultiSteps: axis_name", axis_name)
        self._accumulator_dtype = _accumulator_dtype(accumulator_dtype)

    @property
    def inner_opt(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer that takes a step every k mini-steps."""
        return self._opt

    def init(self, params: Tree) -> optax.MultiStepsState:
        """The state before the first mini-step.

        Args:
          params: the parameters, arrays or `jax.ShapeDtypeStruct`s; or `LookaheadParams`, whose fast tree the gradients
            have.

        Returns:
          `MultiStepsState(mini_step: int32[], gradient_step: int32[], inner_opt_state, acc_grads, skip_state)`;
          `acc_grads` has the shapes of the gradients, and is zero outside a window.
        """
        like = gradient_tree(params)
        state = optax.MultiStepsState(
            mini_step=jnp.zeros([], jnp.int32),
            gradient_step=jnp.zeros([], jnp.int32),
            inner_opt_state=self._opt.init(params),
            acc_grads=jax.tree.map(
                lambda leaf: jnp.zeros_like(leaf, dtype=_widened(self._accumulator_dtype, jnp.result_type(leaf))), like
            ),
            skip_state=() if self._skip is None else self._skip.first_state(params),
        )
        return declare(state, Window(self._every_k, None if self._skip is None else self._skip.max_squared_norm))

    def update(
        self, updates: Tree, state: optax.MultiStepsState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, optax.MultiStepsState]:
        """One mini-step.

        Args:
          updates: the gradients of this mini-step.
          state: the state before it.
          params: the parameters, where the optimizer needs them.
          **extra_args: handed to the optimizer. It sees those of the mini-step that completes the window.

        Returns:
          the optimizer's updates where this mini-step completes the window, else zeros alike; and the new state.
          A window that has more mini-steps than k, because k is smaller now or the state is from a checkpoint made with
          a larger one, is completed by the next mini-step.

        Raises:
          TypeError: `state` is no `MultiStepsState`.
          ValueError: `updates` have other leaves or shapes than the parameters that `init` was given.
        """
        decision = self._decide(updates, state, params)
        window = self._accumulated(decision, updates, state)
        step = step_if(
            decision.emit,
            lambda: self._opt.update(_like(window, updates), state.inner_opt_state, params, **extra_args),
            state.inner_opt_state,
            name="MultiSteps",
            keep_dtypes=True,
        )
        return step.updates, decision.state(step.state, _carried(window, step.taken, state))

    def apply(
        self, grads: Tree, state: optax.MultiStepsState, params: Tree, **extra_args: Any
    ) -> tuple[Tree, optax.MultiStepsState]:
        """One mini-step, applied: what `optwrap.apply_gradients` calls.

        Args:
          grads: the gradients of this mini-step.
          state: the state before it.
          params: the parameters before it.
          **extra_args: handed to the optimizer. It sees those of the mini-step that completes the window.

        Returns:
          the parameters, changed where this mini-step completes the window; and the new state.
        """
        decision = self._decide(grads, state, params)
        window = self._accumulated(decision, grads, state)
        applied = apply_if(
            decision.emit,
            lambda: apply_gradients(self._opt, _like(window, grads), state.inner_opt_state, params, **extra_args),
            params,
            state.inner_opt_state,
            name="MultiSteps",
            keep_dtypes=True,
        )
        return applied.params, decision.state(applied.state, _carried(window, applied.taken, state))

    def flush(
        self, state: optax.MultiStepsState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, optax.MultiStepsState]:
        """Let the optimizer take its step with the mini-steps there are, as at the end of an epoch.

        It gets their mean (or sum), in the dtypes of the parameters. Where the window is empty nothing changes. Whether
        it is, is decided on the device: call this under `jit` like `update`, as often as you like.

        It is a method of the wrapper, for the wrapper's own state. Inside other transformations take that state out of
        theirs and put it back: under `optwrap.instrument`, for one, `updates, inner = steps.flush(state.inner_state,
        params)` and `state = state._replace(inner_state=inner)`. The updates are then those of this wrapper: what the
        others would make of them is not done. It is no call of `update`, so an instrumentation counts no step for it. A
        `MultiSteps` inside takes what comes as one mini-step of its own window: flush that one after.

        Args:
          state: the state after the last mini-step.
          params: the parameters; without them the optimizer gets the dtypes of the accumulator.
          **extra_args: handed to the optimizer.

        Returns:
          the optimizer's updates, or zeros where the window is empty; and the state with an empty window.

        Raises:
          TypeError: `state` is no `MultiStepsState`.
        """
        state = _checks.state("MultiSteps", state, optax.MultiStepsState)
        like = state.acc_grads if params is None else gradient_tree(params)

        def step() -> tuple[Tree, Tree]:
            window = _like(state.acc_grads, like)
            returned: tuple[Tree, Tree] = self._opt.update(window, state.inner_opt_state, params, **extra_args)
            return returned

        taken = step_if(state.mini_step > 0, step, state.inner_opt_state, name="MultiSteps", keep_dtypes=True)
        return taken.updates, optax.MultiStepsState(
            mini_step=jnp.zeros_like(state.mini_step),
            gradient_step=jnp.where(taken.taken, optax.safe_increment(state.gradient_step), state.gradient_step),
            inner_opt_state=taken.state,
            acc_grads=empty_if(taken.taken, state.acc_grads),
            skip_state=not_skipped_if(taken.taken, state.skip_state),
        )

    def has_updated(self, state: optax.MultiStepsState, previous: optax.MultiStepsState | None = None) -> jax.Array:
        """Whether the optimizer took a step in the mini-step (or flush) that led to this state.

        A mini-step left out right after one that completed a window is told apart by `skip_state`, where that is a
        mapping with `should_skip`, as those of `skip_not_finite` and `skip_large_updates` are. With the state before it
        the answer is right for every skip function, up to 2**31 - 1 optimizer steps. There the counter stands still,
        and the answer is that without the state before.

        Args:
          state: the state after the mini-step.
          previous: the state before it.

        Returns:
          bool[].

        Raises:
          TypeError: one of them is no `MultiStepsState`.
        """
        state = _checks.state("MultiSteps.has_updated", state, optax.MultiStepsState)
        updated = jnp.logical_and(state.mini_step == 0, state.gradient_step > 0)
        if (skipped := said_to_skip(state.skip_state)) is not None:
            updated = jnp.logical_and(updated, jnp.logical_not(skipped))
        if previous is None:
            return updated
        previous = _checks.state("MultiSteps.has_updated", previous, optax.MultiStepsState)
        return jnp.where(
            previous.gradient_step == _checks.INT32_MAX, updated, state.gradient_step != previous.gradient_step
        )

    def gradient_transformation(self) -> Fused:
        """The same as a transformation that takes extra args, for `optax.chain` and others."""
        return Fused(self.init, self.update, self.apply)

    def _decide(self, updates: Tree, state: optax.MultiStepsState, params: Tree | None) -> Decision:
        state = _checks.state("MultiSteps", state, optax.MultiStepsState)
        _checks.alike(
            "MultiSteps: updates", updates, state.acc_grads, "the accumulator", "pass the gradients of these parameters"
        )
        together = self._axes.here()
        skip, skip_state = (
            (None, ()) if self._skip is None else self._skip(updates, state.gradient_step, params, together)
        )
        # From k on, not at k: a traced k may have come down in the middle of a window.
        complete = state.mini_step >= self._every_k(state.gradient_step) - 1
        emit = complete if skip is None else complete & ~skip
        mini_step = jnp.where(emit, 0, optax.safe_increment(state.mini_step))
        return Decision(
            skip=skip,
            emit=emit,
            mini_step=mini_step if skip is None else jnp.where(skip, state.mini_step, mini_step),
            gradient_step=jnp.where(emit, optax.safe_increment(state.gradient_step), state.gradient_step),
            skip_state=skip_state,
        )

    def _accumulated(self, decision: Decision, updates: Tree, state: optax.MultiStepsState) -> Tree:
        """The mean (or sum) of the window after this mini-step, in the wider dtype of gradients and accumulator."""

        def taken_in(update: Any, accumulated: jax.Array) -> jax.Array:
            update, accumulated = computable(update), computable(accumulated)
            # The first mini-step overwrites: what is left in the accumulator, NaN for one, is of no window.
            before = jnp.where(state.mini_step == 0, jnp.zeros_like(accumulated), accumulated)
            with jax.numpy_dtype_promotion("standard"):
                share = (update - before) / (state.mini_step + 1) if self._use_grad_mean else update
                after = jnp.add(before, share)
            return after if decision.skip is None else jnp.where(decision.skip, cast(accumulated, after.dtype), after)

        return jax.tree.map(taken_in, updates, state.acc_grads)


def _like(window: Tree, updates: Tree) -> Tree:
    """What the optimizer is given of a window: in the dtypes of the updates."""
    return jax.tree.map(lambda leaf, update: cast(leaf, jnp.result_type(update)), window, updates)


def _carried(window: Tree, emitted: jax.Array, state: optax.MultiStepsState) -> Tree:
    """The accumulator after the mini-step, in the dtypes it had: zero after the last of a window.

    `emitted` comes out of the optimizer's step, which reads the window: so it is emptied after that, and in place.
    """
    return empty_if(emitted, jax.tree.map(lambda leaf, before: cast(leaf, before.dtype), window, state.acc_grads))


def _every_k(every_k_schedule: Any) -> Callable[[jax.Array], jax.Array]:
    """The function of the gradient step that returns k: int32[], at least 1."""
    remedy = "give the number of mini-steps per optimizer step"
    if not callable(every_k_schedule):
        k = _checks.integer("MultiSteps: every_k_schedule", every_k_schedule, 1, remedy + ", or a function that does")
        return lambda _: as_int32(k, 1)

    def schedule(gradient_step: jax.Array) -> jax.Array:
        k = every_k_schedule(gradient_step)
        returned = "MultiSteps: what every_k_schedule returns"
        # What is computed on the device cannot raise there: the type is checked, and the value brought into range.
        if isinstance(k, jax.Array):
            _checks.integer_type(returned, k, "an integer scalar", remedy)
        else:
            k = _checks.integer(returned, k, 1, remedy)
        return as_int32(k, 1)

    return schedule


def _accumulator_dtype(dtype: Any) -> np.dtype[Any] | None:
    if dtype is None:
        return None
    remedy = "pass jnp.float32, another floating dtype, or None for that of the parameters"
    try:
        canonical = jax.dtypes.canonicalize_dtype(dtype)
    except TypeError as error:
        raise TypeError(f"MultiSteps: accumulator_dtype must be a dtype, got {dtype!r}: {remedy}") from error
    if not jnp.issubdtype(canonical, jnp.inexact):
        raise TypeError(f"MultiSteps: accumulator_dtype must be floating or complex, got {canonical}: {remedy}")
    return canonical


def _widened(accumulator: np.dtype[Any] | None, leaf: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of a leaf's accumulator: the one asked for, wide enough for the default not to lose anything."""
    if accumulator is None:
        return leaf
    if jnp.issubdtype(leaf, jnp.complexfloating) or (accumulator == jnp.float32 and leaf == jnp.float64):
        return common_dtype(accumulator, leaf)
    return accumulator
