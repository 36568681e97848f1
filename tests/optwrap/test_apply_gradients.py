"""`apply_gradients` takes the same steps as `update` and `optax.apply_updates`, over the table of transformations."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optwrap
from tests.compiling import AS_USERS
from tests.optwrap.fused import CHOSEN, EVERY, fused, instrumented, run_fused
from tests.optwrap.transformations import (
    FLOAT32,
    SINGLES,
    TREES,
    Case,
    assert_close,
    assert_same,
    by_name,
    gradients,
    multi_steps,
    run,
    stepper,
)

STEPS = 9

FAULTS = (jnp.nan, jnp.inf, -jnp.inf, 3e38)
"""3e38 is finite, and its square is not in float32."""


@functools.cache
def two_calls(case: Case) -> Any:
    transformation = instrumented(case)

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def flags_and_counts(state: Any) -> Any:
    return [leaf for leaf in jax.tree.leaves(state) if leaf.dtype in (jnp.bool_, jnp.int32, jnp.uint32)]


@pytest.mark.thin(3)
@by_name(EVERY)
def test_steps_equal_those_of_update_and_apply_updates(case: Case) -> None:
    """Parameters and states within rounding, flags and counters exactly; bad batches included."""
    batches = [gradients(FLOAT32, step) for step in range(STEPS)]
    for step, fault in zip((1, 4, 5), FAULTS, strict=False):
        batches[step]["b"][1] = fault
    for ours, other in zip(run_fused(case, FLOAT32, batches), run(case, optwrap, FLOAT32, batches), strict=True):
        assert_close((ours.params, ours.state), (other.params, other.state))
        assert_same(flags_and_counts(ours.state), flags_and_counts(other.state))


@pytest.mark.thin(3)
@pytest.mark.parametrize("tree", TREES)
@by_name(SINGLES)
def test_types_equal_those_of_update_and_apply_updates(case: Case, tree: str) -> None:
    """Structure, shapes and dtypes of parameters and state are those of the two calls."""
    batches = [gradients(TREES[tree], step) for step in range(4)]
    for ours, other in zip(
        run_fused(case, TREES[tree], batches), run(case, optwrap, TREES[tree], batches), strict=True
    ):
        assert_same(
            jax.tree.map(jnp.zeros_like, (ours.params, ours.state)),
            jax.tree.map(jnp.zeros_like, (other.params, other.state)),
        )


GUARDS = {
    "apply_if_finite": lambda inner: optwrap.apply_if_finite(inner, 3),
    "multi_steps_of_one": lambda inner: multi_steps(optwrap, inner, 1, skip="not_finite"),
    "masked": lambda inner: optwrap.masked(inner, True),
    "instrument": optwrap.instrument,
    "all of them": lambda inner: optwrap.instrument(
        multi_steps(optwrap, optwrap.masked(optwrap.apply_if_finite(inner, 3), True), 1)
    ),
}


INNER = {"adamw": optax.adamw(0.1), "sgd": optax.sgd(0.1, momentum=0.9), "lion": optax.lion(0.1)}


@functools.cache
def alone(name: str) -> Any:
    """The jitted update and apply of an inner optimizer."""

    def step(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = INNER[name].update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, compiler_options=AS_USERS)


@pytest.mark.thin(4)
@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("inner", INNER)
def test_an_accepted_step_equals_that_of_the_inner_optimizer(guard: str, inner: str) -> None:
    """Bit for bit its jitted update and apply, compiled as users have it."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(33, 65)).astype(np.float32), "b": rng.normal(size=65).astype(np.float32)}
    outer = GUARDS[guard](INNER[inner])
    ours = (params, jax.jit(outer.init)(params))
    theirs = (params, jax.jit(INNER[inner].init)(params))
    step = jax.jit(functools.partial(optwrap.apply_gradients, outer), compiler_options=AS_USERS)
    for _ in range(20):
        grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
        ours, theirs = step(grads, ours[1], ours[0]), alone(inner)(grads, theirs[1], theirs[0])
        assert_same(ours[0], theirs[0])


