"""The state of `instrument`, and `reading`, which finds it in any optimizer state."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class InstrumentState(NamedTuple):
    """State of `instrument`: the state of the wrapped transformation, and the counters.

    The counters are saved in checkpoints with the state, so they cover the whole training, not one process.

    The fields of the wrapped state are attributes of this one, too: `opt_state.hyperparams` of
    `optax.inject_hyperparams`, `opt_state.gradient_step` of `MultiSteps`. Names that begin with an underscore are not,
    nor are `count` and `index`, which every tuple has: read those of `opt_state.inner_state`.
    """

    inner_state: Any
    """The state of the wrapped transformation, unchanged."""
    counters: dict[str, jax.Array]
    """The packed counters, uint32[words], under the instrumentation's name. (A dict's key is static: it is no leaf.)
    This array is also the reading; get it with `optwrap.reading`."""

    def __getattr__(self, name: str) -> Any:
        # Fields only: libraries ask objects for methods to find out what they are, and this is a tuple.
        if not name.startswith("_") and name in _fields(self.inner_state):
            return getattr(self.inner_state, name)
        fields = ", ".join(_fields(self)) or "none"
        raise AttributeError(
            f"InstrumentState has no attribute {name!r}, and the state inside it, a {type(self.inner_state).__name__}, "
            f"has no such field; there are: {fields}",
            name=name,
            obj=self,
        )


def _fields(state: Any) -> tuple[str, ...]:
    """The names that can be read from a state: its own fields, and for an `InstrumentState` those inside it."""
    if dataclasses.is_dataclass(state):
        return tuple(field.name for field in dataclasses.fields(state))
    own: tuple[str, ...] = getattr(type(state), "_fields", ())
    return own + _fields(state.inner_state) if isinstance(state, InstrumentState) else own


def reading(state: Any, name: str | None = None) -> jax.Array:
    """The reading of the instrumentation in `state`: return it from your jitted step.

    Args:
      state: an optimizer state, or any tree that holds one, with the state of an `instrument` anywhere in it.
      name: the `name` of the `instrument`, needed if `state` holds several.

    Returns:
      uint32[words]: 35 words, one more for each accumulation window and each injected hyperparameter, and two more for
      each parameter. It is a new array, safe to keep when `state` is donated, and the same on every device. If the
      state has leading axes (vmap, pmap), so has the reading. `optwrap.unpack` reads it.

    Raises:
      TypeError: `name` is not a string.
      ValueError: there is no such instrumentation in `state`, or several.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(
            f"reading: name must be a string, got {name!r} ({type(name).__name__}): pass the name given to instrument"
        )
    every = list(_instrumentations((), state))
    fitting = [(path, key, counters) for path, key, counters in every if name in (None, key)]
    if len(fitting) == 1:
        return jnp.array(fitting[0][2], copy=True)

    found = ", ".join(f"{key!r} at state{jax.tree_util.keystr(path)}" for path, key, _ in every) or "none"
    if not every:
        remedy = "wrap the optimizer, tx = optwrap.instrument(tx), before tx.init, and pass the state that it returns"
    elif not fitting:
        remedy = "pass the name of one of these"
    elif name is None:
        remedy = "choose one with reading(state, name=...)"
        if len({key for _, key, _ in every}) < len(every):
            remedy = "give each its own name, instrument(tx, name=...), and " + remedy
    else:
        remedy = "give each its own name, instrument(tx, name=...)"
    wanted = "one instrumentation" if name is None else f"one instrumentation named {name!r}"
    raise ValueError(f"reading: expected {wanted} in the state, found {found}: {remedy}")


def has_instrumentation(state: Any) -> bool:
    """Whether the state of an `instrument` is anywhere in `state`."""
    return next(_instrumentations((), state), None) is not None


def _instrumentations(path: tuple[Any, ...], tree: Any) -> Iterator[tuple[tuple[Any, ...], str, Any]]:
    """Path, name and counters of every instrumentation in `tree`, the outermost first."""

    def is_state(node: Any) -> bool:
        return isinstance(node, InstrumentState)

    for inside, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_state):
        if is_state(node):
            for name, counters in node.counters.items():
                yield (*path, *inside), name, counters
            inner = jax.tree_util.GetAttrKey("inner_state")
            yield from _instrumentations((*path, *inside, inner), node.inner_state)
