"""What is known of the wrappers in a state: limits, schedules and periods that the state itself does not hold.

optwrap's own wrappers declare them when their `init` is traced (`optwrap._core.declarations`); optax's do not.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.typing import ArrayLike

from optwrap._core.declarations import Declaration, Guard, Limit, Sync, Window, collecting, walk
from optwrap._core.trees import as_int32
from optwrap._wrappers.skip_if import SkipIfState

WRAPPERS: Final = (optax.ApplyIfFiniteState, optax.MultiStepsState, optax.LookaheadState, SkipIfState)
"""The states of the wrappers that have something to say."""

_INJECTED: Final = (optax.schedules.InjectHyperparamsState, optax.schedules.InjectStatefulHyperparamsState)


class Known(NamedTuple):
    """What a wrapper of optwrap said of itself."""

    limit: jax.Array | None
    """int32[]: errors in a row it rejects, mini-steps of the window now open, or fast steps per synchronisation; None
    where it comes from a computation that cannot be followed."""
    squared_norm: jax.Array | None
    """float32[]: the squared norm from which it skips as large; None where it does not."""
    gives_up: bool = True
    """Of apply_if_finite: whether it accepts what comes after the limit."""
    weighted: bool = False
    """Of MultiSteps: whether its skip_state holds the weight of the last mini-step."""


class Wrapper(NamedTuple):
    """One wrapper in the optimizer, before and after the call under way."""

    old: Any
    """Its state before: one of WRAPPERS."""
    new: Any
    """Its state after."""
    known: Known | None
    """None for optax's own, which say nothing."""
    inside: "tuple[Wrapper, ...]"
    """The outermost of the wrappers inside it."""


def wrappers(init: Callable[[Any], Any], params: Any, old: Any, new: Any) -> tuple[Wrapper, ...]:
    """The outermost wrappers of an optimizer, with what they declare.

    Args:
      init: the optimizer's. It is traced for what it declares; nothing of it is computed in the step.
      params: what `init` takes.
      old: the optimizer's state before the call under way.
      new: its state after.
    """
    declared = iter(_declared(init, params, new))

    def pair(old: Any, new: Any) -> Iterator[Wrapper]:
        for before, after in zip(outermost(old, WRAPPERS), outermost(new, WRAPPERS), strict=True):
            said = next(declared, None)
            yield Wrapper(before, after, said and said(after), tuple(pair(tuple(before), tuple(after))))

    return tuple(pair(old, new))


def outermost(state: Any, node_types: tuple[type, ...]) -> list[Any]:
    """The nodes of one of `node_types` in `state` that are in no other such node, in the tree's order."""

    def found(node: Any) -> bool:
        return isinstance(node, node_types)

    return [node for node in jax.tree.leaves(state, is_leaf=found) if found(node)]


def depth_first(found: Iterable[Wrapper]) -> Iterator[Wrapper]:
    """`found` and all inside them, each before what is inside it: the order of `optwrap._core.declarations.walk`."""
    for wrapper in found:
        yield wrapper
        yield from depth_first(wrapper.inside)


# From a wrapper's state after the call to what is known of the wrapper.
_Said = Callable[[Any], Known]


def _declared(init: Callable[[Any], Any], params: Any, new: Any) -> list[_Said | None]:
    """What each wrapper in `new` declares, depth first; None for those that declare nothing."""
    said: list[_Said | None] = []

    def trace(params: Any) -> None:
        with collecting() as collected:
            state = init(params)
        injected = [
            (traced, live.hyperparams[key])
            for found, live in zip(walk(state, _INJECTED), walk(new, _INJECTED), strict=True)
            for key, traced in found.hyperparams.items()
        ]
        for node in walk(state, WRAPPERS):
            declaration = collected.of(node)
            said.append(None if declaration is None else _followed(declaration, injected))

    try:
        jax.eval_shape(trace, params)
    except Exception as error:
        # Whatever it is, the training itself has got on without tracing `init` here, and so will it go on.
        said_why = str(error).partition("\n")[0]
        warnings.warn(
            "instrument: the init of the optimizer cannot be traced in update, so limits and schedules are not "
            f"known ({type(error).__name__}: {said_why}): make init depend on the parameters' shapes and dtypes only",
            RuntimeWarning,
            stacklevel=2,
        )
        return []
    return said


def _followed(declaration: Declaration, injected: list[tuple[Any, Any]]) -> _Said:
    """What `declaration`, made in the trace of `init`, is of a live state.

    Under `optax.inject_hyperparams` a limit is a tracer of that trace, dead outside; `injected` pairs those with the
    hyperparameters of the live state.
    """

    def follow(value: ArrayLike | None) -> ArrayLike | None:
        if isinstance(value, jax.core.Tracer):
            return next((live for traced, live in injected if traced is value), None)
        return value

    match declaration:
        case Guard(max_consecutive_errors=limit, gives_up=gives_up):
            errors = follow(limit)
            return lambda _: Known(_int32(errors), None, gives_up)
        case Sync(sync_period=limit):
            steps = follow(limit)
            return lambda _: Known(_int32(steps), None)
        case Limit(max_squared_norm=limit):
            squared = follow(limit)
            return lambda _: Known(None, _float32(squared))
        case Window():
            schedule = jax.make_jaxpr(declaration.every_k)(np.zeros([], np.int32))
            jaxpr, captured = schedule.jaxpr, [follow(value) for value in schedule.consts]
            squared_norm, weighted = follow(declaration.max_squared_norm), declaration.weighted

            def of_window(state: optax.MultiStepsState) -> Known:
                k = None
                if all(value is not None for value in captured):
                    (k,) = jaxpr_as_fun(ClosedJaxpr(jaxpr, captured))(state.gradient_step)
                return Known(_int32(k), _float32(squared_norm), weighted=weighted)

            return of_window


def _int32(value: ArrayLike | None) -> jax.Array | None:
    return None if value is None else as_int32(value, 0)


def _float32(value: ArrayLike | None) -> jax.Array | None:
    return None if value is None else jnp.asarray(value).astype(jnp.float32)
