"""Properties of single wrappers: saturation, meshes, declarations, masks, extra args."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap
from optwrap._core.declarations import Guard, Sync, Window, collecting, walk
from optwrap._core.finite import all_finite
from tests.optwrap.compilations import compilations
from tests.optwrap.transformations import FLOAT32, WRAPPERS, assert_same, gradients, momentum, multi_steps, stepper

FULL = jnp.int32(2**31 - 1)


def test_the_public_names_are_these() -> None:
    """The names are those of optax, and the state classes its own, not copies."""
    for name in (
        "ApplyIfFiniteState",
        "LookaheadState",
        "LookaheadParams",
        "MaskedState",
        "MaskedNode",
        "MultiStepsState",
    ):
        assert getattr(optwrap, name) is getattr(optax, name)
    assert set(optwrap.__all__) >= {
        *("apply_if_finite", "flatten", "lookahead", "masked", "MultiSteps"),
        *("ShouldSkipUpdateFunction", "skip_not_finite", "skip_large_updates", "skip_if", "SkipIfState"),
        *("skip_spikes", "SkipSpikesState"),
    }
    assert all(hasattr(optwrap, name) for name in optwrap.__all__)


def test_counters_saturate() -> None:
    """At 2**31 - 1 they stay, and the decisions that depend on them stay right."""
    bad = {"layer": {"w": jnp.full((2, 3), jnp.nan)}, "b": FLOAT32["b"]}
    guard = optwrap.apply_if_finite(momentum(), 2**31 - 1)
    state = guard.init(FLOAT32)._replace(notfinite_count=FULL, total_notfinite=FULL)
    updates, after = jax.jit(guard.update)(bad, state)
    assert (int(after.notfinite_count), int(after.total_notfinite)) == (2**31 - 1, 2**31 - 1)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates)), "a guard of 2**31 - 1 never gives up"

    steps = optwrap.MultiSteps(momentum(), 1)
    _, after = jax.jit(steps.update)(FLOAT32, steps.init(FLOAT32)._replace(gradient_step=FULL))
    assert int(after.gradient_step) == 2**31 - 1
    assert steps.has_updated(after)

    steps = optwrap.MultiSteps(momentum(), 2)
    _, opened = steps.update(FLOAT32, steps.init(FLOAT32))
    _, after = jax.jit(steps.flush)(opened._replace(gradient_step=FULL))
    assert int(after.gradient_step) == 2**31 - 1


@pytest.mark.parametrize("name", WRAPPERS)
def test_states_of_numpy_arrays_continue(name: str) -> None:
    """A restored checkpoint has such states."""
    transformation = WRAPPERS[name](optwrap, momentum())
    params = optax.LookaheadParams.init_synced(FLOAT32) if name == "lookahead" else FLOAT32
    state = transformation.init(params)
    step = jax.jit(stepper(transformation))
    expected = step(gradients(FLOAT32, 1), state, params)
    assert_same(step(gradients(FLOAT32, 1), jax.tree.map(np.asarray, state), params), expected)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "flatten"])
def test_shardings_are_kept(name: str, axis_type: AxisType) -> None:
    """Parameters and state sharded over a mesh stay as they are, and no step gathers them."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.ones((8, 3)), rows), "b": jax.device_put(jnp.ones(3), everywhere)}
        grads = jax.tree.map(lambda leaf: leaf * 0.5, params)
        if name == "lookahead":
            params = optax.LookaheadParams(params, jax.tree.map(jnp.copy, params))  # both are donated
        transformation = WRAPPERS[name](optwrap, momentum())
        state = jax.jit(transformation.init)(params)
        compiled: Any = jax.jit(stepper(transformation), donate_argnums=(1, 2)).lower(grads, state, params).compile()
        assert "all-gather" not in compiled.as_text()
        after = compiled(grads, state, params)
    for leaf in jax.tree.leaves((after.params, after.state)):
        assert leaf.sharding.is_equivalent_to(rows if leaf.shape == (8, 3) else everywhere, leaf.ndim)


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "flatten"])
def test_works_within_shard_map(name: str) -> None:
    """One device of several has NaN; both branches of the condition vary alike over the mesh."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    transformation = WRAPPERS[name](optwrap, momentum())

    def trained(grads: Any) -> Any:
        grads = {"w": grads}
        params: Any = {"w": jnp.ones(grads["w"].shape)}  # the same everywhere, until the first step
        if name == "lookahead":
            params = optax.LookaheadParams.init_synced(params)
        state = transformation.init(params)
        for _ in range(4):
            params, state, _ = stepper(transformation)(grads, state, params)
        return jnp.atleast_1d(jax.tree.leaves(params)[0])

    grads = jnp.ones((4, 2)).at[2, 1].set(jnp.nan)
    together = jax.jit(jax.shard_map(trained, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(grads)
    alone = jax.jit(trained)
    for device in range(4):
        np.testing.assert_allclose(together[device], alone(grads[device : device + 1])[0], rtol=1e-6)


@pytest.mark.parametrize("skip", [None, "not_finite", "large"])
def test_a_window_takes_no_memory_but_for_the_updates(skip: str | None) -> None:
    """With the state donated, XLA allocates one tree: the updates."""
    params = {f"w{i}": jnp.ones((256, 256)) for i in range(8)}
    transformation = multi_steps(optwrap, optax.adamw(0.1), 4, skip=skip)
    state = transformation.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))  # results in the order of what is donated: JAX pairs them by it
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        return stepper(transformation)(grads, state, params)[:2]

    compiled: Any = step.lower(params, state, params).compile()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * size


def test_limits_and_schedules_are_declared_for_the_states_they_belong_to() -> None:
    """`collecting` finds them while `init` is traced, nested and chained; otherwise declare does nothing."""
    large = functools.partial(optax.skip_large_updates, max_squared_norm=9.0)
    inner = optax.chain(optax.clip(1.0), optwrap.MultiSteps(optax.adam(0.1), 4, should_skip_update_fn=large))
    transformation = optwrap.apply_if_finite(optwrap.lookahead(inner, 5, 0.5), 7)
    pair = optax.LookaheadParams.init_synced(FLOAT32)
    kinds = (optax.ApplyIfFiniteState, optax.LookaheadState, optax.MultiStepsState)
    with collecting() as collected:
        state = transformation.init(pair)
    guard, sync, window = (collected.of(node) for node in walk(state, kinds))
    assert guard == Guard(7)
    assert sync == Sync(5)
    assert isinstance(window, Window)
    assert window.max_squared_norm == 9.0
    assert np.asarray(window.every_k(jnp.int32(3))) == 4
    with collecting() as collected:
        assert collected.of(jax.eval_shape(transformation.init, pair)) is None, "another object: not what was declared"


def test_the_window_gets_its_k_from_the_gradient_step() -> None:
    """The schedule is read anew for every window."""
    wrapper = optwrap.MultiSteps(optax.sgd(1.0), lambda step: jnp.where(step < 2, 1, 3))
    state, emitted = wrapper.init(FLOAT32), []
    update = jax.jit(wrapper.update)
    for i in range(8):
        _, state = update(gradients(FLOAT32, i), state, FLOAT32)
        emitted.append(bool(wrapper.has_updated(state)))
    assert emitted == [True, True, False, False, True, False, False, True]


def test_extra_args_of_any_type_reach_the_optimizer_of_a_window() -> None:
    """Functions, arrays and trees; those of the mini-step that completes the window."""

    def update(updates: Any, state: Any, params: Any = None, *, scale: Any, function: Any) -> Any:
        del params
        return jax.tree.map(lambda leaf: function(leaf) * scale["by"], updates), state

    inner = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    transformation = multi_steps(optwrap, optwrap.apply_if_finite(inner, 1), 2, skip="not_finite")
    state = transformation.init(FLOAT32)
    update_step = jax.jit(functools.partial(transformation.update, function=jnp.negative))
    for by in (10.0, 2.0):
        updates, state = update_step(jax.tree.map(jnp.ones_like, FLOAT32), state, scale={"by": by})
    np.testing.assert_array_equal(updates["b"], -2.0)


def test_a_guard_works_without_jit() -> None:
    """Under `jax.disable_jit` only one branch runs, and a rejected step is still zeros."""
    bad = {"layer": {"w": jnp.full((2, 3), jnp.nan)}, "b": FLOAT32["b"]}
    transformation = optwrap.apply_if_finite(optwrap.MultiSteps(optax.sgd(0.1), 1), 3)
    state = transformation.init(FLOAT32)
    with jax.disable_jit():
        updates, state = transformation.update(bad, state, FLOAT32)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
        updates, state = transformation.update(FLOAT32, state, FLOAT32)
    assert np.any(updates["b"])
    assert (int(state.total_notfinite), int(state.inner_state.gradient_step)) == (1, 1)


def test_counting_compiles_nothing_new_without_jit() -> None:
    updates = {"w": jnp.array([1.0, jnp.nan]), "b": jnp.ones(3)}

    def compiled(function: Any) -> int:
        function()
        with compilations() as programs:
            function()
        return len(programs)

    assert compiled(lambda: optwrap.skip_not_finite(updates, 0, None)) == compiled(lambda: all_finite(updates))


def test_training_can_be_differentiated_through() -> None:
    """Meta-gradients flow through a window and a guard, as through optax's."""

    def trained(library: Any, scale: Any) -> Any:
        inner = library.MultiSteps(optax.sgd(0.1, momentum=0.5), 2).gradient_transformation()
        transformation = library.apply_if_finite(inner, 2)
        start = (FLOAT32, transformation.init(FLOAT32))

        def step(carry: Any, grads: Any) -> Any:
            return stepper(transformation)(jax.tree.map(lambda leaf: leaf * scale, grads), *carry[::-1])[:2], None

        batches = jax.tree.map(lambda *leaves: np.stack(leaves), *(gradients(FLOAT32, i) for i in range(4)))
        (params, _), _ = jax.lax.scan(step, start, batches)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))

    ours, theirs = (jax.jit(jax.grad(functools.partial(trained, each)))(jnp.float32(1.5)) for each in (optwrap, optax))
    assert ours != 0
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