@pytest.mark.thin(3)
@by_name([case for case in EVERY if "multi_steps" not in case.name])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_rejected_gradient_changes_nothing(case: Case, data: st.DataObject) -> None:
    """Inside a guard a bad batch leaves parameters and inner state bit for bit as they were."""
    init, step = guarded(case)
    params = case.params(FLOAT32)
    state = init(params)
    for number, bad in enumerate(data.draw(st.lists(st.booleans(), min_size=1, max_size=6))):
        grads = gradients(FLOAT32, number)
        if bad:
            leaf = data.draw(st.sampled_from(jax.tree.leaves(grads)))
            leaf[data.draw(st.sampled_from(list(np.ndindex(leaf.shape))))] = data.draw(st.sampled_from(FAULTS[:3]))
        before = (params, state.inner_state)
        params, state = step(grads, state, params)
        if bad:
            assert_same((params, state.inner_state), before)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(params))


@functools.cache
def guarded(case: Case) -> tuple[Any, Any]:
    transformation = optwrap.apply_if_finite(case.build(optwrap), 1000)
    return jax.jit(transformation.init), jax.jit(functools.partial(optwrap.apply_gradients, transformation))


@pytest.mark.thin(3)
@by_name(CHOSEN)
def test_the_counters_equal_those_of_update(case: Case) -> None:
    """For good and bad batches."""
    init, step = fused(case, watched=True)
    params = case.params(FLOAT32)
    ours = theirs = (params, init(params))
    for number in range(STEPS):
        grads = gradients(FLOAT32, number)
        if number in (2, 5, 6):
            grads["layer"]["w"][1, 2] = FAULTS[number % len(FAULTS)]
        # Each from where the other is: else one that no guard stopped would be judged by what is left of its training.
        ours, theirs = step(grads, ours[1], ours[0]), two_calls(case)(grads, theirs[1], theirs[0])
        mine, other = ours[1].counters["instrument"], theirs[1].counters["instrument"]
        if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(theirs[0])):
            break
        assert_same(mine, other)


def test_non_finite_parameters_do_not_change_the_outcome_of_an_outermost_guard() -> None:
    """Under another wrapper only the new parameters are known, so the skipped step counts as accepted."""
    params, grads = {"w": jnp.array([1.0, jnp.nan])}, {"w": jnp.array([jnp.nan, jnp.nan])}
    guard = optwrap.apply_if_finite(optax.sgd(0.1), 3)
    for tx, outcome in ((guard, "skipped_not_finite"), (optwrap.masked(guard, True), "accepted_not_finite")):
        watched = optwrap.instrument(tx)
        start = watched.init(params)
        _, state = jax.jit(functools.partial(optwrap.apply_gradients, watched))(grads, start, params)
        _, other = jax.jit(watched.update)(grads, start, params)
        outcomes = [optwrap.unpack(np.asarray(optwrap.reading(each))).outcome for each in (state, other)]
        assert outcomes == [outcome, "skipped_not_finite"]


def test_a_chain_gets_update_and_apply_updates() -> None:
    """`inject_hyperparams`, optax's own wrappers and plain optimizers do, too."""
    params = FLOAT32
    guard = optwrap.apply_if_finite(optax.adam(0.1), 3)
    for tx in (
        optax.chain(optax.clip(1.0), guard),
        optax.inject_hyperparams(optwrap.apply_if_finite, static_args="inner")(
            inner=optax.sgd(0.1), max_consecutive_errors=3
        ),
        optax.apply_if_finite(optax.adam(0.1), 3),
        optax.adam(0.1),
    ):
        state = tx.init(params)
        grads = gradients(params, 0)
        ours = jax.jit(functools.partial(optwrap.apply_gradients, tx))(grads, state, params)

        @jax.jit
        def both(grads: Any, state: Any, params: Any, tx: Any = tx) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        assert_same(ours, both(grads, state, params))


