"""`instrument` does not change the training, and its state works like any optimizer state."""

import dataclasses
import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optwrap
from optwrap._reading.counters import MAX_COUNT, Sizes, pack, parameter_count, split
from optwrap._reading.state import reading
from optwrap._reading.unpack import Layout, Reading, unpack
from optwrap._step.count import sizes
from optwrap._step.instrument import instrument
from tests.optwrap.compilations import traces
from tests.optwrap.transformations import (
    FLOAT32,
    PAIRS,
    SINGLES,
    TREES,
    Case,
    assert_same,
    gradients,
    momentum,
    run,
    stepper,
)

LAYOUT = Layout(("b", "layer/w"))


class Noting:
    """A monitor that keeps what it is told."""

    def __init__(self) -> None:
        self.layouts: list[Layout] = []
        self.stepping: list[bool] = []

    def describe(self, layout: Layout, *, stepping: bool = False) -> None:
        self.layouts.append(layout)
        self.stepping.append(stepping)

    def observe(self, reading: Any) -> None:
        raise AssertionError(f"nobody observed {reading}")


def read(state: Any, layout: Layout | None = LAYOUT) -> Reading:
    return unpack(np.asarray(reading(state)), layout)


def spoilt(tree: Any, value: float, where: str = "b") -> Any:
    """The tree with one value replaced in one of its leaves."""
    return {**tree, where: jnp.asarray(tree[where]).at[(0,) * np.ndim(tree[where])].set(value)}


def assert_same_bits(actual: Any, expected: Any) -> None:
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape, np.asarray(a).tobytes()) == (e.dtype, e.shape, np.asarray(e).tobytes()), (a, e)


@functools.cache
def instrumented(case: Case) -> tuple[Any, Any]:
    tx = instrument(case.build(optwrap))
    return jax.jit(tx.init), jax.jit(stepper(tx))


@pytest.mark.thin(3)
@pytest.mark.parametrize("case", [*SINGLES[:6], *PAIRS[::8]], ids=lambda case: case.name)
@settings(max_examples=8, deadline=None)
@given(faults=st.lists(st.sampled_from([0.0, 1.0, 100.0, 1e30, np.nan, np.inf]), min_size=5, max_size=5))
def test_params_and_inner_state_equal_those_without_instrument(case: Case, faults: list[float]) -> None:
    """Bit for bit, for non-finite gradients, too."""
    batches = [spoilt(gradients(FLOAT32, step), value) for step, value in enumerate(faults)]
    init, step = instrumented(case)
    params = case.params(FLOAT32)
    state = init(params)
    for grads, expected in zip(batches, run(case, optwrap, FLOAT32, batches)[1:], strict=True):
        params, state, updates = step(grads, state, params)
        assert_same_bits((params, state.inner_state, updates), expected)
    assert read(state).step == len(batches)


def test_gradients_computed_in_the_same_step_keep_their_bits() -> None:
    """Reading the gradients does not change how XLA computes them."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8)).astype(np.float32), rng.normal(size=(64, 1)).astype(np.float32)
    params = {"w1": rng.normal(size=(8, 32)).astype(np.float32), "w2": rng.normal(size=(32, 1)).astype(np.float32)}

    def train(tx: Any) -> Any:
        def loss(params: Any) -> Any:
            return jnp.mean((jnp.tanh(x @ params["w1"]) @ params["w2"] - y) ** 2)

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        here, state = params, tx.init(params)
        for _ in range(20):
            here, state = step(here, state)
        return here

    tx = optwrap.MultiSteps(optwrap.apply_if_finite(optax.adamw(1e-2), 3), 2).gradient_transformation()
    assert_same_bits(train(instrument(tx)), train(tx))


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("case", SINGLES[:8], ids=lambda case: case.name)
def test_update_returns_a_state_of_the_same_types_as_init(case: Case, tree: str) -> None:
    """Structure, shapes, dtypes and weak types: it can be the carry of a scan, and a checkpoint's template."""
    tx = instrument(case.build(optwrap))
    params = case.params(TREES[tree])
    state = jax.eval_shape(tx.init, params)
    _, after = jax.eval_shape(tx.update, gradients(TREES[tree], 0), state, params)
    for before, now in zip(jax.tree.leaves(state.counters), jax.tree.leaves(after.counters), strict=True):
        assert (before.shape, before.dtype, before.weak_type) == (now.shape, now.dtype, now.weak_type)
    (words,) = jax.tree.leaves(state.counters)
    lengths = sizes(state.inner_state)
    assert parameter_count(words.shape[-1], lengths) == len(jax.tree.leaves(TREES[tree]))


