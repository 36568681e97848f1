"""`adopt`: turns the state of an optimizer that was not instrumented into a state of the instrumented optimizer."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from optwrap._core.checks import is_concrete, shown
from optwrap._reading.counters import VERSION
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
    places them. An instrumentation that `opt_state` already has keeps its counters, so it is safe to adopt a state
    twice. Earlier steps of the training are not counted. A partly filled window is assumed to hold finite values.

    Args:
      tx: the instrumented transformation, or one with instrumented transformations inside: nested, chained, in
        MultiSteps.
      opt_state: the state of the same optimizer without these instrumentations, or without some of them.
      params: the parameters, as for `tx.init`; they may be sharded.

    Returns:
      A state with the structure of `tx.init(params)`.

    Raises:
      ValueError: `opt_state` is the state of another optimizer, or of the same one for other parameters. The message
        has the path of the first difference. Or another version of optwrap made its counters.
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
    """`given` with the structure of `wanted`; missing counters are taken from `fresh`."""
    structure: Any
    expected, structure = jax.tree.flatten(wanted, is_leaf=_is_instrumented)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(wanted, is_leaf=_is_instrumented)]
    try:
        # Without the values: JAX's message would contain all of them.
        structure.flatten_up_to(jax.tree.map(lambda _: ..., given))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where}: expected the state of the same optimizer, instrumented or not, got a {type(given).__name__} of "
            f"another structure: {str(error)[:300]}: restore the checkpoint into the state that the optimizer had then"
        ) from error
    parts = structure.flatten_up_to(given)
    return structure.unflatten(
        _adopted_part(one, part, fresh, where + jax.tree_util.keystr(path))
        for one, part, path in zip(expected, parts, paths, strict=True)
    )


def _adopted_part(wanted: Any, given: Any, fresh: Fresh, where: str) -> Any:
    """`_adopted` for one part of the state: a leaf, or the state of an instrumentation."""
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
            f"{where}: expected the instrumentation {names[0]!r}, got {of[0]!r}: give instrument the name "
            "with which the checkpoint was made"
        )
    # The inner state first: if it belongs to another optimizer, the error should be about that.
    inner_state = _adopted(wanted.inner_state, given.inner_state, fresh, f"{where}.inner_state")
    kept = _adopted(wanted.counters, given.counters, fresh, f"{where}.counters")
    _check_version(kept[names[0]], f"{where}.counters[{names[0]!r}]")
    return InstrumentState(inner_state, kept)


def _check_version(counters: Any, where: str) -> None:
    if isinstance(counters, jax.Array | np.ndarray) and is_concrete(counters):
        versions = np.unique(jax.device_get(counters)[..., 0])
        if versions.size and (versions != VERSION).any():
            raise ValueError(
                f"{where}: expected counters with the layout version {VERSION:#x}, got {int(versions[0]):#x}: another "
                "version of optwrap made them; to count from zero, adopt the inner_state of this instrumentation"
            )


def _belongs_inside(given: InstrumentState, wanted: InstrumentState) -> bool:
    """Whether `given` is the state of an instrumentation inside `wanted`, not that of `wanted` itself."""
    if given.counters.keys() == wanted.counters.keys():
        return False
    return any(given.counters.keys() == state.counters.keys() for state in _instrumented(wanted.inner_state))
