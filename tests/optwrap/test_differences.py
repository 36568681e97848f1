"""The bugs of optax that optwrap fixes: each test shows both, and docs/reference/differences-from-optax.md cites it.

If a test begins to fail because optax fixed the bug, delete the test and its section.
"""

import functools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap
from tests.optwrap.transformations import assert_same_types, stepper

PARAMS = {"w": jnp.array([1.0, 2.0])}
GOOD = {"w": jnp.array([0.5, 0.25])}
BAD = {"w": jnp.array([0.5, jnp.nan])}
DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "differences-from-optax.md"


def train(transformation: Any, batches: list[Any], params: Any = PARAMS, jit: bool = True) -> list[Any]:
    """(params, state, updates) after each batch."""
    state = transformation.init(params)
    step = jax.jit(stepper(transformation)) if jit else stepper(transformation)
    trail = []
    for grads in batches:
        trail.append(step(grads, state, params))
        params, state, _ = trail[-1]
    return trail


def has_nan(tree: Any) -> bool:
    return any(np.isnan(leaf).any() for leaf in jax.tree.leaves(tree))


def test_a_bad_mini_step_is_forgotten_with_its_window() -> None:
    """After one NaN optax's updates are NaN at once and its accumulator for ever; ours loses that window at most."""

    def trained(library: Any) -> list[Any]:
        return train(library.MultiSteps(optax.sgd(0.1), 2), [BAD, GOOD, GOOD, GOOD])

    theirs = trained(optax)
    assert has_nan(theirs[0].updates)
    assert all(has_nan(after.state.acc_grads) for after in theirs)

    ours = trained(optwrap)
    assert not has_nan(ours[0].updates)
    assert has_nan(ours[1].params)  # nothing guards it: the window's mean is NaN, as the gradients were
    assert not has_nan(ours[3].state.acc_grads)
    assert not has_nan(ours[3].updates)


@pytest.mark.parametrize("limit", [1, 1000])
def test_a_guard_inside_multi_steps_recovers(limit: int) -> None:
    """One NaN micro-batch: with optax the training stands still for ever or breaks, ours loses one window."""

    def trained(library: Any) -> list[Any]:
        guard = library.apply_if_finite(optax.adam(0.1), limit)
        return train(library.MultiSteps(guard, 2), [BAD] + [GOOD] * 7)

    theirs = trained(optax)[-1]
    assert has_nan(theirs.params) if limit == 1 else np.array_equal(theirs.params["w"], PARAMS["w"])
    assert theirs.state.inner_opt_state.total_notfinite > 1

    ours = trained(optwrap)[-1]
    assert not has_nan(ours.params)
    assert ours.state.inner_opt_state.total_notfinite == 1
    expected = train(optwrap.MultiSteps(optax.adam(0.1), 2), [GOOD] * 6)[-1]
    np.testing.assert_array_equal(ours.params["w"], expected.params["w"])


def test_the_optimizer_runs_once_per_window() -> None:
    """With optax it runs in every mini-step, and the result is thrown away."""

    def runs(library: Any) -> int:
        ran = []

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            del params
            jax.debug.callback(lambda: ran.append(1))
            return updates, state

        inner = optax.GradientTransformation(optax.identity().init, update)
        jax.block_until_ready(train(library.MultiSteps(inner, 4), [GOOD] * 8))
        jax.effects_barrier()
        return len(ran)

    assert runs(optax) == 8
    assert runs(optwrap) == 2


@pytest.mark.parametrize("k", [np.int64(2), np.array(2), jnp.int32(2)], ids=["numpy", "array", "jax"])
def test_k_may_be_any_integer_scalar(k: Any) -> None:
    """Numpy's and jax's, too, which optax calls as if they were schedules."""
    with pytest.raises(TypeError, match="not callable"):
        train(optax.MultiSteps(optax.sgd(0.1), k), [GOOD])
    after = train(optwrap.MultiSteps(optax.sgd(0.1), k), [GOOD] * 2)
    assert [int(a.state.gradient_step) for a in after] == [0, 1]


def test_k_below_one_does_not_accumulate_for_ever() -> None:
    """With k = 0 optax never takes a step. Ours raises, or counts a schedule's 0 as 1."""
    assert train(optax.MultiSteps(optax.sgd(0.1), 0), [GOOD] * 5)[-1].state.gradient_step == 0
    with pytest.raises(ValueError, match=r"every_k_schedule must be an integer from 1 .* got 0"):
        optwrap.MultiSteps(optax.sgd(0.1), 0)

    assert train(optax.MultiSteps(optax.sgd(0.1), lambda _: jnp.int32(0)), [GOOD] * 5)[-1].state.gradient_step == 0
    assert train(optwrap.MultiSteps(optax.sgd(0.1), lambda _: jnp.int32(-3)), [GOOD] * 5)[-1].state.gradient_step == 5


