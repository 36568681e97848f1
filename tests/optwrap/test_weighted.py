"""Weighted accumulation: the optimizer gets numpy's weighted mean, or sum, of the window's mini-steps."""

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
from optwrap._reading.unpack import Layout, unpack
from tests.optwrap.compilations import traces
from tests.optwrap.transformations import FLOAT32, assert_close, assert_same, gradients, momentum, tree_of

pytestmark = pytest.mark.thin(3)

K = 3
LARGEST = 1e30


def bad(grads: Any) -> Any:
    return {**grads, "b": np.full(3, np.nan, np.float32)}


def counted(weight: float) -> float:
    """The weight that counts: 0 if the given weight is invalid."""
    return weight if 0 < weight < np.inf else 0.0


def weighted(mean: bool = True, skip: bool = False, k: Any = K, inner: Any = None) -> optwrap.MultiSteps:
    return optwrap.MultiSteps(
        optax.identity() if inner is None else inner,
        k,
        mean,
        optwrap.skip_not_finite if skip else None,
        weighted=True,
    )


@functools.cache
def compiled(mean: bool, skip: bool) -> Any:
    return jax.jit(lambda grads, state, weight: weighted(mean, skip).update(grads, state, weight=weight))


weights = st.one_of(
    st.floats(0, 1e6, width=32, allow_subnormal=False),
    st.sampled_from([0.0, -1.0, np.nan, np.inf, -np.inf, 1e-30, 1e30, 1.0, 1.0]),
)
mini_steps = st.lists(st.tuples(weights, st.booleans(), st.integers(0, 5)), min_size=1, max_size=10)


@pytest.mark.parametrize("skip", [False, True], ids=["taken", "skipped"])
@pytest.mark.parametrize("mean", [True, False], ids=["mean", "sum"])
@settings(max_examples=60, deadline=None)
@given(mini_steps=mini_steps)
def test_a_window_gives_the_weighted_mean_of_numpy(mean: bool, skip: bool, mini_steps: list[Any]) -> None:
    """Invalid weights count as 0, and their gradients have no effect."""
    update = compiled(mean, skip)
    state = weighted(mean, skip).init(FLOAT32)
    window: list[tuple[float, Any]] = []
    took = 0
    for i, (weight, spoilt, few) in enumerate(mini_steps):
        grads = gradients(FLOAT32, i)
        grads = bad(grads) if spoilt and few == 0 else grads
        updates, after = update(grads, state, weight)
        if skip and spoilt and few == 0:
            assert_same(after._replace(skip_state=()), state._replace(skip_state=()))
            assert float(after.skip_state["weight_sum"]) == float(state.skip_state["weight_sum"])
        else:
            window.append((counted(weight), grads))
        total = sum(np.float64(w) for w, _ in window)
        expected = jax.tree.map(lambda leaf: np.zeros(leaf.shape), FLOAT32)
        size = jax.tree.map(lambda leaf: np.zeros(leaf.shape), FLOAT32)
        if len(window) == K and total > 0:
            for w, taken in window:
                if w > 0:
                    share = w / total if mean else w
                    expected = jax.tree.map(
                        lambda sum_, leaf, share=share: sum_ + share * np.float64(leaf), expected, taken
                    )
                    size = jax.tree.map(lambda sum_, leaf, share=share: sum_ + share * np.abs(leaf), size, taken)
            took += 1
        for leaf, other, scale in zip(*map(jax.tree.leaves, (updates, expected, size)), strict=True):
            tolerance = 1e-5 * np.nanmax(scale, initial=0) + 1e-30
            np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=tolerance)
        window = [] if len(window) == K else window
        assert (int(after.mini_step), int(after.gradient_step)) == (len(window), took)
        state = after
    assert traces(update) == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 3.0, 1e20])
