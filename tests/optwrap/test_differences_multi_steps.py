"""Bugs of optax's MultiSteps and skip functions: each test shows optax's and ours; differences-from-optax.md cites it.

If a test begins to fail because optax fixed the bug, delete the test and its section.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap
from tests.compiling import AS_USERS
from tests.optwrap.differences import BAD, GOOD, PARAMS, has_nan, train


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

    def has_updated(library: Any) -> list[bool]:
        wrapper = library.MultiSteps(optax.sgd(0.1), 1, should_skip_update_fn=library.skip_not_finite)
        return [bool(wrapper.has_updated(after.state)) for after in train(wrapper, [BAD, GOOD, BAD, GOOD])]

    assert has_updated(optax) == [False, True, True, True]
    assert has_updated(optwrap) == [False, True, False, True]


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
        skip = jax.jit(lambda values: library.skip_not_finite([values] * leaves, 0, None), compiler_options=AS_USERS)
        return skip(values)

    skip, skip_state = called(optax)
    assert not skip
    assert skip_state["num_not_finite"] == (-(2**30) if billions == 3 else 0)
    skip, skip_state = called(optwrap)
    assert skip
    assert skip_state["num_not_finite"] == 2**31 - 1


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
