"""The wrappers in an optimizer's state, with their limits, schedules and periods, which the state does not hold.

optwrap's own wrappers declare them when their `init` is traced (`optwrap._core.declarations`); optax's do not.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxpr_as_fun
from jax.typing import ArrayLike

from optwrap._core.declarations import Declaration, Guard, Limit, Sync, Window, collecting, walk
from optwrap._core.trees import as_int32
from optwrap._wrappers.skip_if import SkipIfState
from optwrap._wrappers.skip_spikes import SkipSpikesState

WRAPPERS: Final = (optax.ApplyIfFiniteState, optax.MultiStepsState, optax.LookaheadState, SkipIfState, SkipSpikesState)
"""The states from which the outcome and the gauges are read."""

INJECTED: Final = (optax.schedules.InjectHyperparamsState, optax.schedules.InjectStatefulHyperparamsState)
"""The states that hold injected hyperparameters."""


class Limits(NamedTuple):
    """The declarations of a wrapper of optwrap, as values of the current step."""

    limit: jax.Array | None
    """int32[]: for apply_if_finite the non-finite steps in a row that it rejects, for MultiSteps the mini-steps of the
    current window, for lookahead the fast steps per synchronisation; None if it cannot be computed from the state."""
    squared_norm: jax.Array | None
    """float32[]: a step with this squared norm or a larger one is skipped; None if there is no such limit."""
    gives_up: bool = True
    """For apply_if_finite: whether it accepts the non-finite steps after the limit."""
    weighted: bool = False
    """For MultiSteps: whether its skip_state holds the weight of the last mini-step."""


class Wrapper(NamedTuple):
    """One wrapper in the optimizer, before and after the current call."""

    old: Any
    """Its state before: one of WRAPPERS."""
    new: Any
    """Its state after."""
    limits: Limits | None
    """None for optax's own wrappers, which declare nothing."""
    inside: "tuple[Wrapper, ...]"
    """The outermost of the wrappers inside it."""


def wrappers(init: Callable[[Any], Any], params: Any, old: Any, new: Any) -> tuple[Wrapper, ...]:
    """The outermost wrappers of an optimizer, with their declarations.

    Args:
      init: the optimizer's `init`. It is only traced, to collect the declarations; the step does not compute it.
      params: the argument of `init`.
      old: the optimizer's state before the current call.
      new: its state after.
    """
    declared = iter(_declared(init, params, new))

    def pair(old: Any, new: Any) -> Iterator[Wrapper]:
        for before, after in zip(outermost(old, WRAPPERS), outermost(new, WRAPPERS), strict=True):
            limits_of = next(declared, None)
            limits = None if limits_of is None else limits_of(after)
            yield Wrapper(before, after, limits, tuple(pair(tuple(before), tuple(after))))

    return tuple(pair(old, new))


def outermost(state: Any, node_types: tuple[type, ...]) -> list[Any]:
    """The nodes of one of `node_types` in `state` that are not inside another such node, in the tree's order."""

    def is_node(node: Any) -> bool:
        return isinstance(node, node_types)

    return [node for node in jax.tree.leaves(state, is_leaf=is_node) if is_node(node)]


def depth_first(outer: Iterable[Wrapper]) -> Iterator[Wrapper]:
    """All wrappers, each before those inside it: the order of `optwrap._core.declarations.walk`."""
    for wrapper in outer:
        yield wrapper
        yield from depth_first(wrapper.inside)


# From a wrapper's state after the call to its limits.
_LimitsOf = Callable[[Any], Limits]


def _declared(init: Callable[[Any], Any], params: Any, new: Any) -> list[_LimitsOf | None]:
    """The declared limits of each wrapper in `new`, depth first; None for a wrapper that declares nothing."""
    declared: list[_LimitsOf | None] = []

    def trace(params: Any) -> None:
        with collecting() as collected:
            state = init(params)
        injected = [
            (traced, live.hyperparams[key])
            for node, live in zip(walk(state, INJECTED), walk(new, INJECTED), strict=True)
            for key, traced in node.hyperparams.items()
        ]
        for node in walk(state, WRAPPERS):
            declaration = collected.of(node)
            declared.append(None if declaration is None else _limits_of(declaration, injected))

    try:
        jax.eval_shape(trace, params)
    except Exception as error:
        # Only the gauges of limits need this trace, so the training goes on.
        first_line = str(error).partition("\n")[0]
        warnings.warn(
            "instrument: the init of the optimizer cannot be traced in update, so limits and schedules are not "
            f"known ({type(error).__name__}: {first_line}): make init depend on the parameters' shapes and dtypes only",
            RuntimeWarning,
            stacklevel=2,
        )
        return []
    return declared


def _limits_of(declaration: Declaration, injected: list[tuple[Any, Any]]) -> _LimitsOf:
    """A function from a wrapper's state to its limits, from a declaration that was made while `init` was traced.

    Under `optax.inject_hyperparams` a declared value is a tracer of that trace, and `injected` pairs those tracers with
    the hyperparameters of the current state. The function must not refer to such a tracer, because `jax.checking_leaks`
    would report a leak.
    """

    def live(value: ArrayLike | None) -> ArrayLike | None:
        if isinstance(value, jax.core.Tracer):
            return next((live for traced, live in injected if traced is value), None)
        return value

    match declaration:
        case Guard(max_consecutive_errors=limit, gives_up=gives_up):
            errors = live(limit)
            return lambda _: Limits(_int32(errors), None, gives_up)
        case Sync(sync_period=limit):
            steps = live(limit)
            return lambda _: Limits(_int32(steps), None)
        case Limit(max_squared_norm=limit):
            squared = live(limit)
            return lambda _: Limits(None, _float32(squared))
        case Window(every_k=schedule, max_squared_norm=limit, weighted=weighted):
            squared, every_k = live(limit), _live_schedule(schedule, live)
            return lambda state: Limits(_int32(every_k(state.gradient_step)), _float32(squared), weighted=weighted)


def _live_schedule(
    schedule: Callable[[jax.Array], ArrayLike], live: Callable[[ArrayLike | None], ArrayLike | None]
) -> Callable[[jax.Array], ArrayLike | None]:
    """The schedule, with each captured tracer replaced by its live value. It returns None if a value is unknown."""
    traced = jax.make_jaxpr(schedule)(np.zeros([], np.int32))
    captured = [live(value) for value in traced.consts]
    if any(value is None for value in captured):
        return lambda _: None
    every_k = jaxpr_as_fun(traced.replace(consts=captured))  # type: ignore[no-untyped-call]  # JAX leaves it untyped
    return lambda gradient_step: every_k(gradient_step)[0]


def _int32(value: ArrayLike | None) -> jax.Array | None:
    return None if value is None else as_int32(value, 0)


def _float32(value: ArrayLike | None) -> jax.Array | None:
    return None if value is None else jnp.asarray(value).astype(jnp.float32)