def test_equal_weights_give_the_mean_without_weights(dtype: Any, scale: float) -> None:
    """Within the rounding of the accumulator."""
    tree = tree_of(dtype)
    plain = optwrap.MultiSteps(optax.identity(), K)
    state, other = weighted().init(tree), plain.init(tree)
    for i in range(K):
        grads = gradients(tree, i)
        updates, state = weighted().update(grads, state, weight=scale)
        expected, other = plain.update(grads, other)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=3e-7 if dtype == jnp.float32 else 1e-2),
        *map(lambda t: jax.tree.map(lambda leaf: np.asarray(leaf, np.complex128), t), (updates, expected)),
    )


def test_batches_weighted_by_their_size_are_one_batch() -> None:
    """The gradient is that of the mean loss over all examples; an empty batch is included."""
    rng = np.random.default_rng(3)
    examples, targets = rng.normal(size=(10, 4)).astype(np.float32), rng.normal(size=10).astype(np.float32)

    def gradient(params: Any, rows: slice) -> Any:
        return jax.grad(lambda w: jnp.mean((examples[rows] @ w - targets[rows]) ** 2))(params)

    params = jnp.ones(4)
    state = weighted(k=4).init(params)
    for rows in (slice(0, 7), slice(7, 8), slice(8, 8), slice(8, 10)):
        grads = gradient(params, rows)  # of no examples: NaN
        updates, state = weighted(k=4).update(grads, state, weight=rows.stop - rows.start)
    np.testing.assert_allclose(updates, gradient(params, slice(0, 10)), rtol=1e-5)


def test_the_largest_weights_give_their_mean() -> None:
    """A traced weight above the largest counts as the largest."""
    for weight in (LARGEST, jnp.float32(3e38)):
        update = jax.jit(weighted(k=2).update)
        state = weighted(k=2).init(jnp.ones(3))
        for value in (1.0, 3.0):
            updates, state = update(jnp.full(3, value), state, weight=weight)
        assert float(state.skip_state["weight_sum"]) == pytest.approx(2 * LARGEST)
        np.testing.assert_allclose(updates, np.full(3, 2.0), rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, -2.0, np.nan])
def test_a_window_without_weight_gives_no_step(weight: float) -> None:
    """The window ends, and the optimizer is not called: no decay and no momentum."""
    steps = weighted(inner=optax.adamw(0.1), k=2)
    update = jax.jit(lambda grads, state, weight: steps.update(grads, state, FLOAT32, weight=weight))
    start = steps.init(FLOAT32)
    updates, state = update(bad(FLOAT32), start, weight)
    assert int(state.mini_step) == 1
    updates, state = update(FLOAT32, state, weight)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
    assert_same(state._replace(skip_state=()), start._replace(skip_state=()))
    assert not steps.has_updated(state._replace(gradient_step=jnp.int32(5)))
    for _ in range(2):
        updates, state = update(FLOAT32, state, 2.0)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(updates))
    assert steps.has_updated(state)


def test_flushing_a_weighted_window() -> None:
    """The optimizer gets the weighted mean; it takes no step if the weights sum to 0."""
    steps = weighted(k=5)
    flush = jax.jit(steps.flush)
    state = steps.init(FLOAT32)
    batches = [gradients(FLOAT32, i) for i in range(2)]
    for grads, weight in zip(batches, (3.0, 1.0), strict=True):
        _, state = steps.update(grads, state, weight=weight)
    updates, state = flush(state, FLOAT32)
    assert_close(updates, jax.tree.map(lambda a, b: np.float32(0.75) * a + np.float32(0.25) * b, *batches))
    assert (int(state.mini_step), int(state.gradient_step), bool(steps.has_updated(state))) == (0, 1, True)
    _, before = steps.update(bad(FLOAT32), state, weight=0)
    updates, state = flush(before, FLOAT32)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
    assert (int(state.mini_step), int(state.gradient_step)) == (0, 1)
    assert (bool(steps.has_updated(state)), bool(steps.has_updated(state, before))) == (False, False)


