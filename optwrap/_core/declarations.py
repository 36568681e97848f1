"""What a wrapper knows at construction and its state does not say: limits, schedules, periods.

The states are optax's own classes, so they carry no limit. A wrapper therefore *declares* it while its `init` is
traced, and whoever wants to know (`telemetry.instrument`) traces `init` again under `collecting()` and reads what was
said. Outside a collection `declare` does nothing, so the wrappers know nothing of who listens.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
from jax.typing import ArrayLike

State = TypeVar("State")


class Guard(NamedTuple):
    """What apply_if_finite declares for its ApplyIfFiniteState."""

    max_consecutive_errors: ArrayLike
    """Errors in a row it rejects before it gives up (int32)."""
    gives_up: bool = True
    """Whether it does: else it rejects those after them, too."""


class Window(NamedTuple):
    """What MultiSteps declares for its MultiStepsState."""

    every_k: Callable[[jax.Array], ArrayLike]
    """Mini-steps per gradient step, from the gradient step (int32 -> int32)."""
    max_squared_norm: ArrayLike | None = None
    """skip_large_updates' limit, where that is the skip function."""
    weighted: bool = False
    """Whether mini-steps have weights, which its skip_state then holds."""


class Limit(NamedTuple):
    """What skip_if declares for its SkipIfState."""

    max_squared_norm: ArrayLike | None
    """skip_large_updates' limit, where that is the skip function."""


class Sync(NamedTuple):
    """What lookahead declares for its LookaheadState."""

    sync_period: ArrayLike
    """Fast steps per synchronisation (int32)."""


Declaration = Guard | Window | Limit | Sync


class Collected:
    """Declarations by the identity of the state object they were made for."""

    def __init__(self) -> None:
        # The state itself is kept beside what was said of it: an id means something only while its object lives.
        self._by_id: dict[int, tuple[object, Declaration]] = {}

    def add(self, state: object, declaration: Declaration) -> None:
        self._by_id[id(state)] = (state, declaration)

    def of(self, state: object) -> Declaration | None:
        """What was declared for exactly this state object; None where nothing was (optax's own say nothing)."""
        entry = self._by_id.get(id(state))
        return entry[1] if entry is not None and entry[0] is state else None


_current: contextvars.ContextVar[Collected | None] = contextvars.ContextVar("optwrap_declarations", default=None)


def declare(state: State, declaration: Declaration) -> State:
    """Say `declaration` of `state` to whoever collects; returns `state` itself, for `return declare(state, ...)`."""
    collected = _current.get()
    if collected is not None:
        collected.add(state, declaration)
    return state


@contextlib.contextmanager
def collecting() -> Iterator[Collected]:
    """Collect what is declared inside the block, in this thread or task only."""
    collected = Collected()
    token = _current.set(collected)
    try:
        yield collected
    finally:
        _current.reset(token)


def walk(state: Any, node_types: tuple[type, ...]) -> Iterator[Any]:
    """Every node of one of `node_types` in `state`, depth first, outermost first, in the tree's own order.

    Unlike `jax.tree.leaves(..., is_leaf=...)` it also looks inside the nodes it finds.
    """

    def found(node: Any) -> bool:
        return isinstance(node, node_types)

    for node in jax.tree.leaves(state, is_leaf=found):
        if found(node):
            yield node
            yield from walk(tuple(node), node_types)
