"""`settle` empties what optax leaves in an empty window, and changes nothing else."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap
from tests.optwrap.fused import EVERY, run_fused
from tests.optwrap.transformations import (
    FLOAT32,
    PAIRS,
    SINGLES,
    Case,
    assert_same,
    assert_same_types,
    by_name,
    gradients,
)


def test_settle_empties_the_accumulator_of_an_empty_window() -> None:
    """Optax continues correctly from a settled state; windows that are not empty do not change."""
    params = {"w": jnp.ones(3)}
    tx = optax.MultiSteps(optax.sgd(0.5), 2)
    state = tx.init(params)
    for value in (jnp.nan, 1.0):
        _, state = tx.update({"w": jnp.full(3, value)}, state, params)
    assert state.mini_step == 0
    assert jnp.isnan(state.acc_grads["w"]).all()

    settled = jax.jit(optwrap.settle)(state)
    assert_same(settled._replace(acc_grads=state.acc_grads), state)
    for value in (1.0, 3.0):
        updates, settled = tx.update({"w": jnp.full(3, value)}, settled, params)
    np.testing.assert_array_equal(updates["w"], np.full(3, -1.0))

    _, open_window = tx.update({"w": jnp.ones(3)}, settled, params)
    assert_same(optwrap.settle(open_window), open_window)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, open_window)
    both = optwrap.settle({"nested": (stacked,)})["nested"][0]
    np.testing.assert_array_equal(both.acc_grads["w"], np.array([np.zeros(3), np.ones(3)]))


@pytest.mark.parametrize("options", [{}, {"use_grad_mean": False}, {"weighted": True}], ids=["mean", "sum", "weighted"])
def test_the_accumulator_of_an_empty_window_has_no_effect(options: dict[str, Any]) -> None:
    """Steps from the unsettled and from the settled state give the same bits."""
    tx = optwrap.MultiSteps(optax.sgd(0.5), 2, should_skip_update_fn=optwrap.skip_not_finite, **options)
    extra = {"weight": 2.0} if "weighted" in options else {}

    def update(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params = {"w": jnp.ones(3)}
    for step in (jax.jit(update), jax.jit(functools.partial(optwrap.apply_gradients, tx, **extra))):

        def trained(left: float, step: Any = step) -> Any:
            after = (params, tx.init(params)._replace(acc_grads={"w": jnp.full(3, left)}))
            for number in range(3):
                after = step(gradients(params, number), after[1], after[0])
            return after

        for left in (jnp.nan, jnp.inf, 7.0):
            assert_same(trained(left), trained(0.0))


@by_name([case for case in [*SINGLES, *PAIRS] if "multi_steps" in case.name])
def test_settle_takes_abstract_states(case: Case) -> None:
    """Shapes, dtypes and shardings, as a checkpoint is restored into, stay the same."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    transformation, params = case.build(optwrap), case.params(FLOAT32)
    state = jax.tree.map(lambda leaf: leaf.update(sharding=sharding), jax.eval_shape(transformation.init, params))
    assert jax.tree.leaves(state) == jax.tree.leaves(optwrap.settle(state))
    assert_same_types(jax.eval_shape(optwrap.settle, transformation.init(params)), state)


@by_name([case for case in EVERY if "multi_steps" in case.name])
def test_settle_does_not_change_a_settled_state(case: Case) -> None:
    batches = [gradients(FLOAT32, step) for step in range(4)]
    for after in run_fused(case, FLOAT32, batches):
        assert_same(optwrap.settle(after.state), after.state)