def test_a_skip_function_sees_the_gradients_as_they_are_and_keeps_its_state() -> None:
    """Its mapping is in skip_state beside the weights; another structure under the key skip_state."""
    state = weighted(skip=True).init(FLOAT32)
    assert set(state.skip_state) == {"should_skip", "num_not_finite", "weight", "weight_sum"}
    _, state = weighted(skip=True).update(FLOAT32, state, weight=2.0)
    _, after = weighted(skip=True).update(bad(FLOAT32), state, weight=5.0)
    assert (int(after.skip_state["num_not_finite"]), float(after.skip_state["weight_sum"])) == (3, 2.0)
    assert not weighted(skip=True).has_updated(after)

    silent = optwrap.MultiSteps(
        optax.identity(), 2, should_skip_update_fn=lambda *_: (jnp.array(False), (jnp.int32(7),)), weighted=True
    )
    _, state = silent.update(FLOAT32, silent.init(FLOAT32), weight=2.0)
    assert state.skip_state["skip_state"] == (7,)
    assert float(state.skip_state["weight"]) == 2.0


def test_other_extra_args_reach_the_optimizer_and_the_weight_does_not() -> None:
    """The window's weights are its own; without weighted=True an argument of that name is like any other."""
    seen: list[set[str]] = []

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        del params
        seen.append(set(extra_args))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    steps = weighted(inner=inner, k=1)
    steps.update(FLOAT32, steps.init(FLOAT32), weight=1.0, loss=2.0)
    steps = optwrap.MultiSteps(inner, 1)
    steps.update(FLOAT32, steps.init(FLOAT32), weight=1.0, loss=2.0)
    assert seen == [{"loss"}, {"weight", "loss"}]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optwrap.apply_if_finite(tx, 3),
        optwrap.flatten,
        lambda tx: optwrap.masked(tx, True),
        lambda tx: optax.chain(optax.clip(100.0), tx),
        lambda tx: optwrap.skip_if(tx, optwrap.skip_not_finite),
    ],
    ids=["apply_if_finite", "flatten", "masked", "chain", "skip_if"],
)
def test_weights_pass_through_outer_transformations(wrap: Callable[[Any], Any]) -> None:
    tx = wrap(weighted(inner=optax.identity(), k=2).gradient_transformation())
    state = tx.init(FLOAT32)
    batches = [gradients(FLOAT32, i) for i in range(2)]
    update = jax.jit(tx.update)
    for grads, weight in zip(batches, (1.0, 3.0), strict=True):
        updates, state = update(grads, state, FLOAT32, weight=weight)
    assert_close(updates, jax.tree.map(lambda a, b: np.float32(0.25) * a + np.float32(0.75) * b, *batches))


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "sum"])
def test_apply_gradients_takes_the_same_steps(mean: bool) -> None:
    """The weight is an extra arg there, too; parameters within the rounding of an update, figures exactly."""
    steps = weighted(mean, skip=True, k=2, inner=optax.adam(0.1))
    tx = optwrap.instrument(steps)

    @jax.jit
    def two_calls(grads: Any, state: Any, params: Any, weight: Any) -> Any:
        updates, state = tx.update(grads, state, params, weight=weight)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def fused(grads: Any, state: Any, params: Any, weight: Any) -> Any:
        return optwrap.apply_gradients(tx, grads, state, params, weight=weight)

    ours = theirs = FLOAT32, tx.init(FLOAT32)
    for i, weight in enumerate([1.0, 3.0, 0.0, np.nan, -1.0, 2.0, 5.0, 1.0]):
        grads = bad(gradients(FLOAT32, i)) if i in {2, 5} else gradients(FLOAT32, i)
        ours = fused(grads, ours[1], ours[0], weight)
        theirs = two_calls(grads, theirs[1], theirs[0], weight)
        assert_close(ours, theirs)
        assert_same(optwrap.reading(ours[1]), optwrap.reading(theirs[1]))
    assert int(ours[1].inner_state.gradient_step) == 2
    assert traces(fused) == 1