def test_works_under_vmap_and_scan() -> None:
    """Stacked trainings, each with its own faults, equal those alone; a scan equals the loop."""
    tx = optwrap.instrument(multi_steps(optwrap, optwrap.apply_if_finite(optax.adam(0.1), 2), 2, skip="not_finite"))
    params = {"w": jnp.ones(3)}
    batches = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3)), jnp.float32)}
    batches["w"] = batches["w"].at[1, 2, 0].set(jnp.nan).at[3, :, 1].set(jnp.inf)

    def train(batches: Any) -> tuple[Any, Any]:
        def step(carry: tuple[Any, Any], grads: Any) -> tuple[tuple[Any, Any], None]:
            return optwrap.apply_gradients(tx, grads, carry[1], carry[0]), None

        return jax.lax.scan(step, (params, tx.init(params)), batches)[0]

    together = jax.jit(jax.vmap(train))(batches)
    step = jax.jit(functools.partial(optwrap.apply_gradients, tx))
    start = tx.init(params)
    for member in range(4):
        alone = (params, start)
        for number in range(6):
            alone = step({"w": batches["w"][member, number]}, alone[1], alone[0])
        its = jax.tree.map(lambda leaf, member=member: leaf[member], together)
        assert_close(its, alone)
        assert_same(flags_and_counts(its), flags_and_counts(alone))


def test_training_can_be_differentiated_through() -> None:
    """Forward and backward, over complete windows."""
    tx = multi_steps(optwrap, optax.sgd(0.5), 2)

    @jax.jit
    def trained(scale: jax.Array) -> jax.Array:
        params, state = jnp.ones(3), tx.init(jnp.ones(3))
        for step in range(4):
            params, state = optwrap.apply_gradients(tx, scale * (step + 1.0) * params, state, params)
        return jnp.sum(params)

    scale = jnp.float32(0.1)
    by_hand = (trained(scale + 1e-2) - trained(scale - 1e-2)) / 2e-2
    np.testing.assert_allclose(jax.grad(trained)(scale), by_hand, rtol=1e-2)
    np.testing.assert_allclose(jax.jacfwd(trained)(scale), by_hand, rtol=1e-2)


def test_extra_args_reach_the_optimizer() -> None:
    tx = optwrap.instrument(
        optwrap.masked(optwrap.flatten(optwrap.apply_if_finite(optax.contrib.reduce_on_plateau(patience=0), 3)), True)
    )
    params = jnp.ones(2)
    state = tx.init(params)
    step = jax.jit(functools.partial(optwrap.apply_gradients, tx))
    for value in (1.0, 2.0, 3.0):
        params, state = step(params, state, params, value=value)
    assert optax.tree.get(state, "scale") < 1


@pytest.mark.parametrize(
    ("tx", "params", "message"),
    [
        (optax.adam, {}, r"apply_gradients: tx must be an optax.GradientTransformation, .*call it"),
        (optax.adam(0.1), None, r"apply_gradients: params must be the parameters to apply the update to, got None"),
        (
            optwrap.lookahead(optax.adam(0.1), 2, 0.5),
            {"w": jnp.ones(3)},
            r"lookahead: params of update must be LookaheadParams, got dict",
        ),
    ],
    ids=["tx", "params", "a pair"],
)
def test_wrong_arguments_are_named(tx: Any, params: Any, message: str) -> None:
    state = tx.init(params) if params else ()
    with pytest.raises(TypeError, match=message):
        optwrap.apply_gradients(tx, params, state, params)


@pytest.mark.parametrize("wrap", ["apply_if_finite", "multi_steps", "lookahead"])
@pytest.mark.parametrize("params", [jnp.full((2,), 1.0), [1.0, 2.0]], ids=["weak array", "Python numbers"])
def test_weakly_typed_parameters_become_strongly_typed(wrap: str, params: Any) -> None:
    """Otherwise every later step would be rounded to the dtype of narrower gradients."""
    case = next(case for case in SINGLES if case.name == wrap)
    tx = case.build(optwrap, optax.sgd(1e-3))
    ours = theirs = case.params(params)
    ours_state = theirs_state = tx.init(ours)
    grads = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), jnp.bfloat16), params)
    fused = jax.jit(functools.partial(optwrap.apply_gradients, tx))
    step = jax.jit(stepper(tx))
    for _ in range(12):
        ours, ours_state = fused(grads, ours_state, ours)
        theirs, theirs_state, _ = step(grads, theirs_state, theirs)
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(ours))
    # Of the first step, with parameters that are weak still, one may be rounded and the other not: 0.001.
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=0.0011)


