"""Several devices: one reading, the same on all of them, of the gradients as a whole."""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap
from optwrap._reading.state import reading
from optwrap._reading.unpack import Layout, unpack
from optwrap._step.instrument import instrument

PARAMS = {"a": np.ones((8, 4), np.float32), "b": np.full((4,), 2.0, np.float32), "c": np.ones((3,), np.float32)}
SPECS = {"a": P("x", "y"), "b": P("y"), "c": P()}
LAYOUT = Layout(("a", "b", "c"))
NORM = np.sqrt(32 + 16 + 3)
VALUES = (1.0, np.nan, 1.0, 1e30, np.inf)


def gradients(value: float) -> Any:
    spoilt = PARAMS["a"].copy()
    spoilt[5, 2] = value
    return {**PARAMS, "a": spoilt}


def optimizer() -> Any:
    return optwrap.MultiSteps(optwrap.apply_if_finite(optax.adam(1e-3), 1), 2).gradient_transformation()


@functools.cache
def on_one_device() -> list[Any]:
    tx = instrument(optimizer())
    step = jax.jit(lambda grads, state: tx.update(grads, state, PARAMS)[1])
    state, rows = tx.init(PARAMS), []
    for value in VALUES:
        state = step(gradients(value), state)
        rows.append(unpack(np.asarray(reading(state)), LAYOUT))
    return rows


def same(words: Any, expected: Any) -> None:
    """Equal in all but the last bits of the norm, whose sum runs in another order."""
    got = unpack(np.asarray(words), LAYOUT)
    assert (got.totals, got.outcome, got.finite, got.nonfinite_parameters) == (
        expected.totals,
        expected.outcome,
        expected.finite,
        expected.nonfinite_parameters,
    )
    np.testing.assert_allclose(got.norm, expected.norm, rtol=1e-6)
    assert {**got.gauges, "gradient_norm": 0} == {**expected.gauges, "gradient_norm": 0}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_the_reading_of_sharded_parameters_is_replicated_and_equals_one_device(kind: AxisType) -> None:
    """On Auto and Explicit meshes, with the state donated."""
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind, kind))
    tx = instrument(optimizer())

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, reading(state)

    def placed(tree: Any) -> Any:
        return {name: jax.device_put(leaf, NamedSharding(mesh, SPECS[name])) for name, leaf in tree.items()}

    with jax.set_mesh(mesh):
        params = placed(PARAMS)
        state = jax.jit(tx.init)(params)
        all_words = []
        for value in VALUES:
            params, state, words = step(params, state, placed(gradients(value)))
            assert words.sharding.is_fully_replicated
            assert len(words.sharding.device_set) == 4
            all_words.append(words)
        assert params["a"].sharding.spec == SPECS["a"]
    for words, expected in zip(all_words, on_one_device(), strict=True):
        same(words, expected)


