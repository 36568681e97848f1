"""Declarations: the limits, schedules and periods of a wrapper that are not in its state.

The states are optax's own classes, and have no field for a limit. So a wrapper *declares* its limit in `init`. To learn
the limits, `instrument` traces `init` again under `collecting()`. Outside of that `declare` does nothing.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
from jax.typing import ArrayLike

State = TypeVar("State")


class Guard(NamedTuple):
    """Declared by apply_if_finite for its ApplyIfFiniteState."""

    max_consecutive_errors: ArrayLike
    """Non-finite steps in a row that it rejects before it gives up (int32)."""
    gives_up: bool = True
    """Whether it gives up after the limit. If not, it also rejects the non-finite steps after it."""


class Window(NamedTuple):
    """Declared by MultiSteps for its MultiStepsState."""

    every_k: Callable[[jax.Array], ArrayLike]
    """Mini-steps per gradient step, as a function of the gradient step (int32 -> int32)."""
    max_squared_norm: ArrayLike | None = None
    """The limit of skip_large_updates, if that is the skip function."""
    weighted: bool = False
    """Whether mini-steps have weights, in its skip_state."""


class Limit(NamedTuple):
    """Declared by skip_if for its SkipIfState."""

    max_squared_norm: ArrayLike | None
    """The limit of skip_large_updates, if that is the skip function."""


class Sync(NamedTuple):
    """Declared by lookahead for its LookaheadState."""

    sync_period: ArrayLike
    """Fast steps per synchronisation (int32)."""


Declaration = Guard | Window | Limit | Sync


class Collected:
    """Declarations by the identity of the state object they were made for."""

    def __init__(self) -> None:
        # The state is kept beside its declaration, because an id is unique only while its object lives.
        self._by_id: dict[int, tuple[object, Declaration]] = {}

    def add(self, state: object, declaration: Declaration) -> None:
        self._by_id[id(state)] = (state, declaration)

    def of(self, state: object) -> Declaration | None:
        """The declaration for exactly this state object; None if there is none, as for optax's own wrappers."""
        entry = self._by_id.get(id(state))
        return entry[1] if entry is not None and entry[0] is state else None


_current: contextvars.ContextVar[Collected | None] = contextvars.ContextVar("optwrap_declarations", default=None)


def declare(state: State, declaration: Declaration) -> State:
    """Record `declaration` for `state` if declarations are being collected. Returns `state` itself."""
    collected = _current.get()
    if collected is not None:
        collected.add(state, declaration)
    return state


@contextlib.contextmanager
def collecting() -> Iterator[Collected]:
    """Collect the declarations made inside the block, in this thread or task only."""
    collected = Collected()
    token = _current.set(collected)
    try:
        yield collected
    finally:
        _current.reset(token)


def walk(state: Any, node_types: tuple[type, ...]) -> Iterator[Any]:
    """Every node of one of `node_types` in `state`, depth first, outermost first, in the tree's own order.

    Unlike `jax.tree.leaves(..., is_leaf=...)` this also looks inside the nodes that it yields.
    """

    def is_node(node: Any) -> bool:
        return isinstance(node, node_types)

    for node in jax.tree.leaves(state, is_leaf=is_node):
        if is_node(node):
            yield node
            yield from walk(tuple(node), node_types)