def test_weights_take_no_memory() -> None:
    """With state and parameters donated XLA fills the accumulator in place, as it does without weights."""
    params = {f"w{i}": jnp.ones((256, 256)) for i in range(8)}

    def temporaries(**weight: Any) -> int:
        steps = optwrap.MultiSteps(optax.adamw(0.1), 4, weighted=bool(weight))

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, grads: Any, weight: Any) -> Any:
            return optwrap.apply_gradients(steps, grads, state, params, **weight)

        state = jax.eval_shape(steps.init, params)
        memory: Any = step.lower(params, state, params, weight).compile().memory_analysis()
        return int(memory.temp_size_in_bytes)

    assert temporaries(weight=2.0) <= temporaries() + 1024


def test_meta_gradients_flow_through_weights() -> None:
    """The derivative of the mean by a weight is that of the formula, and not NaN where a weight is zero."""

    def first(weight: Any) -> Any:
        state = weighted(k=2).init(jnp.ones([]))
        _, state = weighted(k=2).update(jnp.float32(5.0), state, weight=weight)
        updates, _ = weighted(k=2).update(jnp.float32(1.0), state, weight=jnp.float32(3.0))
        return updates

    assert float(jax.grad(first)(jnp.float32(2.0))) == pytest.approx((5 * 5 - (2 * 5 + 3)) / 5**2)
    assert np.isfinite(jax.grad(first)(jnp.float32(0.0)))


