"""Bugs of optax's other wrappers: each test shows optax's and ours; differences-from-optax.md cites it.

If a test begins to fail because optax fixed the bug, delete the test and its section.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap
from tests.optwrap.differences import BAD, GOOD, PARAMS, has_nan, train
from tests.optwrap.transformations import assert_same_types, stepper


@pytest.mark.parametrize("wrapper", ["apply_if_finite", "multi_steps", "flatten"])
def test_lookahead_may_be_wrapped(wrapper: str) -> None:
    """Its updates are a pair, its gradients are not: optax's wrappers cannot be put around it."""
    pair = optax.LookaheadParams.init_synced(PARAMS)

    def wrapped(library: Any) -> Any:
        inner = library.lookahead(optax.sgd(0.1), 2, 0.5)
        return {
            "apply_if_finite": lambda: library.apply_if_finite(inner, 3),
            "multi_steps": lambda: library.MultiSteps(inner, 1),
            "flatten": lambda: library.flatten(inner),
        }[wrapper]()

    with pytest.raises((TypeError, ValueError, AttributeError)):
        train(wrapped(optax), [GOOD] * 2, pair)
    ours = train(wrapped(optwrap), [GOOD] * 4, pair)[-1]
    expected = train(optax.lookahead(optax.sgd(0.1), 2, 0.5), [GOOD] * 4, pair)[-1]
    np.testing.assert_allclose(ours.params.slow["w"], expected.params.slow["w"], rtol=1e-6)
    np.testing.assert_allclose(ours.params.fast["w"], expected.params.fast["w"], rtol=1e-6)


def test_apply_if_finite_takes_gradients_wider_than_the_parameters() -> None:
    """bfloat16 parameters with float32 gradients: adam's state becomes float32, and optax raises from inside a cond."""
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    with pytest.raises(TypeError, match="equal output types"):
        train(optax.apply_if_finite(optax.adam(0.1), 3), [GOOD], params)
    ours = train(optwrap.apply_if_finite(optax.adam(0.1), 3), [GOOD, BAD, GOOD], params)
    alone = train(optax.adam(0.1), [GOOD, GOOD], params)
    np.testing.assert_array_equal(ours[-1].params["w"], alone[-1].params["w"])
    assert_same_types(ours[-1].state.inner_state, alone[-1].state)


def test_a_guard_need_not_give_up() -> None:
    """After the limit optax's parameters are NaN; ours stay finite with on_limit="reject"."""
    batches = [GOOD, *[BAD] * 9, GOOD]
    assert has_nan(train(optax.apply_if_finite(optax.adam(0.1), 3), batches)[-1].params)
    ours = train(optwrap.apply_if_finite(optax.adam(0.1), 3, on_limit="reject"), batches)
    assert [int(after.state.notfinite_count) for after in ours] == [0, *range(1, 10), 0]
    assert ours[-1].state.total_notfinite == 9
    alone = train(optax.adam(0.1), [GOOD, GOOD])[-1]
    np.testing.assert_allclose(ours[-1].params["w"], alone.params["w"], rtol=1e-6)
    assert_same_types(ours[-1].state.inner_state, alone.state)


def test_devices_decide_together() -> None:
    """NaN on one device of eight: with optax only that device skips; with ours all skip and count it."""
    values = jnp.ones(8).at[3].set(jnp.nan)

    def after(wrapper: Any) -> Any:
        def step(value: Any) -> Any:
            return stepper(wrapper)(value, wrapper.init(jnp.ones([])), jnp.ones([]))

        return jax.pmap(step, axis_name="data")(values)

    theirs = after(optax.apply_if_finite(optax.sgd(0.5), 3))
    np.testing.assert_array_equal(theirs.params, np.where(np.arange(8) == 3, 1.0, 0.5))
    ours = after(optwrap.apply_if_finite(optax.sgd(0.5), 3, axis_name="data"))
    np.testing.assert_array_equal(ours.params, np.ones(8))
    np.testing.assert_array_equal(ours.state.total_notfinite, np.ones(8))

    skip = optwrap.MultiSteps(optax.sgd(0.5), 1, should_skip_update_fn=optwrap.skip_not_finite, axis_name="data")
    ours = after(skip)
    np.testing.assert_array_equal(ours.params, np.ones(8))
    np.testing.assert_array_equal(ours.state.skip_state["num_not_finite"], np.ones(8))


def test_slow_parameters_stay_between_synchronisations() -> None:
    """An infinite gradient: optax multiplies the distance by zero, and has NaN slow parameters at once."""
    pair = optax.LookaheadParams.init_synced(PARAMS)
    infinite = {"w": jnp.array([jnp.inf, 0.0])}
    assert has_nan(train(optax.lookahead(optax.sgd(0.1), 3, 0.5), [infinite], pair)[0].params.slow)
    ours = train(optwrap.lookahead(optax.sgd(0.1), 3, 0.5), [infinite], pair)[0]
    np.testing.assert_array_equal(ours.params.slow["w"], PARAMS["w"])


