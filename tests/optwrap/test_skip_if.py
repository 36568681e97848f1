"""skip_if: a skip function without accumulation. The laws of all wrappers are in test_laws and test_nesting."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optwrap
from optwrap._core.declarations import Limit, collecting
from tests.optwrap.compilations import traces
from tests.optwrap.transformations import FLOAT32, assert_same, assert_same_types, gradients, momentum, stepper

FULL = jnp.int32(2**31 - 1)
BATCHES = [gradients(FLOAT32, step) for step in range(8)]


def squared_norm(tree: Any) -> float:
    return float(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree)))


@functools.cache
def step_with(limit: float) -> Callable[..., Any]:
    function = functools.partial(optwrap.skip_large_updates, max_squared_norm=limit)
    return jax.jit(stepper(optwrap.skip_if(momentum(), function)))


@settings(max_examples=40, deadline=None)
@given(
    scales=st.lists(st.sampled_from([0.1, 1.0, 3.0, 1e20, np.nan, np.inf]), min_size=8, max_size=8),
    limit=st.sampled_from([0.0, 5.0, 50.0, np.inf]),
)
def test_steps_beyond_the_limit_change_nothing(scales: list[float], limit: float) -> None:
    """Parameters and inner state are those of the optimizer alone on the other steps; both are counted."""
    step, alone = step_with(limit), jax.jit(stepper(momentum()))
    transformation = optwrap.skip_if(momentum(), functools.partial(optwrap.skip_large_updates, max_squared_norm=limit))
    params = expected = FLOAT32
    state, expected_state = transformation.init(params), momentum().init(params)
    taken = 0
    for i, (batch, scale) in enumerate(zip(BATCHES, scales, strict=True), 1):
        grads = jax.tree.map(lambda leaf, scale=scale: leaf * np.float32(scale), batch)
        with np.errstate(over="ignore", invalid="ignore"):
            norm = np.float32(squared_norm(grads))
        take = bool(norm < limit)
        params, state, updates = step(grads, state, params)
        if take:
            expected, expected_state, _ = alone(grads, expected_state, expected)
        else:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
        taken += take
        assert_same((params, state.inner_state), (expected, expected_state))
        assert (int(state.gradient_step), int(state.total_skipped)) == (taken, i - taken)
        assert bool(state.last_skipped) is bool(state.skip_state["should_skip"]) is not take
        np.testing.assert_allclose(state.skip_state["norm_squared"], norm, rtol=1e-5)
    assert traces(step) == 1


def test_the_skip_function_gets_the_updates_the_steps_taken_and_the_parameters() -> None:
    """The second value that it returns is the skip state, with any structure."""

    def every_other(updates: Any, gradient_step: Any, params: Any) -> Any:
        skip_state = (gradient_step, squares(updates), squares(params))
        return skip_state[1] > 5.0, skip_state

    def squares(tree: Any) -> jax.Array:
        return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)), jnp.float32(0))

    transformation = optwrap.skip_if(optax.sgd(0.1), every_other)
    params, state = FLOAT32, transformation.init(FLOAT32)
    assert_same_types(state.skip_state, (jnp.int32(0), jnp.float32(0), jnp.float32(0)))
    assert (float(state.skip_state[1]), bool(state.last_skipped)) == (0.0, False)
    step = jax.jit(stepper(transformation))
    taken = 0
    for grads in BATCHES:
        before = params
        params, state, _ = step(grads, state, params)
        np.testing.assert_allclose(
            np.array(state.skip_state, np.float64), [taken, squared_norm(grads), squared_norm(before)], rtol=1e-5
        )
        taken += squared_norm(grads) <= 5.0
        assert int(state.gradient_step) == taken
    assert 0 < taken < len(BATCHES)


def test_counts_saturate() -> None:
    """At 2**31 - 1 they stay."""
    transformation = optwrap.skip_if(momentum(), optwrap.skip_not_finite)
    full = transformation.init(FLOAT32)._replace(gradient_step=FULL, total_skipped=FULL)
    update = jax.jit(transformation.update)
    for grads, skipped in ((FLOAT32, False), (jax.tree.map(lambda leaf: leaf * jnp.nan, FLOAT32), True)):
        _, state = update(grads, full)
        assert (int(state.gradient_step), int(state.total_skipped)) == (2**31 - 1, 2**31 - 1)
        assert bool(state.last_skipped) is skipped


def test_skip_if_may_wrap_lookahead() -> None:
    """The skip function gets the gradients; the updates of a skipped step are a pair of zeros."""
    transformation = optwrap.skip_if(optwrap.lookahead(optax.sgd(1.0), 2, 0.5), optwrap.skip_not_finite)
    pair = optax.LookaheadParams.init_synced(FLOAT32)
    state = transformation.init(pair)
    bad = {**BATCHES[0], "b": np.full(3, np.nan, np.float32)}
    updates, after = jax.jit(transformation.update)(bad, state, pair)
    assert_same(updates, jax.tree.map(jnp.zeros_like, pair))
    assert_same(after.inner_state, state.inner_state)
    assert int(after.skip_state["num_not_finite"]) == 3


def test_the_limit_is_declared() -> None:
    """For `instrument`; None if the skip function has no limit."""
    for library in (optwrap, optax):
        function = functools.partial(library.skip_large_updates, max_squared_norm=9.0)
        with collecting() as collected:
            state = optwrap.skip_if(momentum(), function).init(FLOAT32)
        assert collected.of(state) == Limit(9.0)
    with collecting() as collected:
        state = optwrap.skip_if(momentum(), optwrap.skip_not_finite).init(FLOAT32)
    assert collected.of(state) == Limit(None)


@pytest.mark.parametrize("axis_name", ["data", None], ids=["together", "alone"])
@pytest.mark.parametrize("library", [optwrap, optax], ids=["ours", "optax"])
def test_devices_decide_together_with_axis_name(library: Any, axis_name: str | None) -> None:
    """Inside pmap, with NaN on one device: with axis_name all skip, without it only that device."""
    transformation = optwrap.skip_if(optax.sgd(0.5), library.skip_not_finite, axis_name=axis_name)

    def step(value: Any) -> Any:
        return stepper(transformation)(value, transformation.init(jnp.ones([])), jnp.ones([]))

    after = jax.pmap(step, axis_name="data")(jnp.ones(4).at[2].set(jnp.nan))
    skipped = [True] * 4 if axis_name else [False, False, True, False]
    np.testing.assert_array_equal(after.params, np.where(skipped, 1.0, 0.5))
    np.testing.assert_array_equal(after.state.last_skipped, skipped)


def skip(returned: Any) -> Callable[[], Any]:
    return lambda: optwrap.skip_if(momentum(), lambda *_: returned).init(FLOAT32)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: optwrap.skip_if(optax.sgd, optwrap.skip_not_finite), TypeError, r"skip_if: inner must be .*call it"),
        (
            lambda: optwrap.skip_if(momentum(), None),  # type: ignore[arg-type]
            TypeError,
            r"skip_if: should_skip_fn must be a function, got None: pass skip_not_finite, functools.partial",
        ),
        (
            lambda: optwrap.skip_if(momentum(), optwrap.skip_large_updates),  # type: ignore[arg-type]
            TypeError,
            r"skip_if: should_skip_fn: skip_large_updates needs its limit, got keywords \[\]",
        ),
        (
            lambda: optwrap.skip_if(
                momentum(), functools.partial(optwrap.skip_large_updates, max_squared_norm=float("nan"))
            ),
            ValueError,
            r"max_squared_norm must be a number from 0, got nan",
        ),
        (skip((True, ())), TypeError, r"skip_if: should_skip_fn returned True \(bool\) as its first value, not an arr"),
        (skip((1, ())), TypeError, r"skip_if: should_skip_fn returned 1 \(int\) as its first value"),
        (skip((jnp.int32(1), ())), ValueError, r"returned an array int32\[\] as its first value, expected bool\[\]"),
        (skip((jnp.ones(2, bool), ())), ValueError, r"returned an array bool\[2\] as its first value, expected bool"),
        (skip(jnp.array(True)), TypeError, r"should_skip_fn returned .*, not a pair: return \(skip, skip_state\)"),
        (
            lambda: optwrap.skip_if(momentum(), optwrap.skip_not_finite).update(FLOAT32, momentum().init(FLOAT32)),
            TypeError,
            r"skip_if: state must be the SkipIfState that init returns, got .* \(tuple\): pass the state that init",
        ),
        (
            lambda: optwrap.skip_if(momentum(), optwrap.skip_not_finite, axis_name=3),  # type: ignore[arg-type]
            TypeError,
            r"skip_if: axis_name must be the name of a mesh axis",
        ),
    ],
    ids=[
        "inner",
        "no function",
        "no limit",
        "limit NaN",
        "bool",
        "int",
        "int32",
        "two flags",
        "no pair",
        "state",
        "axis_name",
    ],
)
def test_wrong_arguments_are_named_with_their_value_and_a_remedy(
    wrong: Callable[[], Any], error: type[Exception], message: str
) -> None:
    """At the latest when first traced."""
    with pytest.raises(error, match=message):
        wrong()
