"""`flush`: the step of an incomplete window, for example at the end of an epoch."""

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
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap
from optwrap._reading.unpack import Layout, unpack
from tests.optwrap.compilations import traces
from tests.optwrap.transformations import FLOAT32, assert_close, assert_same, assert_same_types, gradients, momentum

pytestmark = pytest.mark.thin(3)

FULL = jnp.int32(2**31 - 1)
SKIP: dict[str | None, Any] = {
    None: None,
    "not_finite": optwrap.skip_not_finite,
    "large": functools.partial(optwrap.skip_large_updates, max_squared_norm=1e6),
    "silent": lambda updates, *_: (~jnp.isfinite(updates["b"][0]), ()),
}
"""The last says nothing of what it skips in its skip state."""

REDUCE: dict[bool, Any] = {True: np.mean, False: np.sum}


def bad(grads: Any) -> Any:
    return {**grads, "b": np.full(3, np.nan, np.float32)}


class Trained:
    """A training that is flushed now and then: everything jitted, one trace each."""

    def __init__(self, steps: optwrap.MultiSteps) -> None:
        @jax.jit
        def step(grads: Any, state: Any, params: Any) -> Any:
            updates, after = steps.update(grads, state, params)
            return (
                optax.apply_updates(params, updates),
                after,
                steps.has_updated(after),
                steps.has_updated(after, state),
            )

        @jax.jit
        def flush(state: Any, params: Any) -> Any:
            updates, after = steps.flush(state, params)
            return (
                optax.apply_updates(params, updates),
                after,
                steps.has_updated(after),
                steps.has_updated(after, state),
            )

        self.init, self.step, self.flush = jax.jit(steps.init), step, flush


@functools.cache
def trained(skip: str | None, mean: bool) -> Trained:
    return Trained(optwrap.MultiSteps(momentum(), 3, use_grad_mean=mean, should_skip_update_fn=SKIP[skip]))


calls = st.lists(st.sampled_from(["step", "step", "step", "bad", "flush"]), min_size=1, max_size=14)


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "sum"])
@pytest.mark.parametrize("skip", ["not_finite", "large", "silent"])
@settings(max_examples=25, deadline=None)
@given(calls=calls)
def test_a_flush_takes_the_step_of_the_window_so_far(skip: str, mean: bool, calls: list[str]) -> None:
    """The parameters are those of the optimizer alone on numpy's means or sums of the windows."""
    training, alone = trained(skip, mean), jax.jit(momentum().update)
    params, expected = FLOAT32, FLOAT32
    state, expected_state = training.init(params), momentum().init(params)
    window: list[Any] = []
    took = 0
    for i, call in enumerate(calls):
        before = state
        if call == "flush":
            params, state, updated, surely = training.flush(state, params)
        else:
            grads = gradients(FLOAT32, i)
            params, state, updated, surely = training.step(bad(grads) if call == "bad" else grads, state, params)
            window += [grads] if call == "step" else []
        full = bool(window) and (call == "flush" or len(window) == 3)
        if full:
            grads = jax.tree.map(lambda *leaves: REDUCE[mean](np.stack(leaves), axis=0), *window)
            updates, expected_state = alone(grads, expected_state)
            expected = optax.apply_updates(expected, updates)
            took, window = took + 1, []
        elif call != "step":
            assert_same(state._replace(skip_state=()), before._replace(skip_state=()))
        assert_close((params, state.inner_opt_state), (expected, expected_state))
        assert (int(state.mini_step), int(state.gradient_step)) == (len(window), took)
        assert not state.mini_step or not full
        assert bool(surely) is full
        if skip != "silent" and call != "flush":
            assert bool(updated) is full
        if not window:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.acc_grads))
    assert max(traces(training.step), traces(training.flush)) <= 1


def test_a_flush_after_a_skip_clears_should_skip() -> None:
    """The flush of an empty window does not change it."""
    training = trained("not_finite", True)
    _, state, *_ = training.step(gradients(FLOAT32, 0), training.init(FLOAT32), FLOAT32)
    _, state, *_ = training.step(bad(FLOAT32), state, FLOAT32)
    _, state, updated, surely = training.flush(state, FLOAT32)
    assert (bool(updated), bool(surely), bool(state.skip_state["should_skip"])) == (True, True, False)
    _, skipped, *_ = training.step(bad(FLOAT32), state, FLOAT32)
    _, after, updated, surely = training.flush(skipped, FLOAT32)
    assert (bool(updated), bool(surely)) == (False, False)
    assert_same(after, skipped)