@pytest.mark.parametrize("reset", [False, True])
def test_lookahead_in_shard_map_takes_replicated_parameters(reset: bool) -> None:
    """Gradients that vary along an axis make replicated parameters vary, too."""
    mesh = jax.make_mesh((4,), ("x",))
    tx = optwrap.lookahead(optwrap.apply_if_finite(optax.adam(0.1), 2), 2, 0.5, reset_state=reset)
    grads = jnp.arange(24.0).reshape(4, 3, 2) / 8

    def train(grads: jax.Array, fused: bool) -> jax.Array:
        pair = optax.LookaheadParams.init_synced(jnp.ones(2))
        state = tx.init(pair)
        for step in range(3):
            if fused:
                pair, state = optwrap.apply_gradients(tx, grads[0, step], state, pair)
            else:
                updates, state = tx.update(grads[0, step], state, pair)
                pair = optax.apply_updates(pair, updates)
        return jnp.stack(pair)[None]

    def everywhere(fused: bool) -> Any:
        specs = jax.sharding.PartitionSpec("x")
        step = functools.partial(train, fused=fused)
        placed = jax.device_put(grads, jax.sharding.NamedSharding(mesh, specs))
        return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs))(placed)

    np.testing.assert_allclose(everywhere(True), everywhere(False), rtol=1e-6)


def test_optax_multi_steps_gets_its_extra_args() -> None:
    """Optax's transformation drops them, but the MultiSteps object passes them on."""
    tx = optax.MultiSteps(optax.contrib.reduce_on_plateau(patience=0), 1)
    params = jnp.ones(2)
    state = tx.init(params)
    for value in (1.0, 2.0, 3.0):
        params, state = optwrap.apply_gradients(tx, params, state, params, value=value)
    assert optax.tree.get(state, "scale") < 1


def test_another_method_named_apply_is_not_called() -> None:
    class Other(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
        def apply(self) -> None:
            raise AssertionError

    tx = Other(*optax.sgd(0.5))
    params, _ = optwrap.apply_gradients(tx, jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
    np.testing.assert_array_equal(params, np.full(2, 0.5))


def test_a_cached_norm_does_not_leave_its_trace() -> None:
    """A jitted function traced inside a step, which closes over an array, can be called after the step."""
    gradients = jnp.ones(3)
    guard = optwrap.apply_if_finite(optax.sgd(1.0), 3)
    state = guard.init(gradients)
    inside = jax.jit(lambda scale: guard.update(gradients, state, gradients)[0] * scale)
    tx = optwrap.instrument(
        optax.GradientTransformation(lambda _: optax.EmptyState(), lambda *args: (inside(1.0), args[1]))
    )
    outer = tx.init(gradients)
    jax.jit(lambda scale: tx.update(gradients, outer, gradients)[0] * scale)(1.0)
    np.testing.assert_array_equal(inside(2.0), np.full(3, -2.0))


class Halving(optwrap.MultiSteps):
    """A MultiSteps of which a program has replaced the update alone, as it may do with optax's."""

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        return super().update(jax.tree.map(lambda leaf: leaf / 2, updates), state, params, **extra_args)


@pytest.mark.parametrize("around", [lambda tx: tx, optwrap.instrument, lambda tx: optwrap.apply_if_finite(tx, 2)])
def test_an_overridden_update_of_multi_steps_is_called(around: Any) -> None:
    tx, params = around(Halving(optax.sgd(1.0), 1)), {"a": jnp.ones(3)}
    stepped, _ = optwrap.apply_gradients(tx, {"a": jnp.full(3, 4.0)}, tx.init(params), params)
    np.testing.assert_array_equal(stepped["a"], -np.ones(3))