def test_a_reset_takes_nan_out_of_the_state() -> None:
    """With reset_state, optax multiplies the old state by zero, which leaves NaN in it."""
    pair = optax.LookaheadParams.init_synced(PARAMS)

    def momentum(library: Any) -> Any:
        fast = optax.sgd(0.1, momentum=0.9)
        return train(library.lookahead(fast, 1, 0.5, reset_state=True), [BAD], pair)[0].state.fast_state

    assert has_nan(momentum(optax))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(momentum(optwrap)))


def test_a_reset_keeps_flags_and_keys() -> None:
    """Multiplied, as by optax, a bool of the fast state becomes an integer, and a PRNG key raises."""
    pair = optax.LookaheadParams.init_synced(PARAMS)

    def after(library: Any, leaf: Any) -> Any:
        fast = optax.GradientTransformation(lambda _: leaf, lambda updates, state, _=None: (updates, state))
        return train(library.lookahead(fast, 1, 0.5, reset_state=True), [GOOD], pair)[0].state.fast_state

    flag, key = jnp.array(True), jax.random.key(3)
    assert after(optax, flag).dtype == jnp.int32
    assert after(optwrap, flag).dtype == jnp.bool_
    with pytest.raises(TypeError, match="key"):
        after(optax, key)
    assert jnp.array_equal(jax.random.key_data(after(optwrap, key)), jax.random.key_data(key))


def test_lookahead_passes_extra_args_on() -> None:
    """Optax's lookahead takes no extra args."""
    pair = optax.LookaheadParams.init_synced(PARAMS)

    def update(library: Any) -> Any:
        transformation = library.lookahead(optax.polyak_sgd(), 2, 0.5)
        return transformation.update(GOOD, transformation.init(pair), pair, value=jnp.float32(1.0))

    with pytest.raises(TypeError, match="value"):
        update(optax)
    assert np.any(update(optwrap)[0].fast["w"])


def test_flatten_keeps_dtypes() -> None:
    """With optax all arrays go into one vector of the widest dtype, and come back in it."""
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32), "c": jnp.ones((2, 2), jnp.float16)}

    def updates(library: Any) -> Any:
        transformation = library.flatten(optax.sgd(0.1))
        return transformation.update(params, transformation.init(params), params)[0]

    assert {leaf.dtype for leaf in updates(optax).values()} == {jnp.dtype(jnp.float32)}
    assert_same_types(updates(optwrap), params)


def test_flatten_on_an_explicit_mesh() -> None:
    """Optax cannot flatten an array that is sharded along its second axis."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.ones((2, 8)), NamedSharding(mesh, P(None, "x")))
        with pytest.raises(Exception, match="This reshape is not supported"):
            train(optax.flatten(optax.sgd(0.5)), [params], params)
        after = train(optwrap.flatten(optax.sgd(0.5)), [params], params)[-1].params
    np.testing.assert_array_equal(after, np.full((2, 8), 0.5))
    assert after.sharding.spec == P(None, "x")


def test_flatten_takes_trees_without_arrays_or_without_values() -> None:
    """An empty tree, shapes instead of arrays, and what tree.map_params puts in: optax raises for each."""
    shapes = {"w": jax.ShapeDtypeStruct((2,), jnp.float32), "b": jax.ShapeDtypeStruct((), jnp.float32)}

    for tree in ({}, shapes):
        with pytest.raises((TypeError, ValueError)):
            optax.flatten(optax.adam(0.1)).init(tree)
    transformation = optwrap.flatten(optax.adam(0.1))
    assert transformation.update({}, transformation.init({}), {})[0] == {}
    assert transformation.init(shapes)[0].mu.shape == (3,)

    with pytest.raises(ValueError, match="concatenate"):
        optax.tree.map_params(optax.flatten(optax.adam(0.1)), jnp.ones_like, transformation.init(PARAMS))
    mapped = optax.tree.map_params(transformation, jnp.ones_like, transformation.init(PARAMS))
    np.testing.assert_array_equal(mapped[0].mu, 1.0)
    assert mapped[0].count == 0


def test_instrument_measures_in_a_scan() -> None:
    """optax.monitor's init returns no keys and its update returns some, so it cannot be the carry of a scan."""
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), GOOD, BAD, GOOD)

    def scanned(transformation: Any) -> Any:
        def step(carry: Any, grads: Any) -> Any:
            params, state = carry
            return stepper(transformation)(grads, state, params)[:2], None

        return jax.lax.scan(step, (PARAMS, transformation.init(PARAMS)), batches)[0][1]

    with pytest.raises(TypeError, match="carry"):
        scanned(optax.chain(optax.sgd(0.1), optax.monitor({"norm": optax.tree.norm})))
    got = optwrap.unpack(np.asarray(optwrap.reading(scanned(optwrap.instrument(optax.sgd(0.1))))))
    assert got.totals.not_finite_steps == 1
    np.testing.assert_allclose(got.norm, np.hypot(0.5, 0.25))