class Callables:
    """A tree of masks that can itself be called, as modules of some libraries can."""

    def __init__(self, w: Any, b: Any) -> None:
        self.leaves = (w, b)

    def __call__(self, _: Any) -> Any:
        raise AssertionError("its leaves are bools: it is a mask")


jax.tree_util.register_pytree_node(Callables, lambda mask: (mask.leaves, None), lambda _, leaves: Callables(*leaves))


def test_a_callable_tree_of_bools_is_a_mask() -> None:
    """Only a tree all of whose leaves are callable is called."""
    params = Callables(jnp.ones(2), jnp.ones(2))
    grads = Callables(jnp.ones(2), jnp.ones(2))
    transformation = optwrap.masked(optax.scale(5.0), Callables(True, False))
    updates, _ = transformation.update(grads, transformation.init(params), params)
    np.testing.assert_array_equal(updates.leaves, [[5.0, 5.0], [1.0, 1.0]])


def test_a_prefix_masks_whole_subtrees() -> None:
    """Masked-out parameters leave nothing in the state."""
    transformation = optwrap.masked(optax.trace(0.5), {"layer": False, "b": True})
    state = transformation.init(FLOAT32)
    assert state.inner_state.trace["layer"] == optwrap.MaskedNode()
    assert_same(state, optax.masked(optax.trace(0.5), {"layer": False, "b": True}).init(FLOAT32))