def test_has_updated_is_right_where_the_counter_saturates() -> None:
    """At 2**31 - 1 it is right in the middle of a window, and if the skip state has `should_skip`."""
    training = trained("not_finite", True)
    full = training.init(FLOAT32)._replace(gradient_step=FULL)
    updated = []
    state = full
    for grads in [FLOAT32, bad(FLOAT32), FLOAT32, FLOAT32, bad(FLOAT32)]:
        _, state, _, surely = training.step(grads, state, FLOAT32)
        updated.append(bool(surely))
    assert updated == [False, False, False, True, False]
    assert int(state.gradient_step) == 2**31 - 1


def test_non_finite_values_are_flushed_with_their_window() -> None:
    """Without a guard they reach the optimizer, a guard inside rejects them; the next window is unaffected."""
    for guarded in (False, True):
        inner = optwrap.apply_if_finite(momentum(), 5) if guarded else momentum()
        training = Trained(optwrap.MultiSteps(inner, 4))
        params, state, *_ = training.step(bad(FLOAT32), training.init(FLOAT32), FLOAT32)
        params, state, *_ = training.flush(state, params)
        assert bool(np.isfinite(params["b"]).all()) is guarded
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.acc_grads))


def test_a_schedule_goes_on_after_a_flush() -> None:
    """A flush is a gradient step: the next window has the k of the next step."""
    steps = optwrap.MultiSteps(optax.identity(), lambda step: jnp.where(step < 1, 3, 2))
    state, taken = steps.init(FLOAT32), []
    for i in range(5):
        _, state = steps.update(gradients(FLOAT32, i), state)
        if i == 0:
            _, state = steps.flush(state)
        taken.append(int(state.gradient_step))
    assert taken == [1, 1, 2, 2, 3]


def test_extra_args_reach_the_optimizer() -> None:
    """The optimizer gets the extra args of the flush."""

    def update(updates: Any, state: Any, params: Any = None, *, scale: Any) -> Any:
        del params
        return jax.tree.map(lambda leaf: leaf * scale, updates), state

    steps = optwrap.MultiSteps(optax.GradientTransformationExtraArgs(optax.identity().init, update), 4)
    _, state = steps.update(FLOAT32, steps.init(FLOAT32), scale=1.0)
    updates, _ = jax.jit(steps.flush)(state, FLOAT32, scale=jnp.float32(-3.0))
    assert_close(updates, jax.tree.map(lambda leaf: -3 * leaf, FLOAT32))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_the_optimizer_gets_the_dtypes_of_the_parameters(dtype: Any) -> None:
    """As from `update` with gradients of these; without parameters those of the accumulator."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), FLOAT32)
    steps = optwrap.MultiSteps(optax.identity(), 2)
    _, state = steps.update(params, steps.init(params), params)
    assert_same(steps.flush(state, params)[0], params)
    updates, after = steps.flush(state)
    assert_same(updates, state.acc_grads)
    assert_same_types(after, state)


def test_lookahead_inside_gets_its_step() -> None:
    """The window has the gradients' tree, the updates are a pair."""
    steps = optwrap.MultiSteps(optwrap.lookahead(optax.sgd(1.0), 1, 0.5), 4)
    pair = optax.LookaheadParams.init_synced(FLOAT32)
    _, state = steps.update(FLOAT32, steps.init(pair), pair)
    updates, state = jax.jit(steps.flush)(state, pair)
    assert_close(updates.slow, jax.tree.map(lambda leaf: -0.5 * leaf, FLOAT32))
    assert int(state.gradient_step) == 1


