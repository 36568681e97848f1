"""For tests: the transformations of the table, stepped by `apply_gradients`."""

import functools
from collections.abc import Iterator
from typing import Any

import jax

import optwrap
from tests.optwrap.transformations import OURS_PAIRS, OURS_SINGLES, PAIRS, SINGLES, After, Case

EVERY = [*SINGLES, *PAIRS, *OURS_SINGLES, *OURS_PAIRS]

CHOSEN = [*SINGLES, *OURS_SINGLES] + [
    case
    for case in PAIRS
    if set(case.name.split("-")) <= {"apply_if_finite", "multi_steps_skip_not_finite", "masked", "lookahead"}
]
"""For what takes long to compile: each wrapper, and pairs of those that decide with those that hand on."""


def instrumented(case: Case) -> Any:
    return optwrap.instrument(case.build(optwrap))


@functools.cache
def fused(case: Case, watched: bool = False) -> tuple[Any, Any]:
    """The jitted init of a case, and its step through `apply_gradients`."""
    transformation = instrumented(case) if watched else case.build(optwrap)
    step = functools.partial(optwrap.apply_gradients, transformation)
    return jax.jit(transformation.init), jax.jit(step)


def run_fused(case: Case, tree: Any, batches: list[Any]) -> Iterator[After]:
    init, step = fused(case)
    params = case.params(tree)
    state = init(params)
    yield After(params, state, None)
    for grads in batches:
        params, state = step(grads, state, params)
        yield After(params, state, None)
