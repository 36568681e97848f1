"""`adopt`: an optimizer's state from before it was instrumented, as one of the instrumented optimizer."""

from typing import Any, Final

import jax

from optwrap._core.checks import shown
from optwrap._reading.counters import Counters, InstrumentState

_ROOMS: Final = ("waiting", "gauges")
"""Counters whose size is no property of the optimizer."""


def adopt(tx: Any, opt_state: Any, params: Any) -> Any:
    """The state that `tx` goes on with from a state that was saved before it was instrumented.

    Restore the old checkpoint into the state of the optimizer as it was then; `adopt` puts the state of every
    `instrument` that is new in `tx` where its `init` has it, with all counters at zero:

        old = restore(checkpoint, like=jax.eval_shape(before.init, params))
        opt_state = optwrap.adopt(optwrap.instrument(before, monitor), old, params)

    Arrays are taken over as they are, wherever they are; the new counters are placed as a jitted `init` places them.
    Instrumentations that the state has already keep their counters, so it does no harm to adopt a state twice; those
    of an older optwrap, which had other gauges, go on counting too, without the gauges of their last call. Steps
    are counted from the adopted state on, whatever the training has lived before; a window that is partly filled is
    taken to hold finite values.

    Args:
      tx: the instrumented transformation, or any that has instrumented ones in it: nested, chained, in MultiSteps.
      opt_state: the state of the same optimizer without them, or without some of them.
      params: the parameters, as for `tx.init`; they may be sharded.

    Returns:
      A state with the structure of `tx.init(params)`.

    Raises:
      ValueError: `opt_state` is the state of another optimizer, or of one for other parameters; the message says where
        the two differ first.
    """
    wanted = jax.eval_shape(tx.init, params)
    # Jitted, so that they are put where those of a jitted init are; what else init would make is never computed.
    fresh = iter(jax.jit(lambda params: [state.counters for state in _instrumented(tx.init(params))])(params))
    return _adopted(wanted, opt_state, fresh, "opt_state")


def _is_instrumented(node: Any) -> bool:
    return isinstance(node, InstrumentState)


def _instrumented(tree: Any) -> list[InstrumentState]:
    """Every instrumentation's state in a tree, each before those inside it."""
    found = []
    for state in filter(_is_instrumented, jax.tree.leaves(tree, is_leaf=_is_instrumented)):
        found += [state, *_instrumented(state.inner_state)]
    return found


def _adopted(wanted: Any, given: Any, fresh: Any, where: str) -> Any:
    """`given` in the structure of `wanted`; counters that lack are the next of `fresh`, which come as they are met."""
    structure: Any
    expected, structure = jax.tree.flatten(wanted, is_leaf=_is_instrumented)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(wanted, is_leaf=_is_instrumented)]
    try:
        parts = structure.flatten_up_to(given)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where}: expected the state of the same optimizer, instrumented or not, got a {type(given).__name__} of "
            f"another structure: {error}: restore the checkpoint into the state that the optimizer had then"
        ) from error
    return structure.unflatten(
        _part(one, part, fresh, where + jax.tree_util.keystr(path))
        for one, part, path in zip(expected, parts, paths, strict=True)
    )


def _is_inside(given: InstrumentState, wanted: InstrumentState) -> bool:
    """Whether an instrumentation that is there belongs inside one that is new, and not in its place."""
    if given.counters.keys() == wanted.counters.keys():
        return False
    return any(given.counters.keys() == state.counters.keys() for state in _instrumented(wanted.inner_state))


def _room_as(fresh: dict[str, Counters], given: dict[str, Counters]) -> dict[str, Counters]:
    """`given` with the room that `fresh` has for steps that wait, and for the last call's gauges, where it has other.

    With another `emit` there is other room for the first, and with an optwrap that knows of more gauges for both. What
    was in it is not taken over: no count is.
    """

    def fitted(old: Counters, new: Counters) -> Counters:
        other = {name: getattr(new, name) for name in _ROOMS if _shape(old, name) != _shape(new, name)}
        return old._replace(**other)

    return {name: fitted(old, fresh[name]) for name, old in given.items()}


def _shape(counters: Counters, name: str) -> tuple[int, ...] | None:
    shape: tuple[int, ...] | None = getattr(getattr(counters, name), "shape", None)
    return shape


def _part(wanted: Any, given: Any, fresh: Any, where: str) -> Any:
    if not _is_instrumented(wanted):
        if getattr(given, "shape", None) != wanted.shape or getattr(given, "dtype", None) != wanted.dtype:
            raise ValueError(
                f"{where}: expected {wanted.dtype}{list(wanted.shape)}, got {shown(given)}: it is the state of an "
                "optimizer for other parameters; pass the parameters that it was saved with, and if it is stacked for "
                "pmap adopt it row by row: jax.vmap(functools.partial(optwrap.adopt, tx))(opt_state, params)"
            )
        return given
    counters = next(fresh)
    if _is_instrumented(given) and not _is_inside(given, wanted):
        if (of := list(given.counters)) != (names := list(wanted.counters)):
            raise ValueError(
                f"{where}: expected the instrumentation {names[0]!r}, got {of[0]!r}: give instrument the name that the "
                "checkpoint was made under"
            )
        like = jax.eval_shape(lambda: counters)
        counters = _adopted(like, _room_as(counters, given.counters), fresh, f"{where}.counters")
        given = given.inner_state
    return wanted._replace(
        inner_state=_adopted(wanted.inner_state, given, fresh, f"{where}.inner_state"), counters=counters
    )
