"""`adopt`: turns the state of an optimizer that was not instrumented into a state of the instrumented optimizer."""

from collections.abc import Iterator
from typing import Any

import jax

from optwrap._core.checks import shown
from optwrap._reading.state import InstrumentState

Fresh = Iterator[dict[str, jax.Array]]
"""Counters at zero, one entry for each instrumentation, in the order in which the state's nodes are visited."""


def adopt(tx: Any, opt_state: Any, params: Any) -> Any:
    """The state with which `tx` continues from a state that was saved before `tx` was instrumented.

    Restore the old checkpoint into the state that the optimizer had then. `adopt` adds the state of every `instrument`
    that is new in `tx`, with all counters at zero::

        old = restore(checkpoint, like=jax.eval_shape(before.init, params))
        opt_state = optwrap.adopt(optwrap.instrument(before, monitor), old, params)

    The arrays in `opt_state` are kept as they are, on their devices; the new counters are placed as a jitted `init`
    places them. An instrumentation that `opt_state` already has keeps its counters, so adopting a state twice does no
    harm. Steps are counted from the adopted state on, however long the training has already run. A window that is
    partly filled is assumed to hold finite values.

    Args:
      tx: the instrumented transformation, or one with instrumented transformations inside: nested, chained, in
        MultiSteps.
      opt_state: the state of the same optimizer without these instrumentations, or without some of them.
      params: the parameters, as for `tx.init`; they may be sharded.

    Returns:
      A state with the structure of `tx.init(params)`.

    Raises:
      ValueError: `opt_state` is the state of another optimizer, or of one for other parameters; the message says where
        the two first differ.
    """
    wanted = jax.eval_shape(tx.init, params)
    # Under jit the counters are placed as a jitted init places them, and the rest of init is never computed.
    fresh = jax.jit(lambda params: [state.counters for state in _instrumented(tx.init(params))])(params)
    return _adopted(wanted, opt_state, iter(fresh), "opt_state")


def _is_instrumented(node: Any) -> bool:
    return isinstance(node, InstrumentState)


def _instrumented(tree: Any) -> list[InstrumentState]:
    """The state of every instrumentation in a tree, each before those inside it."""
    states = []
    for state in filter(_is_instrumented, jax.tree.leaves(tree, is_leaf=_is_instrumented)):
        states += [state, *_instrumented(state.inner_state)]
    return states


def _adopted(wanted: Any, given: Any, fresh: Fresh, where: str) -> Any:
    """`given` in the structure of `wanted`; counters that it lacks are taken from `fresh`."""
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
        _adopted_part(one, part, fresh, where + jax.tree_util.keystr(path))
        for one, part, path in zip(expected, parts, paths, strict=True)
    )


def _adopted_part(wanted: Any, given: Any, fresh: Fresh, where: str) -> Any:
    """`given` as a leaf or an instrumentation's state like `wanted`."""
    if not _is_instrumented(wanted):
        if getattr(given, "shape", None) != wanted.shape or getattr(given, "dtype", None) != wanted.dtype:
            raise ValueError(
                f"{where}: expected {wanted.dtype}{list(wanted.shape)}, got {shown(given)}: it is the state of an "
                "optimizer for other parameters; pass the parameters that it was saved with, and if it is stacked for "
                "pmap adopt it row by row: jax.vmap(functools.partial(optwrap.adopt, tx))(opt_state, params)"
            )
        return given
    counters = next(fresh)
    if not _is_instrumented(given) or _belongs_inside(given, wanted):
        return InstrumentState(_adopted(wanted.inner_state, given, fresh, f"{where}.inner_state"), counters)
    if (of := list(given.counters)) != (names := list(wanted.counters)):
        raise ValueError(
            f"{where}: expected the instrumentation {names[0]!r}, got {of[0]!r}: give instrument the name that the "
            "checkpoint was made under"
        )
    # The inner state first: if it is of another optimizer, that is what the error should say.
    inner_state = _adopted(wanted.inner_state, given.inner_state, fresh, f"{where}.inner_state")
    return InstrumentState(inner_state, _adopted(wanted.counters, given.counters, fresh, f"{where}.counters"))


def _belongs_inside(given: InstrumentState, wanted: InstrumentState) -> bool:
    """Whether `given` is the state of an instrumentation inside `wanted`, not that of `wanted` itself."""
    if given.counters.keys() == wanted.counters.keys():
        return False
    return any(given.counters.keys() == state.counters.keys() for state in _instrumented(wanted.inner_state))