@pytest.mark.parametrize("case", [*SINGLES, *PAIRS], ids=lambda case: case.name)
@pytest.mark.usefixtures("strict_dtypes")
def test_nothing_relies_on_implicit_promotion(case: Case) -> None:
    tx = instrument(case.build(optwrap))
    params = case.params(FLOAT32)
    state = jax.eval_shape(tx.init, params)
    _, after = jax.eval_shape(tx.update, FLOAT32, state, params)
    assert after.counters == state.counters


@pytest.mark.parametrize("case", [*SINGLES[:6], *PAIRS[::6]], ids=lambda case: case.name)
def test_map_params_maps_the_moments_and_leaves_the_counters(case: Case) -> None:
    """It calls init with a placeholder, which the monitor is not told of."""
    monitor = Noting()
    tx = instrument(case.build(optwrap), monitor)
    state = tx.init(case.params(FLOAT32))
    mapped = optax.tree.map_params(tx, lambda leaf: leaf + 1, state)
    assert_same(mapped.counters, state.counters)
    inner = optax.tree.map_params(case.build(optwrap), lambda leaf: leaf + 1, state.inner_state)
    assert_same(mapped.inner_state, inner)
    assert monitor.layouts == [LAYOUT]


def test_a_state_survives_pickling_in_mid_training() -> None:
    tx = instrument(optwrap.MultiSteps(momentum(), 3), name="main")
    step = jax.jit(stepper(tx))
    params, state, _ = step(spoilt(FLOAT32, np.nan), tx.init(FLOAT32), FLOAT32)
    restored = pickle.loads(pickle.dumps(jax.device_get(state)))
    assert isinstance(restored, optwrap.InstrumentState)
    assert_same(step(FLOAT32, restored, params).state, step(FLOAT32, state, params).state)


def test_one_trace_serves_every_step() -> None:
    tx = instrument(optwrap.apply_if_finite(optwrap.MultiSteps(momentum(), 2), 1))
    traced = 0

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, grads: Any) -> Any:
        nonlocal traced
        traced += 1
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, reading(state)

    params = jax.tree.map(jnp.copy, FLOAT32)
    state = jax.jit(tx.init)(params)
    words = []
    for value in (0.0, np.nan, np.inf, np.nan, 1e30, 0.0):
        params, state, now = step(params, state, spoilt(gradients(FLOAT32, 0), value))
        words.append(now)
    assert traced == 1
    assert traces(step) == 1
    # The readings outlive the donated states they were taken from.
    assert [unpack(np.asarray(now), LAYOUT).step for now in words] == [1, 2, 3, 4, 5, 6]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state))) is False


def test_eager_and_jitted_updates_count_alike() -> None:
    tx = instrument(optwrap.apply_if_finite(optax.sgd(0.1), 1))
    step = stepper(tx)
    eager = jitted = (FLOAT32, tx.init(FLOAT32))
    for value in (np.nan, np.inf):
        eager = step(spoilt(FLOAT32, value), eager[1], eager[0])[:2]
        jitted = jax.jit(step)(spoilt(FLOAT32, value), jitted[1], jitted[0])[:2]
        np.testing.assert_array_equal(reading(eager[1]), reading(jitted[1]))


