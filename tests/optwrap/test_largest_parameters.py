"""The three parameters with the largest shares of the squared norm, and the norm of the update, against numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap
from optwrap import Layout, Reading

PARAMS = {
    "embed": jnp.zeros((4, 2)),
    "layer": {"b": jnp.zeros(2), "scale": jnp.zeros(()), "w": jnp.zeros((2, 8))},
    "head": jnp.zeros(8, jnp.bfloat16),
}
LAYOUT = Layout(("embed", "head", "layer/b", "layer/scale", "layer/w"))


def gradients(seed: int) -> Any:
    """Random gradients of PARAMS, of different sizes."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 10.0 ** random.integers(-2, 3), leaf.dtype), PARAMS
    )


def after(tx: Any, *steps: Any, params: Any = PARAMS, fused: bool = False) -> Reading:
    """The reading after these gradients."""

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        if fused:
            return optwrap.apply_gradients(tx, grads, state, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for grads in steps:
        params, state = step(grads, state, params)
    return optwrap.unpack(np.asarray(optwrap.reading(state)), LAYOUT)


def shares(grads: Any) -> dict[str, float]:
    """What numpy finds."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(grads)]
    largest = max(np.abs(leaf).max() for leaf in leaves)
    squares = [float(np.sum((leaf / largest) ** 2)) for leaf in leaves]
    order = sorted(range(len(squares)), key=lambda i: (-squares[i], i))[:3]
    return {LAYOUT.parameters[i]: squares[i] / sum(squares) for i in order if squares[i]}


def test_the_three_largest_shares_are_those_of_numpy() -> None:
    """Also where the squares of finite gradients overflow."""
    tx = optwrap.instrument(optax.sgd(0.0))
    state = tx.init(PARAMS)
    step = jax.jit(lambda grads: optwrap.reading(tx.update(grads, state)[1]))
    for seed in range(20):
        for size in (1e-12, 1.0, 1e30):
            grads = jax.tree.map(lambda leaf: (leaf * size).astype(leaf.dtype), gradients(seed))  # noqa: B023
            found = optwrap.unpack(np.asarray(step(grads)), LAYOUT).largest_parameters
            assert list(found) == list(shares(grads))
            np.testing.assert_allclose(list(found.values()), list(shares(grads).values()), rtol=1e-3)


def test_of_equal_shares_the_first_parameters_are_reported() -> None:
    grads = jax.tree.map(lambda leaf: (jnp.arange(leaf.size) == 0).reshape(leaf.shape).astype(leaf.dtype), PARAMS)
    grads["head"] = jnp.zeros_like(grads["head"])
    found = after(optwrap.instrument(optax.sgd(0.0)), grads).largest_parameters
    assert list(found) == ["embed", "layer/b", "layer/scale"]


def test_a_zero_gradient_has_no_largest_parameter() -> None:
    assert after(optwrap.instrument(optax.sgd(0.0)), PARAMS).largest_parameters == {}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_step_reports_its_non_finite_parameters_instead(value: float) -> None:
    grads = gradients(0)
    grads["layer"]["b"] = grads["layer"]["b"].at[0].set(value)
    found = after(optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.0), 5)), gradients(1), grads)
    assert found.largest_parameters == {}
    assert found.nonfinite_parameters == {"layer/b": 1}


def test_frozen_parameters_and_integer_leaves_keep_the_names_right() -> None:
    tx = optwrap.instrument(optax.identity())
    params = {**PARAMS, "count": jnp.zeros(2, jnp.int32)}
    state = tx.init(params)
    grads = {**gradients(3), "count": jnp.ones(2, jnp.int32), "embed": None}
    layout = Layout(("count", *LAYOUT.parameters))
    _, state = jax.jit(tx.update)(grads, state, params)
    found = optwrap.unpack(np.asarray(optwrap.reading(state)), layout).largest_parameters
    expected = gradients(3)
    expected["embed"] = jnp.zeros_like(expected["embed"])
    assert list(found) == list(shares(expected))


@pytest.mark.parametrize("vma", [True, False])
def test_sharded_gradients_have_the_shares_of_the_whole(vma: bool) -> None:
    """Inside `shard_map` each device has a part of some leaves."""
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    tx = optwrap.instrument(optax.sgd(0.0), axis_name=None if vma else "x")
    random = np.random.default_rng(0)
    grads = {name: jnp.asarray(random.normal(size=(8, n)), jnp.float32) for name, n in (("a", 2), ("b", 5), ("c", 3))}
    state = tx.init(grads)

    def step(grads: Any, state: Any) -> Any:
        return optwrap.reading(tx.update(grads, state)[1])

    sharded = jax.shard_map(step, mesh=mesh, in_specs=(P("x"), P()), out_specs=P(), check_vma=vma)
    placed = jax.device_put(grads, NamedSharding(mesh, P("x")))
    found = optwrap.unpack(np.asarray(jax.jit(sharded)(placed, state)), Layout(("a", "b", "c"))).largest_parameters
    squares = {name: float(np.sum(np.square(np.asarray(leaf, np.float64)))) for name, leaf in grads.items()}
    assert list(found) == sorted(squares, key=lambda name: -squares[name])
    np.testing.assert_allclose(sum(found.values()), 1, rtol=1e-6)
    np.testing.assert_allclose(found["b"], squares["b"] / sum(squares.values()), rtol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_the_norm_of_the_update_is_that_of_the_applied_update(fused: bool) -> None:
    grads = gradients(1)
    reading = after(optwrap.instrument(optax.sgd(0.25), update_norm=True), grads, fused=fused)
    expected = np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(grads))) / 4
    assert reading.update_norm == pytest.approx(expected, rel=1e-2)
    assert reading.gauges["update_norm"] == reading.update_norm


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_applies_nothing_has_no_update_norm(fused: bool) -> None:
    bad = gradients(0)
    bad["embed"] = bad["embed"].at[0].set(np.nan)
    guarded = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.25), 5), update_norm=True)
    assert after(guarded, bad, fused=fused).update_norm is None
    window = optwrap.instrument(optwrap.MultiSteps(optax.sgd(0.25), 2), update_norm=True)
    assert after(window, gradients(0), fused=fused).update_norm is None
    assert (after(window, gradients(0), gradients(1), fused=fused).update_norm or 0) > 0


def test_a_skipped_step_has_an_update_norm_if_another_group_moved() -> None:
    """`optax.partition` with a guard for each group, every pattern of non-finite groups, against numpy."""
    params = {name: jnp.zeros(3) for name in "ab"}
    guards = {name: optwrap.apply_if_finite(optax.sgd(0.25), 5) for name in params}
    tx = optwrap.instrument(optax.partition(guards, {name: name for name in params}), update_norm=True)
    state, update = tx.init(params), jax.jit(tx.update)
    good = {"a": np.array([1.0, 2.0, 2.0], np.float32), "b": np.array([0.0, 3.0, 4.0], np.float32)}
    for bad in ("", "a", "b", "ab", "a", ""):
        grads = {name: leaf * np.float32(np.nan) if name in bad else leaf for name, leaf in good.items()}
        _, state = update(grads, state, params)
        reading = optwrap.unpack(np.asarray(optwrap.reading(state)))
        moved = [leaf / 4 for name, leaf in good.items() if name not in bad]
        assert reading.outcome == ("skipped_not_finite" if bad else "applied")
        assert reading.update_norm == (pytest.approx(np.linalg.norm(moved)) if moved else None)


def test_an_update_that_is_applied_although_non_finite_has_a_non_finite_norm() -> None:
    bad = gradients(0)
    bad["embed"] = bad["embed"].at[0].set(np.nan)
    reading = after(optwrap.instrument(optax.sgd(0.25), update_norm=True), bad)
    assert reading.update_norm is not None
    assert np.isnan(reading.update_norm)


def test_without_update_norm_there_is_none() -> None:
    assert after(optwrap.instrument(optax.sgd(0.25)), gradients(0)).update_norm is None
    with pytest.raises(TypeError, match="update_norm must be True or False, got 1"):
        optwrap.instrument(optax.sgd(0.25), update_norm=1)  # type: ignore[arg-type]
