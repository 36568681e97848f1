"""`MultiSteps`: one step of the optimizer from the gradients of several mini-steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optwrap._core import checks as _checks
from optwrap._core.apply_gradients import Fused, apply_gradients
from optwrap._core.collectives import Axes, AxisName
from optwrap._core.cond import apply_if, empty_if, step_if
from optwrap._core.declarations import Window, declare
from optwrap._core.trees import Tree, gradient_tree, select
from optwrap._wrappers.skip_functions import ShouldSkipUpdateFunction, SkipFunction, not_skipped_if, should_skip_of
from optwrap._wrappers.weights import Weights, no_weights, weights_in
from optwrap._wrappers.window import accumulated, as_gradients, checked_dtype, every_k, next_accumulator, zeros


class Decision(NamedTuple):
    """The decision about one mini-step, made before anything is accumulated."""

    skip: jax.Array | None
    """bool[]: the mini-step is skipped; None if there is no skip function."""
    emit: jax.Array
    """bool[]: the mini-step completes the window, and the optimizer takes a step."""
    mini_step: jax.Array
    """int32[]: mini-steps in the window after this one."""
    gradient_step: jax.Array
    """int32[]: optimizer steps after this one."""
    skip_state: Any
    """The skip function's state, together with the weights if there are any."""
    weights: Weights | None
    """The window's weights, this mini-step included; None if mini-steps have no weights."""

    def state(self, inner_opt_state: Tree, acc_grads: Tree) -> optax.MultiStepsState:
        """The wrapper's state after the mini-step, with this inner state and accumulator."""
        return optax.MultiStepsState(
            mini_step=self.mini_step,
            gradient_step=self.gradient_step,
            inner_opt_state=inner_opt_state,
            acc_grads=acc_grads,
            skip_state=self.skip_state,
        )