@pytest.mark.parametrize("compatible", [True, False])
def test_extra_args_shaped_like_the_updates_are_masked_if_asked(compatible: bool) -> None:
    """Those with another structure never are."""
    seen = {}

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        del params
        seen.update(extra_args)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    mask = {"layer": {"w": True}, "b": False}
    transformation = optwrap.masked(inner, mask, mask_compatible_extra_args=compatible)
    transformation.update(FLOAT32, transformation.init(FLOAT32), FLOAT32, like=FLOAT32, other=(1, 2))
    assert seen["other"] == (1, 2)
    assert (seen["like"]["b"] == optwrap.MaskedNode()) is compatible or not compatible
    assert isinstance(seen["like"]["b"], optwrap.MaskedNode) is compatible


def test_flatten_groups_updates_by_the_dtypes_of_the_parameters() -> None:
    """Gradients may have other dtypes."""
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones((2, 2), jnp.float32)}
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5, jnp.float32), params)
    transformation = optwrap.flatten(optax.adam(0.1))
    state = transformation.init(params)
    assert {name: vector.shape for name, vector in state[0].mu.items()} == {"bfloat16": (2,), "float32": (4,)}
    updates, _ = jax.jit(transformation.update)(grads, state, params)
    alone, _ = jax.jit(optax.adam(0.1).update)(grads, optax.adam(0.1).init(params), params)
    assert_same(updates, alone)


