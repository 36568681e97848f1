"""A checkpoint of one library continues under the other, from any step, with the same bits."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest

import optwrap
from tests.optwrap.checkpoints import through_flax, through_orbax
from tests.optwrap.transformations import (
    FLOAT32,
    GUARDS,
    OPTAX_RAISES,
    PAIRS,
    SINGLES,
    TREES,
    UNOPTIMIZED,
    After,
    Case,
    assert_close,
    assert_same,
    compiled,
    gradients,
    run,
    stepper,
)

pytestmark = pytest.mark.thin(7)

Tree = Any
Through = Callable[[Tree, Tree, pathlib.Path], Tree]

STEPS = 8
BAD_STEPS = (2, 3, 6)
"""With k = 2 the first is skipped right after an emit, the second after a skip, the third in a window's middle."""
MOMENTS = (1, 2, 3, 8)
"""After how many steps a nesting of two is saved: in a middle, after an emit, after a skip, in a middle again."""
LIBRARIES = {"optax": optax, "optwrap": optwrap}
BOTH_WAYS = pytest.mark.parametrize("first", ["optax", "optwrap"])
MIXED = {name: leaf for name, leaf in TREES["mixed"].items() if name != "no_values"}  # orbax saves no array without any
NESTED = [case for case in PAIRS if case.name not in OPTAX_RAISES]


THROUGH = pytest.mark.parametrize("through", [through_orbax, through_flax])


def batches_for(case: Case, tree: Tree) -> list[Tree]:
    """Gradients for every step. Some are non-finite, if optax handles those correctly in this case."""
    batches = [gradients(tree, step) for step in range(STEPS)]
    if case.rejects_outermost or case.name in {f"lookahead-{guard}" for guard in GUARDS}:
        for step in BAD_STEPS:
            batches[step] = jax.tree.map(lambda leaf: leaf * leaf.dtype.type(np.nan), batches[step])
    return batches


def assert_goes_on(case: Case, tree: Tree, first: Any, through: Through, directory: pathlib.Path) -> None:
    """Save under `first` after some or all steps, restore under the other, and take the remaining steps.

    They give the same bits, but for a window in a window: XLA contracts its two means differently in the two programs.
    """
    same = assert_close if case.name == "multi_steps-multi_steps" else assert_same
    second = optax if first is optwrap else optwrap
    batches = batches_for(case, tree)
    trail = run(case, first, tree, batches, "unoptimized")
    moments = range(STEPS + 1) if case in SINGLES else MOMENTS
    saved = [{"params": trail[moment].params, "state": trail[moment].state} for moment in moments]
    init, step = compiled(case, second, "unoptimized")
    params = case.params(tree)
    like = [{"params": params, "state": jax.eval_shape(init, params)}] * len(saved)
    for moment, restored in zip(moments, through(saved, like, directory), strict=True):
        after = After(restored["params"], restored["state"], None)
        assert_same((after.params, after.state), (trail[moment].params, trail[moment].state))
        for grads, expected in zip(batches[moment:], trail[moment + 1 :], strict=True):
            after = step(grads, after.state, after.params)
            same(after, expected)


@THROUGH
@BOTH_WAYS
@pytest.mark.parametrize("case", SINGLES, ids=lambda case: case.name)
def test_a_checkpoint_of_one_library_continues_under_the_other(
    case: Case, first: str, through: Through, tmp_path: pathlib.Path
) -> None:
    """In the middle of a window, after a step, after a skip: the remaining steps give the same bits."""
    assert_goes_on(case, FLOAT32, LIBRARIES[first], through, tmp_path)


@BOTH_WAYS
@pytest.mark.parametrize("case", NESTED, ids=lambda case: case.name)
def test_checkpoints_of_nested_wrappers_continue_too(case: Case, first: str, tmp_path: pathlib.Path) -> None:
    """Checkpoints by orbax are slow, so only every other nesting uses them, in one direction."""
    through = through_orbax if NESTED.index(case) % 2 == (first == "optax") else through_flax
    assert_goes_on(case, FLOAT32, LIBRARIES[first], through, tmp_path)


@THROUGH
@BOTH_WAYS
@pytest.mark.parametrize("case", [case for case in SINGLES[:6] if case.name != "flatten"], ids=lambda case: case.name)
def test_checkpoints_of_mixed_dtypes_and_none_continue_too(
    case: Case, first: str, through: Through, tmp_path: pathlib.Path
) -> None:
    """float32, bfloat16 and float16 beside each other, and None. optax.flatten makes float32 of them all."""
    assert_goes_on(case, MIXED, LIBRARIES[first], through, tmp_path)


@functools.cache
def instrumented(case: Case, library: Any) -> tuple[Any, Callable[[Tree, Tree, Tree], After]]:
    """The case under `optwrap.instrument`, and a jitted step of it."""
    tx = optwrap.instrument(case.build(library))
    return tx, jax.jit(stepper(tx), compiler_options=UNOPTIMIZED)


def test_the_saved_steps_cover_every_kind() -> None:
    """In the middle of a window, after a complete one, and skips in both places."""
    (case,) = [case for case in SINGLES if case.name == "multi_steps_skip_not_finite"]
    states = [after.state for after in run(case, optwrap, FLOAT32, batches_for(case, FLOAT32))]
    moments = [
        (int(state.mini_step), int(state.gradient_step), bool(state.skip_state["should_skip"])) for state in states
    ]
    assert moments == [
        (0, 0, False),
        (1, 0, False),
        (0, 1, False),
        (0, 1, True),
        (0, 1, True),
        (1, 1, False),
        (0, 2, False),
        (0, 2, True),
        (1, 2, False),
    ]


@BOTH_WAYS
@pytest.mark.parametrize("case", SINGLES[:6], ids=lambda case: case.name)
def test_the_counters_of_a_checkpoint_continue(case: Case, first: str, tmp_path: pathlib.Path) -> None:
    """Restored around the other library's wrapper, the instrumentation ends with the same totals."""
    batches = batches_for(case, FLOAT32)
    half = STEPS // 2
    libraries = [optax, optwrap] if first == "optax" else [optwrap, optax]

    def counted(libraries: list[Any]) -> list[Any]:
        """The reading after every step: half of them under the first library, half under the second."""
        params = case.params(FLOAT32)
        tx, step = instrumented(case, libraries[0])
        after = After(params, tx.init(params), None)
        readings = []
        for i, grads in enumerate(batches):
            if i == half and libraries[0] is not libraries[1]:
                tx, step = instrumented(case, libraries[1])
                like = After(params, jax.eval_shape(tx.init, params), ())
                after = After(*through_orbax(after._replace(updates=()), like, tmp_path))
            after = step(grads, after.state, after.params)
            readings.append(optwrap.reading(after.state))
        return readings

    changed, unchanged = counted(libraries), counted([libraries[1]] * 2)
    for mine, other in zip(changed[half:], unchanged[half:], strict=True):
        np.testing.assert_array_equal(mine, other)