def test_each_device_may_have_weights_of_its_own() -> None:
    """Inside shard_map with axis_name, and weight 0 on one device: all take the step."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    steps = optwrap.MultiSteps(optax.identity(), 2, weighted=True, axis_name="data")

    def trained(grads: Any, weight: Any) -> Any:
        state = steps.init(grads[0])
        for i in range(2):
            updates, state = steps.update(grads[i], state, weight=weight[i, 0])
        return updates, jnp.atleast_1d(state.gradient_step)

    spec = jax.sharding.PartitionSpec(None, "data")
    grads = jnp.arange(8.0).reshape(2, 4)
    weight = jnp.array([[1.0, 0.0, 3.0, 0.0], [1.0, 5.0, 1.0, 0.0]])
    over = jax.sharding.PartitionSpec("data")
    updates, took = jax.jit(jax.shard_map(trained, mesh=mesh, in_specs=(spec, spec), out_specs=(over, over)))(
        grads, weight
    )
    np.testing.assert_allclose(updates, [2.0, 5.0, 3.0, 0.0])
    np.testing.assert_array_equal(took, [1, 1, 1, 1])


def test_a_non_finite_gradient_of_weight_0_does_not_spoil_its_window() -> None:
    """The step counts as non-finite, and the window as applied."""
    tx = optwrap.instrument(weighted(inner=momentum(), k=2))
    update = jax.jit(tx.update)
    state, outcomes = tx.init(FLOAT32), []
    spoilt, fine = bad(FLOAT32), FLOAT32
    calls = [
        (spoilt, 0.0),
        (fine, 2.0),
        (spoilt, 1.0),
        (fine, 0.0),
        (fine, 0.0),
        (spoilt, 0.0),
        (fine, 1.0),
        (fine, 1.0),
    ]
    for grads, weight in calls:
        _, state = update(grads, state, FLOAT32, weight=weight)
        read = unpack(np.asarray(optwrap.reading(state)), Layout(("b", "layer/w")))
        outcomes.append(read.outcome)
    waiting, spoiling = "accumulated", "accepted_not_finite"
    assert outcomes == [waiting, "applied", waiting, spoiling, waiting, waiting, waiting, "applied"]
    assert read.totals.not_finite_steps == 3


def test_a_window_of_one_mini_step_without_weight_is_skipped() -> None:
    """It counts as skipped_other, not as skipped_large."""
    function = functools.partial(optwrap.skip_large_updates, max_squared_norm=1e6)
    tx = optwrap.instrument(optwrap.MultiSteps(momentum(), 1, should_skip_update_fn=function, weighted=True))
    update = jax.jit(tx.update)
    state = tx.init(FLOAT32)
    outcomes = []
    for grads, weight in [(FLOAT32, 0.0), (FLOAT32, 1.0), (jax.tree.map(lambda leaf: leaf * 1e6, FLOAT32), 1.0)]:
        _, state = update(grads, state, FLOAT32, weight=weight)
        outcomes.append(unpack(np.asarray(optwrap.reading(state)), Layout(("b", "layer/w"))).outcome)
    assert outcomes == ["skipped_other", "applied", "skipped_large"]


def nested() -> Any:
    return optwrap.instrument(optwrap.MultiSteps(optax.chain(weighted().gradient_transformation()), 2, weighted=True))


START = weighted().init(FLOAT32)
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "weighted no bool": (
        lambda: optwrap.MultiSteps(momentum(), 2, weighted="yes"),  # type: ignore[arg-type]
        TypeError,
        r"MultiSteps: weighted must be True or False, got 'yes' \(str\)",
    ),
    "missing": (
        lambda: weighted().update(FLOAT32, START),
        TypeError,
        r"MultiSteps: weight must be given to update, since weighted=True, got none: pass weight=.* or leave out",
    ),
    "nothing": (
        lambda: weighted().update(FLOAT32, START, weight=None),
        TypeError,
        r"MultiSteps: weight must be given to update, since weighted=True",
    ),
    "taken by another around it": (
        lambda: optwrap.apply_gradients(around := nested(), FLOAT32, around.init(FLOAT32), FLOAT32, weight=1.0),
        TypeError,
        r"since weighted=True, got none: .* of two nested MultiSteps make only one weighted",
    ),
    "negative": (
        lambda: weighted().update(FLOAT32, START, weight=-1.0),
        ValueError,
        r"MultiSteps: weight must be a number from 0 to 1e\+30, got -1.0: pass the weight of this mini-step",
    ),
    "NaN": (lambda: weighted().update(FLOAT32, START, weight=jnp.nan), ValueError, r"weight .* got nan"),
    "infinite": (lambda: weighted().update(FLOAT32, START, weight=np.inf), ValueError, r"weight .* got inf"),
    "a vector": (
        lambda: weighted().update(FLOAT32, START, weight=jnp.ones(3)),
        TypeError,
        r"weight must be a number .* got an array float32\[3\]",
    ),
    "a string": (lambda: weighted().update(FLOAT32, START, weight="1"), TypeError, r"weight .* got '1' \(str\)"),
    "a bool": (lambda: weighted().update(FLOAT32, START, weight=True), TypeError, r"weight .* got True \(bool\)"),
    "complex, traced": (
        lambda: jax.eval_shape(lambda w: weighted().update(FLOAT32, START, weight=w), jnp.complex64(1)),
        TypeError,
        r"weight must be a number .* got an array complex64\[\]",
    ),
    "a state without weights": (
        lambda: weighted().update(FLOAT32, optwrap.MultiSteps(momentum(), 2).init(FLOAT32), weight=1.0),
        ValueError,
        r"MultiSteps: state.skip_state must hold weight and weight_sum, got \(\): .* made with weighted=True",
    ),
    "a skip function that uses the names": (
        lambda: optwrap.MultiSteps(
            momentum(), 2, should_skip_update_fn=lambda *_: (jnp.array(False), {"weight": jnp.ones([])}), weighted=True
        ).init(FLOAT32),
        ValueError,
        r"the skip_state of should_skip_update_fn must not have the keys weight and weight_sum, got .*weight.*: rename",
    ),
}


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_weights_are_named_with_their_value_and_a_remedy(
    wrong: Callable[[], Any], error: type[Exception], message: str
) -> None:
    """Where they can be known: when traced, or called without jit."""
    with pytest.raises(error, match=message):
        wrong()


@pytest.mark.parametrize("weight", [2**40, np.int64(2**31 + 5), np.uint64(2**33 + 1), 10**25])
def test_a_weight_may_be_any_integer_up_to_the_largest(weight: Any) -> None:
    """Even one that does not fit into any of JAX's integer dtypes."""
    tx = weighted(k=1)
    _, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)), weight=weight)
    assert float(state.skip_state["weight"]) == pytest.approx(float(weight))
    assert int(state.gradient_step) == 1