def test_flatten_gives_narrow_updates_their_dtype_back() -> None:
    """Gradients of several dtypes for parameters of one share a vector, and come back as they were."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    grads = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(3)}
    transformation = optwrap.flatten(optax.scale(2.0))
    updates, _ = transformation.update(grads, transformation.init(params), params)
    assert_same(updates, jax.tree.map(lambda leaf: leaf * 2, grads))


def test_slow_parameters_follow_the_paper() -> None:
    """After each synchronisation slow = slow + step * (fast - slow), and fast starts again from there."""
    transformation = optwrap.lookahead(optax.sgd(1.0), sync_period=3, slow_step_size=0.25)
    pair = optax.LookaheadParams.init_synced(FLOAT32)
    state = transformation.init(pair)
    fast = slow = np.asarray(FLOAT32["b"], np.float64)
    step = jax.jit(stepper(transformation))
    for i in range(7):
        grads = gradients(FLOAT32, i)
        pair, state, _ = step(grads, state, pair)
        fast = fast - grads["b"]
        if i % 3 == 2:
            slow = fast = slow + 0.25 * (fast - slow)
        np.testing.assert_allclose(pair.fast["b"], fast, rtol=1e-5)
        np.testing.assert_allclose(pair.slow["b"], slow, rtol=1e-5)
        assert int(state.steps_since_sync) == (i + 1) % 3


ANYTHING = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 3.4e38, -1.5], np.float32)


def test_what_is_masked_out_passes_by_bit_for_bit() -> None:
    """Signs of zeros, NaN and infinities are kept."""
    transformation = optwrap.masked(optax.sgd(0.5, momentum=0.5), {"in": True, "out": False})
    grads = {"in": jnp.ones(2), "out": jnp.asarray(ANYTHING)}
    updates, _ = jax.jit(transformation.update)(grads, transformation.init(grads), grads)
    np.testing.assert_array_equal(np.asarray(updates["out"]).view(np.uint32), ANYTHING.view(np.uint32))


def test_fast_updates_between_synchronisations_are_those_of_the_fast_optimizer() -> None:
    """Bit for bit, whatever the gradients are; those of the slow parameters are zero, and not a product."""
    fast = optax.sgd(0.5)
    transformation = optwrap.lookahead(fast, sync_period=3, slow_step_size=0.25)
    pair = optax.LookaheadParams(fast=jnp.full(7, 2.0), slow=jnp.full(7, 0.5))
    updates, _ = jax.jit(transformation.update)(jnp.asarray(ANYTHING), transformation.init(pair), pair)
    alone, _ = jax.jit(fast.update)(jnp.asarray(ANYTHING), fast.init(pair.fast), pair.fast)
    bits, expected = (np.asarray(leaf).view(np.uint32) for leaf in (updates.fast, alone))
    np.testing.assert_array_equal(bits, expected)
    np.testing.assert_array_equal(updates.slow, np.zeros(7))


def test_lookahead_takes_python_numbers() -> None:
    """Without jit, too, where an optimizer returns a number as it came."""
    trail: dict[Any, list[np.ndarray[Any, Any]]] = {}
    for library in (optwrap, optax):
        transformation = library.lookahead(optax.sgd(0.5), sync_period=2, slow_step_size=0.25)
        params = optax.LookaheadParams.init_synced({"a": 1.0})
        state, trail[library] = transformation.init(params), []
        for gradient in (0.5, -1.0, 0.25):
            updates, state = transformation.update({"a": gradient}, state, params)
            params = optax.apply_updates(params, updates)
            trail[library].append(np.array([params.fast["a"], params.slow["a"]]))
    np.testing.assert_array_equal(trail[optwrap], trail[optax])


def test_init_of_lookahead_takes_the_fast_parameters_alone() -> None:
    """As optax's does, for wrappers that have only the fast parameters."""
    transformation = optwrap.lookahead(optax.adam(0.1), 3, 0.5)
    assert_same(transformation.init(FLOAT32), transformation.init(optax.LookaheadParams.init_synced(FLOAT32)))