def test_k_may_come_down_within_a_window() -> None:
    """If k falls below the mini-steps already taken, optax misses the end of the window; ours ends it."""

    def steps(library: Any) -> list[int]:
        factory = optax.inject_hyperparams(
            lambda k: library.MultiSteps(optax.sgd(0.1), lambda _: k).gradient_transformation()
        )
        transformation = factory(k=4)
        state = transformation.init(PARAMS)
        steps = []
        for i in range(4):
            if i == 2:
                state.hyperparams["k"] = jnp.int32(2)
            _, state = transformation.update(GOOD, state, PARAMS)
            steps.append(int(state.inner_state.gradient_step))
        return steps

    assert steps(optax) == [0, 0, 0, 1]  # at mini-step 2 of 2 it wraps to 1, and the mean has four batches in it
    assert steps(optwrap) == [0, 0, 1, 1]


def test_has_updated_is_false_after_a_skip() -> None:
    """After a mini-step that is skipped right after a step, optax's has_updated returns True."""

    def said(library: Any) -> list[bool]:
        wrapper = library.MultiSteps(optax.sgd(0.1), 1, should_skip_update_fn=library.skip_not_finite)
        return [bool(wrapper.has_updated(after.state)) for after in train(wrapper, [BAD, GOOD, BAD, GOOD])]

    assert said(optax) == [False, True, True, True]
    assert said(optwrap) == [False, True, False, True]


def test_mini_steps_may_have_weights() -> None:
    """Batches of three and of one examples: optax's mean is of the batches, ours, if weighted, of the examples."""
    three, one = {"w": jnp.array([2.0, 2.0])}, {"w": jnp.array([6.0, 6.0])}
    theirs = train(optax.MultiSteps(optax.identity(), 2), [three, one])[-1].updates
    np.testing.assert_array_equal(theirs["w"], 4.0)
    steps = optwrap.MultiSteps(optax.identity(), 2, weighted=True)
    _, state = steps.update(three, steps.init(PARAMS), weight=3)
    updates, _ = steps.update(one, state, weight=1)
    np.testing.assert_array_equal(updates["w"], 3.0)


def test_a_window_may_be_flushed() -> None:
    """Of three batches in windows of two, optax never applies the last one; ours does with `flush`."""
    assert not hasattr(optax.MultiSteps, "flush")
    batches = [GOOD, GOOD, {"w": jnp.array([3.0, 1.0])}]
    waiting = train(optax.MultiSteps(optax.sgd(1.0), 2), batches)[-1]
    assert (waiting.state.mini_step, waiting.state.gradient_step) == (1, 1)
    updates, state = optwrap.MultiSteps(optax.sgd(1.0), 2).flush(waiting.state, waiting.params)
    np.testing.assert_array_equal(updates["w"], [-3.0, -1.0])
    assert (state.mini_step, state.gradient_step) == (0, 2)


def test_gradient_transformation_passes_extra_args_on() -> None:
    """In a chain, optax.MultiSteps' transformation drops them, and an optimizer that needs one fails."""

    def update(library: Any) -> Any:
        inner = optax.chain(library.MultiSteps(optax.polyak_sgd(), 1).gradient_transformation())
        return inner.update(GOOD, inner.init(PARAMS), PARAMS, value=jnp.float32(1.0))

    with pytest.raises(TypeError, match="value"):
        update(optax)
    updates, _ = update(optwrap)
    assert np.any(updates["w"])


def test_accumulators_hold_float64_and_complex() -> None:
    """Optax accumulates both in float32: float64 is rounded, and complex loses its imaginary part."""

    def mean(library: Any, values: list[Any]) -> Any:
        params = jnp.zeros_like(values[0])
        wrapper = library.MultiSteps(optax.identity(), len(values))
        return train(wrapper, values, params)[-1].updates

    with jax.enable_x64(True):
        fine = [jnp.array(1.0 + 1e-12), jnp.array(1.0 + 3e-12)]
        assert mean(optax, fine) == 1.0
        assert mean(optwrap, fine) == pytest.approx(1.0 + 2e-12, rel=0, abs=1e-15)

    complex_values = [jnp.complex64(1 + 2j), jnp.complex64(3 + 4j)]
    with pytest.warns(DeprecationWarning, match="Casting from complex to real"):
        assert mean(optax, complex_values) == 2 + 2j  # of the first only the real part was kept
    assert mean(optwrap, complex_values) == 2 + 3j


