"""One step of the optimizer from several mini-batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optwrap import _checks
from optwrap._declarations import Window, declare
from optwrap._devices import Axes, AxisName
from optwrap._inner import apply_if, empty_if, step_if
from optwrap._trees import Tree, gradient_tree, select
from optwrap._windows import accumulated, carried, checked_dtype, every_k, handed_on, zeros
from optwrap.fused import Fused, apply_gradients
from optwrap.skipping import ShouldSkipUpdateFunction, SkipFunction, not_skipped_if, said_to_skip
from optwrap.weighting import Weights, no_weights, weights_in


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
    """What the skip function said; with the weights, where there are any."""
    weights: Weights | None
    """Those of the window, this mini-step taken in; None where all count the same."""

    def state(self, inner_opt_state: Tree, acc_grads: Tree) -> optax.MultiStepsState:
        """The wrapper's state after the mini-step, with the inner state and the accumulator that came of it."""
        return optax.MultiStepsState(
            mini_step=self.mini_step,
            gradient_step=self.gradient_step,
            inner_opt_state=inner_opt_state,
            acc_grads=acc_grads,
            skip_state=self.skip_state,
        )


class MultiSteps(optax.MultiSteps):  # type: ignore[misc]  # optax ships no types
    """Accumulate the gradients of `k` mini-steps, and let the optimizer take one step with their mean or sum.

    Mini-steps before the k-th return zero updates; the optimizer itself runs on the k-th only. It has `init` and
    `update` like a transformation; `gradient_transformation()` is one, for `optax.chain`.

        >>> steps = MultiSteps(optax.sgd(1.0), every_k_schedule=2)
        >>> state = steps.init(jnp.zeros(2))
        >>> updates, state = steps.update(jnp.array([1.0, 2.0]), state)
        >>> print(updates, steps.has_updated(state))
        [0. 0.] False
        >>> updates, state = steps.update(jnp.array([3.0, 4.0]), state)
        >>> print(updates, steps.has_updated(state))
        [-2. -3.] True

    Drop-in for `optax.MultiSteps` (optax 0.2.8), with the same state; it is one to `isinstance`, and takes nothing else
    from it. A mini-step that is not finite, and that no skip function leaves out, makes the mean of its own window not
    finite, and of no other. See `docs/reference/differences-from-optax.md` for the rest.

    With `weighted=True` mini-steps count for as much as the `weight=` that `update` is given says, such as their number
    of tokens: the optimizer gets `sum(weight * gradient) / sum(weight)`, or with `use_grad_mean=False` the numerator. A
    mini-step of weight 0 contributes nothing, whatever its gradients are, and counts as a mini-step; so does one whose
    weight is negative or not finite, where only the device knows. A window that weighs nothing ends without a step of
    the optimizer: `gradient_step` stays. The weights are kept in `skip_state`, so a state of this mode is none that
    optax, or a `MultiSteps` without it, can go on with.
    """

    def __init__(
        self,
        opt: optax.GradientTransformation,
        every_k_schedule: ArrayLike | Callable[[jax.Array], ArrayLike],
        use_grad_mean: bool = True,
        should_skip_update_fn: ShouldSkipUpdateFunction | None = None,
        accumulator_dtype: DTypeLike | None = jnp.float32,
        *,
        weighted: bool = False,
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
          weighted: whether mini-steps have weights: then every `update` must be given one, `weight=`.
          axis_name: axes of the `shard_map` or `pmap` in which `update` is called, along which the gradients differ:
            the devices along them decide together. A mini-step that one of them leaves out is left out by all, and
            `skip_state` is what `skip_not_finite` or `skip_large_updates` say of the gradients of all. A skip function
            of your own is asked on each device; its `skip_state` stays each one's, but for the key `should_skip`.

        Raises:
          TypeError: `opt` is no transformation; k is no integer; `use_grad_mean` or `weighted` is no bool;
            `should_skip_update_fn` is not callable; `accumulator_dtype` is not floating; `axis_name` is no name; when
            first traced: what the schedule or the skip function returns has the wrong type.
          ValueError: k is below 1; `max_squared_norm` of `skip_large_updates` is negative or NaN; when first traced:
            the schedule returns a Python or numpy integer below 1, or `axis_name` is no axis there.
        """
        # Not super().__init__: nothing of optax's own is used, every method of its is replaced.
        self._opt = _checks.transformation("MultiSteps: opt", opt)
        self._every_k_schedule = every_k(every_k_schedule)
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
        self._weighted = _checks.flag("MultiSteps: weighted", weighted, "say whether update is given a weight")
        self._axes = Axes("MultiSteps: axis_name", axis_name)
        self._accumulator_dtype = checked_dtype(accumulator_dtype)

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
        skip_state = () if self._skip is None else self._skip.first_state(params)
        state = optax.MultiStepsState(
            mini_step=jnp.zeros([], jnp.int32),
            gradient_step=jnp.zeros([], jnp.int32),
            inner_opt_state=self._opt.init(params),
            acc_grads=zeros(gradient_tree(params), self._accumulator_dtype),
            skip_state=no_weights().beside(skip_state) if self._weighted else skip_state,
        )
        limit = None if self._skip is None else self._skip.max_squared_norm
        return declare(state, Window(self._every_k_schedule, limit, self._weighted))

    def update(
        self, updates: Tree, state: optax.MultiStepsState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, optax.MultiStepsState]:
        """One mini-step.

        Args:
          updates: the gradients of this mini-step.
          state: the state before it.
          params: the parameters, where the optimizer needs them.
          **extra_args: handed to the optimizer. It sees those of the mini-step that completes the window. With
            `weighted=True` they have a `weight`, a real scalar from 0, traced or not, that is not handed on.

        Returns:
          the optimizer's updates where this mini-step completes the window, else zeros alike; and the new state.
          A window that has more mini-steps than k, because k is smaller now or the state is from a checkpoint made with
          a larger one, is completed by the next mini-step.

        Raises:
          TypeError: `state` is no `MultiStepsState`; `weight` is missing, or no real scalar.
          ValueError: `updates` have other leaves or shapes than the parameters that `init` was given; `weight` is known
            now, and no number from 0 to 1e30; `state` holds no weights.
        """
        weight, extra_args = self._weight(extra_args)
        decision = self._decide(updates, state, params, weight)
        window = accumulated(updates, state, decision.skip, decision.weights, mean=self._use_grad_mean)
        step = step_if(
            decision.emit,
            lambda: self._opt.update(handed_on(window, updates), state.inner_opt_state, params, **extra_args),
            state.inner_opt_state,
            name="MultiSteps",
            keep_dtypes=True,
        )
        return step.updates, decision.state(step.state, carried(window, step.taken, state))

    def apply(
        self, grads: Tree, state: optax.MultiStepsState, params: Tree, **extra_args: Any
    ) -> tuple[Tree, optax.MultiStepsState]:
        """One mini-step, applied: what `optwrap.apply_gradients` calls.

        Args:
          grads: the gradients of this mini-step.
          state: the state before it.
          params: the parameters before it.
          **extra_args: handed to the optimizer. It sees those of the mini-step that completes the window. With
            `weighted=True` they have a `weight`, a real scalar from 0, traced or not, that is not handed on.

        Returns:
          the parameters, changed where this mini-step completes the window; and the new state.
        """
        weight, extra_args = self._weight(extra_args)
        decision = self._decide(grads, state, params, weight)
        window = accumulated(grads, state, decision.skip, decision.weights, mean=self._use_grad_mean)
        applied = apply_if(
            decision.emit,
            lambda: apply_gradients(self._opt, handed_on(window, grads), state.inner_opt_state, params, **extra_args),
            params,
            state.inner_opt_state,
            name="MultiSteps",
            keep_dtypes=True,
        )
        return applied.params, decision.state(applied.state, carried(window, applied.taken, state))

    def flush(
        self, state: optax.MultiStepsState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, optax.MultiStepsState]:
        """Let the optimizer take its step with the mini-steps there are, as at the end of an epoch.

        It gets their mean (or sum), in the dtypes of the parameters. Where the window is empty, or weighs nothing, the
        optimizer takes no step. Whether it is, is decided on the device: call this under `jit` like `update`, as
        often as you like.

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
        grads = state.acc_grads if params is None else gradient_tree(params)

        def step() -> tuple[Tree, Tree]:
            window = handed_on(state.acc_grads, grads)
            returned: tuple[Tree, Tree] = self._opt.update(window, state.inner_opt_state, params, **extra_args)
            return returned

        some = state.mini_step > 0
        if self._weighted:
            some = some & self._axes.here().largest(weights_in(state.skip_state).total > 0)
        taken = step_if(some, step, state.inner_opt_state, name="MultiSteps", keep_dtypes=True)
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
        and the answer is that without the state before. A flush of an empty window leaves the state, and so the answer,
        as it was.

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
        if self._weighted:
            updated = jnp.logical_and(updated, weights_in(state.skip_state).total > 0)
        if previous is None:
            return updated
        previous = _checks.state("MultiSteps.has_updated", previous, optax.MultiStepsState)
        return jnp.where(
            previous.gradient_step == _checks.INT32_MAX, updated, state.gradient_step != previous.gradient_step
        )

    def gradient_transformation(self) -> Fused:
        """The same as a transformation that takes extra args, for `optax.chain` and others."""
        cls = type(self)
        # An `update` of a subclass is the step, too, unless it has an `apply` beside it: this one would pass it by.
        both = cls.update is MultiSteps.update or cls.apply is not MultiSteps.apply
        return Fused(self.init, self.update, self.apply if both else None)

    def _weight(self, extra_args: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The weight of this mini-step, None where there are none; and the extra args of the optimizer."""
        if not self._weighted:
            return None, extra_args
        if extra_args.get("weight") is None:
            raise TypeError(
                "MultiSteps: weight must be given to update, since weighted=True, got none: pass weight=, what this "
                "mini-step counts for, or leave out weighted; a MultiSteps around this one that is weighted itself "
                "takes the weight, and hands none on: let one of the two be"
            )
        return extra_args["weight"], {name: value for name, value in extra_args.items() if name != "weight"}

    def _decide(
        self, updates: Tree, state: optax.MultiStepsState, params: Tree | None, weight: ArrayLike | None
    ) -> Decision:
        state = _checks.state("MultiSteps", state, optax.MultiStepsState)
        _checks.alike(
            "MultiSteps: updates", updates, state.acc_grads, "the accumulator", "pass the gradients of these parameters"
        )
        together = self._axes.here()
        skip, skip_state = (
            (None, ()) if self._skip is None else self._skip(updates, state.gradient_step, params, together)
        )
        # From k on, not at k: a traced k may have come down in the middle of a window.
        complete = state.mini_step >= self._every_k_schedule(state.gradient_step) - 1
        complete = complete if skip is None else complete & ~skip
        emit, weights = complete, None
        if weight is not None:
            before = weights_in(state.skip_state)
            weights = before.plus(weight, state.mini_step == 0)
            emit = complete & together.largest(weights.total > 0)
            kept = weights if skip is None else Weights(*select(skip, before, weights))
            skip_state = kept.beside(skip_state)
        mini_step = jnp.where(complete, 0, optax.safe_increment(state.mini_step))
        return Decision(
            skip=skip,
            emit=emit,
            mini_step=mini_step if skip is None else jnp.where(skip, state.mini_step, mini_step),
            gradient_step=jnp.where(emit, optax.safe_increment(state.gradient_step), state.gradient_step),
            skip_state=skip_state,
            weights=weights,
        )