def test_a_stack_of_optimizers_under_vmap_counts_each_by_itself() -> None:
    tx = instrument(optwrap.apply_if_finite(momentum(), 1))
    step = stepper(tx)
    batches = [spoilt(FLOAT32, value) for value in (1.0, np.nan, 1e30)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    states = jax.vmap(lambda _: tx.init(FLOAT32))(jnp.arange(3))
    words = jax.jit(jax.vmap(lambda grads, state: reading(step(grads, state, FLOAT32).state)))(together, states)
    for row, grads in zip(words, batches, strict=True):
        alone = reading(jax.jit(step)(grads, tx.init(FLOAT32), FLOAT32).state)
        np.testing.assert_array_equal(row, alone)


def test_gradients_flow_through_an_instrumented_update() -> None:
    """The derivative of the result of a training by its learning rate."""

    def outcome(rate: Any, wrap: Any) -> Any:
        tx = wrap(optwrap.apply_if_finite(optax.sgd(rate, momentum=0.5), 2))
        params, state = FLOAT32, tx.init(FLOAT32)
        for _ in range(3):
            updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
            params = optax.apply_updates(params, updates)
        return optax.tree.sum(params)

    with_it = jax.jit(jax.grad(lambda rate: outcome(rate, instrument)))(0.1)
    np.testing.assert_allclose(with_it, jax.jit(jax.grad(lambda rate: outcome(rate, lambda tx: tx)))(0.1), rtol=1e-6)


def test_counters_saturate_and_never_wrap() -> None:
    tx = instrument(momentum())
    state = tx.init(FLOAT32)
    fields = split(state.counters["instrument"], Sizes(0, 0))
    counts = ("outcomes", "not_finite_steps", "not_finite_streak", "not_finite_streak_peak", "parameters")
    full = {name: jnp.full_like(getattr(fields, name), MAX_COUNT) for name in counts}
    state = state._replace(counters={"instrument": pack(fields._replace(**full))})
    after = jax.jit(stepper(tx))(spoilt(FLOAT32, np.nan), state, FLOAT32).state
    totals = read(after).totals
    assert set(totals.outcomes.values()) == {MAX_COUNT}
    assert totals.not_finite_steps == MAX_COUNT
    assert set(totals.parameters.values()) == {MAX_COUNT}
    assert read(after).gauges["not_finite_streak"] == MAX_COUNT
    assert read(after).gauges["not_finite_streak_peak"] == MAX_COUNT


def test_extra_args_reach_whatever_is_wrapped() -> None:
    """Through a transformation, and through a MultiSteps of either library given as it is."""

    def update(updates: Any, state: Any, params: Any = None, *, gain: Any, **extra: Any) -> Any:
        del params, extra
        return jax.tree.map(lambda x: gain * x, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    for tx in (inner, optwrap.MultiSteps(inner, 1), optax.MultiSteps(inner, 1), optwrap.apply_if_finite(inner, 1)):
        wrapped = instrument(tx)
        updates, state = wrapped.update(FLOAT32, wrapped.init(FLOAT32), FLOAT32, gain=2.0)
        assert_same(updates, jax.tree.map(lambda x: 2.0 * x, FLOAT32))
        assert read(state).outcome == "applied"
    plain = instrument(optax.sgd(1.0))
    plain.update(FLOAT32, plain.init(FLOAT32), FLOAT32, gain=2.0)  # whoever takes none is given none


def test_an_instrument_inside_an_instrument_counts_its_own_calls() -> None:
    inner = instrument(momentum(), name="inner")
    tx = instrument(optwrap.MultiSteps(inner, 2), name="outer")
    state = tx.init(FLOAT32)
    for value in (1.0, np.nan, 1.0, 1.0):
        state = jax.jit(stepper(tx))(spoilt(FLOAT32, value), state, FLOAT32).state
    outer, inside = (unpack(np.asarray(reading(state, name)), LAYOUT).totals for name in ("outer", "inner"))
    assert (outer.steps, outer.gradient_steps, inside.steps) == (4, 2, 2)
    assert (outer.outcomes["accepted_not_finite"], inside.outcomes["accepted_not_finite"]) == (1, 1)


def test_the_monitor_learns_the_names_whenever_init_or_update_is_traced() -> None:
    monitor = Noting()
    tx = instrument(momentum(), monitor)
    state = tx.init(FLOAT32)
    jax.eval_shape(tx.update, FLOAT32, state, FLOAT32)
    assert monitor.layouts == [LAYOUT, LAYOUT]
    assert monitor.stepping == [False, True]


def test_parameters_of_lookahead_have_the_names_of_the_fast_ones() -> None:
    monitor = Noting()
    tx = instrument(optax.chain(optax.clip(1.0), optwrap.lookahead(momentum(), 2, 0.5)), monitor)
    params = optax.LookaheadParams.init_synced(FLOAT32)
    jax.eval_shape(tx.update, FLOAT32, tx.init(params), params)
    assert monitor.layouts == [LAYOUT, LAYOUT]


class Odd:
    """A key that prints like any other of its kind."""

    def __str__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"a/b": 1.0, "a": {"b": 1.0}, "c": [1.0, 1.0]}, ("['a']['b']", "['a/b']", "c/0", "c/1")),
        (1.0, ("params",)),
        ({}, ()),
        ({"a": None, "b": optax.MaskedNode(), "c": (1.0,)}, ("c/0",)),
        (optwrap.LookaheadParams({"w": 1.0}, {"w": 1.0}), ("w",)),
    ],
)
def test_paths_give_each_parameter_its_own_name(tree: Any, expected: tuple[str, ...]) -> None:
    monitor = Noting()
    instrument(optax.identity(), monitor).init(tree)
    assert monitor.layouts == [Layout(expected)]


