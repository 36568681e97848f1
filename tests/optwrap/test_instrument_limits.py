"""Limits, schedules and periods: declared by optwrap's wrappers, absent for optax's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap
from optwrap._reading.state import reading
from optwrap._reading.unpack import unpack
from optwrap._step.instrument import instrument
from tests.optwrap.transformations import FLOAT32

LIMITS = ("guard_not_finite_limit", "every_k", "sync_period", "gradient_norm_limit")


def limits(tx: Any, state: Any = None, grads: Any = FLOAT32, params: Any = FLOAT32) -> tuple[dict[str, float], Any]:
    """The gauges of LIMITS after one jitted step, and the state."""
    tx = instrument(tx)
    state = tx.init(params) if state is None else state

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        _, state = tx.update(grads, state, params)
        return reading(state), state

    with jax.checking_leaks():  # a tracer that outlives its trace is an error
        words, state = step(grads, state, params)
    gauges = unpack(np.asarray(words)).gauges
    return {name: gauges[name] for name in LIMITS if name in gauges}, state


def skipping(limit: Any, k: Any = 2, library: Any = optwrap) -> Any:
    function = functools.partial(library.skip_large_updates, max_squared_norm=limit)
    return library.MultiSteps(optax.sgd(0.1), k, should_skip_update_fn=function).gradient_transformation()


def test_limits_are_known_of_optwraps_wrappers_and_not_of_optaxs() -> None:
    def nest(library: Any) -> Any:
        return library.lookahead(library.apply_if_finite(skipping(25.0, 3, library), 7), 5, 0.5)

    params = optax.LookaheadParams.init_synced(FLOAT32)
    told = {"guard_not_finite_limit": 7, "every_k": 3, "sync_period": 5, "gradient_norm_limit": 5.0}
    assert limits(nest(optwrap), params=params)[0] == told
    inner = optax.lookahead(
        optax.sgd(0.1), 5, 0.5
    )  # optax's guard takes no lookahead inside, nor does its lookahead a guard
    assert limits(inner, params=params)[0] == {}
    assert limits(optax.apply_if_finite(skipping(25.0, 3, optax), 7))[0] == {}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip(1.0), tx, optax.scale(0.5)),
        lambda tx: optwrap.masked(tx, {"layer": {"w": True}, "b": False}),
        optwrap.flatten,
        lambda tx: optax.multi_transform({"a": tx}, "a"),
        lambda tx: optax.chain(tx, optax.lbfgs(linesearch=None)),
        lambda tx: instrument(tx, name="within"),
    ],
    ids=["chain", "masked", "flatten", "multi_transform", "lbfgs", "instrument"],
)
def test_limits_are_found_inside_other_transformations(wrap: Any) -> None:
    tx = wrap(optwrap.apply_if_finite(skipping(4.0, lambda step: step + 2), 3))
    wrapped = instrument(tx, name="main")
    _, state = jax.jit(wrapped.update)(FLOAT32, wrapped.init(FLOAT32), FLOAT32)
    gauges = unpack(np.asarray(reading(state, "main"))).gauges
    expected = {"guard_not_finite_limit": 3, "every_k": 2, "gradient_norm_limit": 2.0}
    assert {name: gauges[name] for name in expected} == expected


def test_a_schedule_is_read_for_the_current_window() -> None:
    tx = optwrap.MultiSteps(optax.sgd(0.1), lambda step: jnp.where(step < 1, 1, 4)).gradient_transformation()
    first, state = limits(tx)
    second, _ = limits(tx, state)
    assert (first["every_k"], second["every_k"]) == (4, 4)
    assert unpack(np.asarray(reading(state))).gauges["gradient_step"] == 1


@pytest.mark.thin(3)
@pytest.mark.parametrize("k", [3, lambda step: jnp.where(step < 1, 3, 5)], ids=["fixed", "scheduled"])
def test_injected_hyperparameters_are_read_from_the_state(k: Any) -> None:
    """They may change between steps."""

    def make(limit: Any, errors: Any, k: Any) -> Any:
        return optwrap.apply_if_finite(skipping(limit, k), errors)

    tx = optax.inject_hyperparams(make)(limit=9.0, errors=2, k=k)
    told, state = limits(tx)
    assert told == {"guard_not_finite_limit": 2, "every_k": 3, "gradient_norm_limit": 3.0}
    state.inner_state.hyperparams["limit"] = jnp.float32(16.0)
    state.inner_state.hyperparams["errors"] = jnp.asarray(0)
    told, state = limits(tx, state, {**FLOAT32, "b": jnp.full(3, jnp.nan)})
    assert (told["guard_not_finite_limit"], told["gradient_norm_limit"]) == (0, 4.0)
    # And judged by: the guard, which rejects nothing any more, let it through to MultiSteps, which skipped it.
    assert unpack(np.asarray(reading(state))).outcome == "skipped_not_finite"


def test_a_computed_limit_is_absent_and_the_outcome_is_right() -> None:
    """The limit is a tracer of init; whether the guard gave up follows from its updates."""
    make = optax.inject_hyperparams(lambda errors: optwrap.apply_if_finite(optax.sgd(0.1), errors + 1))
    bad = {**FLOAT32, "b": jnp.full(3, jnp.nan)}
    state, outcomes = None, []
    for _ in range(3):
        told, state = limits(make(errors=1), state, bad)
        assert told == {}
        outcomes.append(unpack(np.asarray(reading(state))).outcome)
    assert outcomes == ["skipped_not_finite", "skipped_not_finite", "accepted_not_finite"]


def test_a_limit_traced_by_the_step_is_absent_and_the_outcome_is_right() -> None:
    @jax.jit
    def step(errors: Any, state: Any) -> Any:
        tx = instrument(optwrap.apply_if_finite(optax.sgd(0.1), errors))
        _, state = tx.update({**FLOAT32, "b": jnp.full(3, jnp.nan)}, state, FLOAT32)
        return state

    state = instrument(optwrap.apply_if_finite(optax.sgd(0.1), 1)).init(FLOAT32)
    first = step(1, state)
    assert unpack(np.asarray(reading(first))).outcome == "skipped_not_finite"
    assert unpack(np.asarray(reading(step(1, first)))).outcome == "accepted_not_finite"


def test_an_init_that_cannot_be_traced_leaves_limits_absent() -> None:
    """The training goes on: the init reads values, so it works only eagerly."""

    def init(params: Any) -> Any:
        assert float(jnp.sum(params["b"])) < 1e9
        return optwrap.apply_if_finite(optax.sgd(0.1), 0).init(params)

    update = optwrap.apply_if_finite(optax.sgd(0.1), 0).update
    with pytest.warns(RuntimeWarning, match=r"init of the optimizer cannot be traced .* make init depend on"):
        told, state = limits(
            optax.GradientTransformationExtraArgs(init, update), None, {**FLOAT32, "b": jnp.full(3, jnp.nan)}
        )
    assert told == {}
    assert unpack(np.asarray(reading(state))).outcome == "accepted_not_finite"


def test_the_second_init_adds_no_operation_to_the_step() -> None:
    """It is only traced, for its declarations."""

    def init(params: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.linalg.det(leaf @ leaf.T) * jnp.ones(()), params)

    tx = instrument(optax.GradientTransformation(init, lambda updates, state, _=None: (updates, state)))
    params = {"w": jnp.ones((3, 3))}
    jaxpr = str(jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params), params))
    assert "dot_general" in str(jax.make_jaxpr(tx.init)(params))
    assert "dot_general" not in jaxpr