def test_shard_map_counts_sharded_gradients_as_a_whole_and_replicated_ones_once() -> None:
    """Each device holds a part of the parameters and of the optimizer's moments; the counters are the same on all."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    tx = instrument(optax.adam(1e-3))
    state = tx.init(PARAMS)
    specs = optax.tree.map_params(tx, lambda _, spec: spec, state, SPECS, transform_non_params=lambda _: P())

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(SPECS, specs), out_specs=(specs, P()))
    def step(grads: Any, state: Any) -> Any:
        _, state = tx.update(grads, state)
        return state, reading(state)

    for value, outcome in ((1.0, "applied"), (np.nan, "accepted_not_finite"), (1e30, "applied")):
        state, words = step(gradients(value), state)
        got = unpack(np.asarray(words), LAYOUT)
        assert (got.outcome, got.nonfinite_parameters) == (outcome, {} if outcome == "applied" else {"a": 1})
        if outcome == "applied":
            np.testing.assert_allclose(got.norm, NORM if value == 1.0 else 1e30, rtol=1e-6)


@pytest.mark.parametrize("library", [optwrap, optax], ids=lambda library: library.__name__)
def test_shard_map_judges_averaged_gradients_like_one_device(library: Any) -> None:
    """Each device has its own gradients, and the optimizer gets their mean."""
    mesh = jax.make_mesh((4,), ("data",))
    tx = instrument(library.apply_if_finite(optax.adam(1e-3), 1))
    state = tx.init(PARAMS)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P()), out_specs=(P(), P()))
    def step(scale: Any, state: Any) -> Any:
        grads = jax.lax.pmean(jax.tree.map(lambda leaf: leaf * scale[0], PARAMS), "data")
        _, state = tx.update(grads, state, PARAMS)
        return state, reading(state)

    with jax.set_mesh(mesh):
        outcomes = []
        for bad in (1.0, np.nan, np.inf, 1.0):
            scales = jax.device_put(np.array([1, bad, 1, 1], np.float32), NamedSharding(mesh, P("data")))
            state, words = step(scales, state)
            outcomes.append(unpack(np.asarray(words), LAYOUT).outcome)
    assert outcomes == ["applied", "skipped_not_finite", "accepted_not_finite", "applied"]


def test_pmap_gives_every_device_the_same_row() -> None:
    tx = instrument(optwrap.apply_if_finite(optax.adam(1e-3), 1))

    def step(scale: Any, state: Any) -> Any:
        grads = jax.lax.pmean(jax.tree.map(lambda leaf: leaf * scale, PARAMS), "data")
        _, state = tx.update(grads, state, PARAMS)
        return state, reading(state)

    stepped = jax.pmap(step, axis_name="data", in_axes=(0, None), out_axes=(0, 0))
    states, words = stepped(np.array([1, np.nan, 1, 1], np.float32), tx.init(PARAMS))
    rows = np.asarray(words)
    assert rows.shape[0] == 4
    assert (rows == rows[0]).all()
    assert unpack(rows[0], LAYOUT).outcome == "skipped_not_finite"
    # And outside, of the replicated state itself.
    np.testing.assert_array_equal(reading(states), rows)


@pytest.mark.parametrize("how", ["shard_map", "pmap"])
def test_without_types_axis_name_tells_the_axis(how: str) -> None:
    """Each of four devices has a part of the gradients: every reading is of the whole."""

    def optimizer(axis_name: str | None) -> Any:
        return instrument(optwrap.apply_if_finite(optax.sgd(0.1), 1, axis_name=axis_name), axis_name=axis_name)

    def step(part: Any, state: Any) -> Any:
        _, state = optimizer("data").update({"w": part}, state)
        return state, reading(state)

    alone = optimizer(None)
    whole_step = jax.jit(lambda whole, state: alone.update({"w": whole}, state)[1])
    if how == "pmap":
        stepped = jax.pmap(step, axis_name="data", in_axes=(0, None), out_axes=(None, 0), devices=jax.devices()[:4])
    else:
        mesh = Mesh(np.array(jax.devices()[:4]), ("data",))

        def of_one(parts: Any, state: Any) -> Any:
            state, words = step(parts[0], state)
            return state, words[None]

        ways_in, ways_out = (P("data"), P()), (P(), P("data"))
        stepped = jax.jit(jax.shard_map(of_one, mesh=mesh, in_specs=ways_in, out_specs=ways_out, check_vma=False))
    state = expected_state = alone.init({"w": np.ones((4, 3), np.float32)})
    layout = Layout(("w",))
    for value in (1.0, np.nan, 1e30, np.inf, -np.inf):
        whole = np.ones((4, 3), np.float32)
        whole[2, 1] = value
        state, words = stepped(whole, state)
        expected_state = whole_step(whole, expected_state)
        assert (np.asarray(words) == np.asarray(words)[0]).all()
        got, expected = (unpack(np.asarray(each), layout) for each in (words[0], reading(expected_state)))
        assert (got.totals, got.outcome, got.nonfinite_parameters) == (
            expected.totals,
            expected.outcome,
            expected.nonfinite_parameters,
        )
        np.testing.assert_allclose(got.norm, expected.norm, rtol=1e-6)