class MultiSteps(optax.MultiSteps):  # type: ignore[misc]  # optax ships no types
    """Accumulate the gradients of `k` mini-steps, and let the optimizer take one step with their mean or sum.

    Mini-steps before the k-th return zero updates; the optimizer runs on the k-th only. The class has `init` and
    `update` like a transformation; `gradient_transformation()` returns a real one, for `optax.chain`.

        >>> steps = MultiSteps(optax.sgd(1.0), every_k_schedule=2)
        >>> state = steps.init(jnp.zeros(2))
        >>> updates, state = steps.update(jnp.array([1.0, 2.0]), state)
        >>> print(updates, steps.has_updated(state))
        [0. 0.] False
        >>> updates, state = steps.update(jnp.array([3.0, 4.0]), state)
        >>> print(updates, steps.has_updated(state))
        [-2. -3.] True

    Drop-in for `optax.MultiSteps` (optax 0.2.8), with the same state. It is a subclass of it only so that
    `isinstance` is true: no method is inherited. A non-finite mini-step that is not skipped makes the mean of its own
    window non-finite, but not that of the next one. `docs/reference/differences-from-optax.md` lists the differences.

    With `weighted=True`, `update` takes a `weight=`, such as the number of tokens of the mini-step. The optimizer gets
    `sum(weight * gradient) / sum(weight)`, or with `use_grad_mean=False` the numerator. A mini-step of weight 0 adds
    nothing, even if its gradients are non-finite, but counts as a mini-step. A traced weight that is negative or
    non-finite counts as 0. A window whose weights sum to 0 ends without a step of the optimizer, and `gradient_step`
    does not rise. The weights are kept in `skip_state`, so neither optax nor a `MultiSteps` without weights can
    continue from this state.
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
          every_k_schedule: k, an integer from 1 of Python, numpy or JAX, which may be traced; or a function from the
            gradient step, int32[], to k. A JAX array below 1 counts as 1.
          use_grad_mean: whether the optimizer gets the mean of the window's gradients, or their sum.
          should_skip_update_fn: chooses the mini-steps to skip. A skipped mini-step changes only `skip_state`.
          accumulator_dtype: floating dtype of the accumulator, or None for that of the parameters. With float32,
            float64 parameters have a float64 accumulator; complex parameters always have a complex one.
          weighted: whether mini-steps have weights. If so, every `update` needs a `weight=`.
          axis_name: axes of the `shard_map` or `pmap` in which `update` is called, along which the gradients differ.
            The devices along them decide together: if one of them skips a mini-step, all skip it. The `skip_state` of
            `skip_not_finite` and `skip_large_updates` then covers the gradients of all. Any other skip function runs on
            each device separately, and its `skip_state` may differ between devices, except `should_skip`.

        Raises:
          TypeError: an argument has the wrong type; in `update`: the schedule or the skip function returns the wrong
            type.
          ValueError: k is below 1; `max_squared_norm` of `skip_large_updates` is negative or NaN; in `update`: the
            schedule returns a Python or numpy integer below 1, or there is no axis `axis_name`.
        """
        # super().__init__ is not called, because every method of optax's class is replaced.
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
        self._weighted = _checks.flag("MultiSteps: weighted", weighted, "pass whether update is given a weight")
        self._axes = Axes("MultiSteps: axis_name", axis_name)
        self._accumulator_dtype = checked_dtype(accumulator_dtype)

    @property
    def inner_opt(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer that takes a step every k mini-steps."""
        return self._opt

    def init(self, params: Tree) -> optax.MultiStepsState:
        """The state before the first mini-step.

        Args:
          params: the parameters, arrays or `jax.ShapeDtypeStruct`s; or `LookaheadParams`, where gradients have the tree
            of `fast`.

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
          params: the parameters, if the optimizer needs them.
          **extra_args: passed on to the optimizer, which gets those of the mini-step that completes the window. With
            `weighted=True` a `weight` is required: a real scalar from 0, possibly traced. It is not passed on.

        Returns:
          The optimizer's updates if this mini-step completes the window, else zeros of their shapes; and the new state.
          If the window already has k mini-steps or more, because k has become smaller or the state is from a checkpoint
          with a larger k, the next mini-step completes it.

        Raises:
          TypeError: `state` is not a `MultiStepsState`; `weight` is missing, or not a real scalar.
          ValueError: `updates` have other leaves or shapes than the parameters in `init`; `weight` is not traced, and
            not from 0 to 1e30; `state` has no weights although `weighted=True`.
        """
        weight, extra_args = self._weight(extra_args)
        decision = self._decide(updates, state, params, weight)
        window = accumulated(updates, state, decision.skip, decision.weights, mean=self._use_grad_mean)
        step = step_if(
            decision.emit,
            lambda: self._opt.update(as_gradients(window, updates), state.inner_opt_state, params, **extra_args),
            state.inner_opt_state,
            name="MultiSteps",
            keep_dtypes=True,
        )
        return step.updates, decision.state(step.state, next_accumulator(window, step.taken, state))

    def apply(
        self, grads: Tree, state: optax.MultiStepsState, params: Tree, **extra_args: Any
    ) -> tuple[Tree, optax.MultiStepsState]:
        """One mini-step, with its updates applied; `optwrap.apply_gradients` calls this.

        Args:
          grads: the gradients of this mini-step.
          state: the state before it.
          params: the parameters before it.
          **extra_args: as for `update`.

        Returns:
          The parameters, changed if this mini-step completes the window; and the new state.

        Raises:
          TypeError: as `update`.
          ValueError: as `update`.
        """
        weight, extra_args = self._weight(extra_args)
        decision = self._decide(grads, state, params, weight)
        window = accumulated(grads, state, decision.skip, decision.weights, mean=self._use_grad_mean)
        applied = apply_if(
            decision.emit,
            lambda: apply_gradients(
                self._opt, as_gradients(window, grads), state.inner_opt_state, params, **extra_args
            ),
            params,
            state.inner_opt_state,
            name="MultiSteps",
            keep_dtypes=True,
        )
        return applied.params, decision.state(applied.state, next_accumulator(window, applied.taken, state))

    def flush(
        self, state: optax.MultiStepsState, params: Tree | None = None, **extra_args: Any
    ) -> tuple[Tree, optax.MultiStepsState]:
        """Take a step of the optimizer with the mini-steps that are in the window, for example at the end of an epoch.

        The optimizer gets their mean (or sum) in the dtypes of the parameters. If the window is empty, or its weights
        sum to 0, the optimizer takes no step. The device decides this, so `flush` can be called under `jit`, at any
        time.

        `flush` takes the wrapper's own state. If the wrapper is inside other transformations, take its state out of
        their state and put the new one back. Under `optwrap.instrument`::

            updates, inner = steps.flush(state.inner_state, params)
            state = state._replace(inner_state=inner)

        The transformations around it do not see these updates, and an instrumentation counts no step. A `MultiSteps`
        inside this one takes the mean as one mini-step of its own window: flush it afterwards.

        Args:
          state: the state after the last mini-step.
          params: the parameters; without them the optimizer gets gradients in the dtypes of the accumulator.
          **extra_args: passed on to the optimizer.

        Returns:
          The optimizer's updates, or zeros if it takes no step; and the state with an empty window.

        Raises:
          TypeError: `state` is not a `MultiStepsState`.
          ValueError: `state` has no weights although `weighted=True`.
        """
        state = _checks.state("MultiSteps", state, optax.MultiStepsState)
        grads = state.acc_grads if params is None else gradient_tree(params)

        def step() -> tuple[Tree, Tree]:
            window = as_gradients(state.acc_grads, grads)
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

        With `previous` the answer is right for every skip function, until the counter saturates at 2**31 - 1 steps.
        Without it, a skip right after a completed window is recognised only if `skip_state` is a mapping with
        `should_skip`, as it is for `skip_not_finite` and `skip_large_updates`. A flush of an empty window does not
        change the state, so the answer stays the same.

        Args:
          state: the state after the mini-step.
          previous: the state before it.

        Returns:
          bool[].

        Raises:
          TypeError: one of them is not a `MultiStepsState`.
          ValueError: `state` has no weights although `weighted=True`.
        """
        state = _checks.state("MultiSteps.has_updated", state, optax.MultiStepsState)
        updated = jnp.logical_and(state.mini_step == 0, state.gradient_step > 0)
        if (skipped := should_skip_of(state.skip_state)) is not None:
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
        """This wrapper as a transformation that takes extra args, for `optax.chain` and others."""
        cls = type(self)
        # If a subclass overrides `update` alone, this `apply` would bypass it.
        can_apply = cls.update is MultiSteps.update or cls.apply is not MultiSteps.apply
        return Fused(self.init, self.update, self.apply if can_apply else None)

    def _weight(self, extra_args: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The weight of this mini-step (None if not weighted), and the extra args for the optimizer."""
        if not self._weighted:
            return None, extra_args
        if extra_args.get("weight") is None:
            raise TypeError(
                "MultiSteps: weight must be given to update, since weighted=True, got none: pass weight=, the weight "
                "of this mini-step, or leave out weighted; of two nested MultiSteps make only one weighted, because "
                "the outer one does not pass its weight on"
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
        # >=, not ==: k may have become smaller in the middle of a window.
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
