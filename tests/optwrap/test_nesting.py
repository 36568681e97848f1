"""Non-finite values, anywhere, in any micro-batch, under every nesting of two wrappers."""

import itertools
from typing import Any

import jax
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optwrap
from tests.optwrap.faults import POSITIONS, STEPS, VALUES_NOT_FINITE, batches_with, faults_of, is_finite
from tests.optwrap.transformations import (
    FLOAT32,
    OPTAX_RAISES,
    OURS_PAIRS,
    OURS_SINGLES,
    PAIRS,
    SINGLES,
    WRAPPERS,
    After,
    Case,
    as_optax_has_it,
    assert_same,
    run,
)

pytestmark = pytest.mark.thin(3)

CASES = [case for case in SINGLES if case.name in WRAPPERS] + PAIRS + OURS_SINGLES[:1] + OURS_PAIRS

faults = faults_of(VALUES_NOT_FINITE)
quick = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


def by_name(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def guards_parameters(case: Case) -> bool:
    """Whether every gradient passes a guard: `masked` passes masked-out gradients around the guard inside it."""
    return case.guarded and not case.name.startswith("masked")


@by_name([case for case in CASES if guards_parameters(case)])
@quick
@given(faults=faults)
def test_no_non_finite_value_reaches_the_parameters(case: Case, faults: dict[int, Any]) -> None:
    """While a guard is within its limit the parameters stay finite, wherever it sits in the nest."""
    for after in run(case, optwrap, FLOAT32, batches_with(faults)):
        assert is_finite(after.params)


@by_name([case for case in CASES if case.rejects_outermost])
@quick
@given(faults=faults)
def test_a_rejected_step_changes_only_what_counts_it(case: Case, faults: dict[int, Any]) -> None:
    """Updates are zero, the parameters have the same bits, and only the guard's counters differ."""
    batches = batches_with(faults)
    trail = run(case, optwrap, FLOAT32, batches)
    for grads, (before, after) in zip(batches, itertools.pairwise(trail), strict=True):
        if is_finite(grads):
            continue
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(after.updates))
        assert_same(after.params, before.params)
        assert_same(without_figures(after.state), without_figures(before.state))


def without_figures(state: Any) -> Any:
    """The state without the counters of its outermost guard."""
    if isinstance(state, optwrap.ApplyIfFiniteState):
        return state._replace(notfinite_count=(), last_finite=(), total_notfinite=())
    if isinstance(state, optwrap.SkipIfState):
        return (state.gradient_step, state.inner_state)
    if isinstance(state, optwrap.SkipSpikesState):
        return state.inner_state
    assert isinstance(state, optwrap.MultiStepsState)
    return state._replace(skip_state=())


@by_name([case for case in CASES if case.rejects_outermost and case.name not in OPTAX_RAISES])
@quick
@given(faults=faults)
def test_skipping_equals_training_without_the_batch(case: Case, faults: dict[int, Any]) -> None:
    """Parameters and inner state are those of optax on the same batches without the bad ones, bit for bit."""
    batches = batches_with(faults)
    ours = run(case, optwrap, FLOAT32, batches)[-1]
    clean = run(case, optax, FLOAT32, [grads for grads in batches if is_finite(grads)])[-1]
    assert_same(ours.params, clean.params)
    if isinstance(ours.state, optwrap.SkipIfState | optwrap.SkipSpikesState):
        assert_same(as_optax_has_it(ours.state), clean.state)
    else:
        assert_same(as_optax_has_it(without_figures(ours.state)), without_figures(clean.state))


@by_name([case for case in CASES if case.name.startswith("multi_steps")])
@quick
@given(faults=faults)
def test_a_bad_window_does_not_affect_the_next(case: Case, faults: dict[int, Any]) -> None:
    """The accumulator after a completed window is zero, and finite where the window's own gradients were."""
    window_finite = True
    batches = batches_with(faults)
    trail = run(case, optwrap, FLOAT32, batches)
    for grads, after in zip(batches, trail[1:], strict=True):
        skipped = "should_skip" in after.state.skip_state and bool(after.state.skip_state["should_skip"])
        window_finite = window_finite and (is_finite(grads) or skipped)
        assert is_finite(after.state.acc_grads) or not window_finite
        if after.state.mini_step == 0 and not skipped:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(after.state.acc_grads))
            window_finite = True


@by_name([case for case in CASES if case.name.startswith("multi_steps")])
@quick
@given(faults=faults)
def test_a_mini_step_before_the_last_updates_nothing(case: Case, faults: dict[int, Any]) -> None:
    """Before the last of a window: zero updates and an untouched inner state, whatever was accumulated."""
    trail = run(case, optwrap, FLOAT32, batches_with(faults))
    for before, after in itertools.pairwise(trail):
        if after.state.gradient_step == before.state.gradient_step:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(after.updates))
            assert_same(after.state.inner_opt_state, before.state.inner_opt_state)


@by_name([case for case in CASES if not case.guarded])
@quick
@given(step=st.integers(0, STEPS - 1), position=POSITIONS, value=VALUES_NOT_FINITE)
def test_without_a_guard_a_bad_value_changes_only_its_element(
    case: Case, step: int, position: Any, value: float
) -> None:
    """Elementwise transformations do not spread it."""
    fine = run(case, optwrap, FLOAT32, batches_with({}))
    bad = run(case, optwrap, FLOAT32, batches_with({step: [(position, value)]}))
    leaf, index = position
    for expected, actual in zip(fine, bad, strict=True):
        for params, others in zip(trees_of(expected), trees_of(actual), strict=True):
            leaves, other_leaves = ([np.array(x) for x in jax.tree.leaves(tree)] for tree in (params, others))
            leaves[leaf].flat[index] = other_leaves[leaf].flat[index] = 0.0
            jax.tree.map(np.testing.assert_array_equal, other_leaves, leaves)


def trees_of(after: After) -> tuple[Any, ...]:
    """The parameters: one tree, or the fast and the slow one."""
    return tuple(after.params) if isinstance(after.params, optwrap.LookaheadParams) else (after.params,)


@pytest.mark.parametrize("limit", [0, 1, 3])
@quick
@given(data=st.data())
def test_the_guard_gives_up_and_recovers_as_optax_does(limit: int, data: st.DataObject) -> None:
    """For any sequence of batches: N bad ones are rejected, further ones accepted until a finite one."""
    bad = data.draw(st.lists(st.booleans(), min_size=STEPS, max_size=STEPS))
    batches = batches_with({step: [((0, 0), np.nan)] for step in range(STEPS) if bad[step]})
    case = LIMITED[limit]
    for mine, other in zip(run(case, optwrap, FLOAT32, batches), run(case, optax, FLOAT32, batches), strict=True):
        assert_same(mine, other)


def limited(limit: int) -> Case:
    return Case(f"limit_{limit}", (lambda library, inner: library.apply_if_finite(inner, limit),))


LIMITED = {limit: limited(limit) for limit in (0, 1, 3)}


def test_the_table_has_every_nesting_of_two() -> None:
    """Except lookahead where the transformation around it cannot take a pair of parameters."""
    assert len(WRAPPERS) == 6
    assert {f"{outer}-{inner}" for outer in WRAPPERS for inner in WRAPPERS} - {case.name for case in PAIRS} == {
        "masked-lookahead",
        "lookahead-lookahead",
    }