def test_a_boxed_parameter_has_the_name_of_the_unboxed_one() -> None:
    """Flax passes boxes to init and unboxed arrays to update."""

    @functools.partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=[])
    @dataclasses.dataclass
    class Box:
        value: Any

    tx = instrument(optax.sgd(0.1), monitor := Noting())
    state = tx.init({"kernel": Box(jnp.ones(2)), "value": jnp.ones(2)})
    tx.update({"kernel": jnp.ones(2), "value": jnp.ones(2)}, state)
    assert monitor.layouts == [Layout(("kernel", "value"))] * 2


def test_no_two_parameters_share_a_name_even_where_their_keys_print_alike() -> None:
    @jax.tree_util.register_pytree_with_keys_class
    class Pair:
        def tree_flatten_with_keys(self) -> Any:
            return ((Odd(), 1.0), (Odd(), 2.0)), None

        @classmethod
        def tree_unflatten(cls, aux: Any, children: Any) -> Any:
            del aux, children
            return cls()

    monitor = Noting()
    instrument(optax.identity(), monitor).init(Pair())
    assert len(set(monitor.layouts[0].parameters)) == 2


def test_frozen_parameters_whose_gradients_are_none_keep_their_place() -> None:
    """Names and counts are those of all parameters that init was given."""
    tx = instrument(optax.sgd(0.1), monitor := Noting())
    params = {"a": jnp.ones(2), "frozen": jnp.ones(2), "z": jnp.ones(2)}
    grads = {"a": jnp.ones(2), "frozen": None, "z": jnp.array([1.0, np.nan])}
    _, state = jax.jit(tx.update)(grads, tx.init(params), params)
    assert monitor.layouts == [Layout(("a", "frozen", "z"))] * 2
    assert read(state, monitor.layouts[0]).nonfinite_parameters == {"z": 1}
    with pytest.raises(ValueError, match=r"updates must have the 3 leaves .* got 2 leaves"):
        tx.update(grads, tx.init(params))  # without params nobody can tell which are missing


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"tx": 3}, TypeError, r"tx must be an optax.GradientTransformation, got 3 \(int\)"),
        ({"tx": optax.adam}, TypeError, r"call it: optax.adam\(1e-3\), not optax.adam"),
        ({"monitor": "run"}, TypeError, r"monitor must be an optwrap.Monitor.* got 'run' \(str\)"),
        ({"monitor": Noting}, TypeError, r"monitor must be an optwrap.Monitor.* \(type\)"),
        ({"emit": "print"}, ValueError, r"emit must be one of 'reading', 'callback', got 'print'"),
        ({"emit": "callback"}, ValueError, r"monitor must be given with emit=\"callback\", got None"),
        ({"name": 7}, TypeError, r"name must be .* got 7 \(int\)"),
        ({"name": "a/b"}, ValueError, r"name must be .* got 'a/b'"),
        ({"name": ""}, ValueError, r"name must be .* got ''"),
    ],
    ids=[
        "tx",
        "tx not called",
        "monitor a string",
        "monitor a class",
        "emit",
        "emit without monitor",
        "name a number",
        "name with slash",
        "name empty",
    ],
)
def test_a_wrong_argument_is_refused_with_its_name_value_and_remedy(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        instrument(**{"tx": optax.sgd(0.1), **arguments})


def test_another_state_is_refused() -> None:
    tx = instrument(momentum(), name="main")
    with pytest.raises(TypeError, match=r"state must be the InstrumentState .* got tuple"):
        tx.update(FLOAT32, (), FLOAT32)
    other = instrument(momentum(), name="other").init(FLOAT32)
    with pytest.raises(
        ValueError, match=r"state must be that of the instrumentation named 'main', got that of 'other'"
    ):
        tx.update(FLOAT32, other, FLOAT32)