def test_nested_windows_are_flushed_from_the_outermost_inwards() -> None:
    """The inner window takes the flushed step as a mini-step."""
    inner = optwrap.MultiSteps(optax.identity(), 2)
    outer = optwrap.MultiSteps(inner, 2)
    state = outer.init(FLOAT32)
    batches = [gradients(FLOAT32, i) for i in range(3)]
    for grads in batches:
        _, state = outer.update(grads, state, FLOAT32)
    updates, state = outer.flush(state, FLOAT32)
    first = jax.tree.map(lambda a, b: (a + b) / 2, *batches[:2])
    assert_close(updates, jax.tree.map(lambda a, b: (a + b) / 2, first, batches[2]))
    for grads in batches[:2]:
        _, state = outer.update(grads, state, FLOAT32)
    _, state = outer.flush(state, FLOAT32)  # nothing waits in the outer one
    updates, state = inner.flush(state.inner_opt_state, FLOAT32)
    assert_close(updates, first)
    assert int(state.gradient_step) == 2


@pytest.mark.parametrize("where", ["scan", "vmap"])
def test_works_within_scan_and_vmap(where: str) -> None:
    """Epochs of a scan, each flushed; and two trainings at once, of which one has nothing to flush."""
    steps = optwrap.MultiSteps(optax.identity(), 2)
    if where == "scan":

        def epoch(state: Any, grads: Any) -> Any:
            _, state = steps.update(grads, state)
            updates, state = steps.flush(state)
            return state, updates

        batches = jnp.arange(12.0).reshape(4, 3)
        state, updates = jax.jit(functools.partial(jax.lax.scan, epoch))(steps.init(batches[0]), batches)
        np.testing.assert_array_equal(updates, batches)
        assert int(state.gradient_step) == 4
    else:
        _, one = steps.update(jnp.ones(3), steps.init(jnp.ones(3)))
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, steps.init(jnp.ones(3)))
        updates, state = jax.jit(jax.vmap(steps.flush))(both)
        np.testing.assert_array_equal(updates, [[1.0] * 3, [0.0] * 3])
        np.testing.assert_array_equal(state.gradient_step, [1, 0])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_shardings_are_kept(axis_type: AxisType) -> None:
    """Nothing is gathered."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.ones((8, 3)), NamedSharding(mesh, P("data")))}
        steps = optwrap.MultiSteps(optax.adam(0.1), 4)
        state = jax.jit(steps.init)(params)
        _, state = jax.jit(steps.update)(params, state, params)
        compiled: Any = jax.jit(steps.flush).lower(state, params).compile()
        assert "all-gather" not in compiled.as_text()
        updates, after = compiled(state, params)
    for got, expected in zip(jax.tree.leaves((updates, after)), jax.tree.leaves((params, state)), strict=True):
        assert got.sharding.is_equivalent_to(expected.sharding, got.ndim)


def test_an_instrumented_training_is_flushed_through_the_inner_state() -> None:
    """No step is counted; the wrapper's own counters and the next window's outcome are right."""
    steps = optwrap.MultiSteps(momentum(), 3)
    tx = optwrap.instrument(steps)
    update = jax.jit(tx.update)

    @jax.jit
    def flush(state: Any, params: Any) -> Any:
        updates, inner = steps.flush(state.inner_state, params)
        return updates, state._replace(inner_state=inner)

    def read(state: Any) -> Any:
        return unpack(np.asarray(optwrap.reading(state)), Layout(("b", "layer/w")))

    state = tx.init(FLOAT32)
    _, state = update(bad(FLOAT32), state, FLOAT32)
    _, state = flush(state, FLOAT32)
    assert sum(read(state).totals.outcomes.values()) == 1
    for _ in range(3):
        _, state = update(FLOAT32, state, FLOAT32)
    reading = read(state)
    assert reading.totals.outcomes["applied"] == 1, "what was not finite went with the window that was flushed"
    assert reading.totals.outcomes["accumulated"] == 3
    assert reading.gauges["gradient_step"] == 2


WRONG: dict[str, Callable[[Any], Any]] = {
    "flush": lambda state: optwrap.MultiSteps(momentum(), 2).flush(state, FLOAT32),
    "has_updated": lambda state: optwrap.MultiSteps(momentum(), 2).has_updated(state),
    "previous": lambda state: optwrap.MultiSteps(momentum(), 2).has_updated(
        optwrap.MultiSteps(momentum(), 2).init(FLOAT32), state
    ),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_the_state_of_instrument_is_refused(call: Callable[[Any], Any]) -> None:
    state = optwrap.instrument(optwrap.MultiSteps(momentum(), 2)).init(FLOAT32)
    with pytest.raises(TypeError, match=r"MultiSteps.*: state must be the MultiStepsState .* \(InstrumentState\)"):
        call(state)