def test_windows_of_tiny_dtypes() -> None:
    """JAX does not promote 8-bit floats, so optax raises; ours computes in float32."""
    grads = jnp.asarray([1.5, 3.0], jnp.float8_e4m3fn)
    for dtype in (jnp.bfloat16, jnp.float32, None):
        after = train(optwrap.MultiSteps(optax.identity(), 2, accumulator_dtype=dtype), [grads, grads], grads)[-1]
        assert after.state.acc_grads.dtype == (dtype or jnp.float8_e4m3fn)
        assert after.updates.dtype == grads.dtype
        np.testing.assert_array_equal(np.asarray(after.updates), np.asarray(grads))
    with pytest.raises(ValueError, match="no available implicit dtype promotion path"):
        train(optax.MultiSteps(optax.identity(), 2), [grads], grads)


def test_accumulator_dtype_none_is_that_of_the_parameters() -> None:
    """With bfloat16 parameters optax raises from inside a cond."""
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    with pytest.raises(TypeError, match="equal output types"):
        train(optax.MultiSteps(optax.sgd(0.1), 2, accumulator_dtype=None), [params] * 2, params)
    after = train(optwrap.MultiSteps(optax.sgd(0.1), 2, accumulator_dtype=None), [params] * 2, params)[-1]
    assert after.state.acc_grads["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(after.params["w"].astype(np.float32), np.float32(jnp.bfloat16(0.9)))


def test_multi_steps_under_strict_dtype_promotion() -> None:
    """Optax raises, because it relies on implicit promotion."""
    with jax.numpy_dtype_promotion("strict"):
        with pytest.raises(ValueError, match="promotion"):
            train(optax.MultiSteps(optax.sgd(0.1), 2), [GOOD] * 2)
        assert train(optwrap.MultiSteps(optax.sgd(0.1), 2), [GOOD] * 2)[-1].state.gradient_step == 1


@pytest.mark.parametrize("billions", [3, 4])
def test_skip_not_finite_sees_any_number_of_bad_values(billions: int) -> None:
    """Optax does not skip 3 * 2**30 or 4 * 2**30 NaNs: its int32 count is negative or zero."""
    values = jnp.full(2**26, jnp.nan, jnp.float16)
    leaves = billions * 2**30 // values.size

    def called(library: Any) -> Any:
        return jax.jit(lambda values: library.skip_not_finite([values] * leaves, 0, None))(values)

    skip, said = called(optax)
    assert not skip
    assert said["num_not_finite"] == (-(2**30) if billions == 3 else 0)
    skip, said = called(optwrap)
    assert skip
    assert said["num_not_finite"] == 2**31 - 1


def test_skip_large_updates_measures_narrow_and_complex_gradients() -> None:
    """Squares overflow in float16, and squares of complex numbers cancel: optax skips neither."""

    def squared(library: Any, updates: Any) -> float:
        return float(library.skip_large_updates(updates, 0, None, max_squared_norm=1e6)[1]["norm_squared"])

    ones = jnp.ones((300, 300), jnp.float16)
    assert squared(optax, ones) == np.inf
    assert squared(optwrap, ones) == 90_000

    opposite = jnp.array([1j, 1.0], jnp.complex64)
    norm = optax.skip_large_updates(opposite, 0, None, max_squared_norm=1e6)[1]["norm_squared"]
    assert norm == 0
    assert squared(optwrap, opposite) == 2


def test_the_keyword_of_skip_large_updates_is_checked_when_the_wrapper_is_made() -> None:
    """The one that optax's docstring names does not exist, and fails when the training starts."""
    assert "max_norm_sq" in optax.MultiSteps.__init__.__doc__
    wrong = functools.partial(optax.skip_large_updates, max_norm_sq=42.0)
    optax.MultiSteps(optax.sgd(0.1), 2, should_skip_update_fn=wrong)
    with pytest.raises(TypeError, match="max_squared_norm"):
        optwrap.MultiSteps(optax.sgd(0.1), 2, should_skip_update_fn=wrong)


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


def test_every_difference_is_documented_and_every_documented_one_is_tested() -> None:
    """The document cites exactly the tests of this file, one under each heading that tells of a difference."""
    cited = re.findall(r"`(test_\w+)`", DOCUMENT.read_text(encoding="utf-8"))
    tests = {name for name in globals() if name.startswith("test_")} - {
        "test_every_difference_is_documented_and_every_documented_one_is_tested"
    }
    assert sorted(cited) == sorted(tests)
