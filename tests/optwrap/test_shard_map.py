"""`axis_name`: all devices of a shard_map or pmap decide as one device with all gradients does.

The truth is a training of the whole tree on one device, without `axis_name`. Gradients are multiples of 1/8, so that
every sum is exact in whatever order it is taken, and results are compared bit for bit.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optwrap
from optwrap._core.collectives import Together
from tests.optwrap.transformations import assert_same, momentum, stepper

pytestmark = pytest.mark.thin(3)

STEPS = 6
SPECS = {"both": P("x", "y"), "columns": P(None, "y"), "everywhere": P()}
SHAPES = {"both": (8, 4), "columns": (3, 4), "everywhere": (5,)}
PARAMS = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}

Make = Callable[[Any], Any]
LARGE = functools.partial(optwrap.skip_large_updates, max_squared_norm=2000.0)
DECIDING: dict[str, Make] = {
    "apply_if_finite": lambda axes: optwrap.apply_if_finite(momentum(), 2, axis_name=axes),
    "skip_not_finite": lambda axes: windowed(momentum(), optwrap.skip_not_finite, axes),
    "skip_large_updates": lambda axes: windowed(momentum(), LARGE, axes),
    "of_optax": lambda axes: windowed(momentum(), optax.skip_not_finite, axes),
    "nested": lambda axes: windowed(optwrap.apply_if_finite(momentum(), 1, axis_name=axes), LARGE, axes),
    "skip_spikes": lambda axes: optwrap.skip_spikes(momentum(), max_norm=2000.0**0.5, axis_name=axes),
    "around": lambda axes: optwrap.apply_if_finite(windowed(momentum(), LARGE, axes), 1, axis_name=axes),
}
"""Every wrapper that decides, from its `axis_name`."""


def windowed(inner: Any, skip: Any, axes: Any) -> Any:
    return optwrap.MultiSteps(inner, 2, should_skip_update_fn=skip, axis_name=axes).gradient_transformation()


def specs_of(transformation: Any, state: Any, specs: Any) -> Any:
    """How the state lies on a mesh: what has the shape of a parameter as the parameter does, all else everywhere."""
    return optax.tree.map_params(transformation, lambda _, spec: spec, state, specs, transform_non_params=lambda _: P())


def batches_with(faults: dict[int, Any], names: Any = tuple(SHAPES)) -> list[Any]:
    """The gradients of every step; of the step `i` the faults `faults[i]`, (leaf, position, value), are put in."""
    rng = np.random.default_rng(0)
    batches = []
    for step in range(STEPS):
        grads = {name: np.round(rng.normal(size=SHAPES[name]) * 8).astype(np.float32) / 8 for name in names}
        for leaf, position, value in faults.get(step, []):
            grads[leaf].flat[position % grads[leaf].size] = value
        batches.append(grads)
    return batches


def faults_in(names: Any) -> st.SearchStrategy[dict[int, Any]]:
    # The last but one is finite, but its square is not; the last is large.
    values = st.sampled_from([np.nan, np.inf, -np.inf, 2.0**100, 64.0])
    fault = st.tuples(st.sampled_from(names), st.integers(0, 31), values)
    return st.dictionaries(st.integers(0, STEPS - 1), st.lists(fault, min_size=1, max_size=3), max_size=4)


quick = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


class Result(NamedTuple):
    """The result of a training."""

    params: Any
    state: Any


Step = Callable[[Any, Any, Any], Any]


def trained(step: Step, transformation: Any, params: Any, batches: list[Any]) -> Result:
    state = transformation.init(params)
    for grads in batches:
        params, state = step(grads, state, params)
    return Result(params, state)


@functools.cache
def on_one_device(name: str) -> tuple[Any, Step]:
    transformation = DECIDING[name](None)
    return transformation, jax.jit(lambda *args: stepper(transformation)(*args)[:2])


@functools.cache
def on_a_mesh(name: str, check_vma: bool) -> tuple[Any, Step]:
    """Under shard_map over 4 x 2 devices, with a different sharding for each leaf."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    transformation = DECIDING[name](("x", "y"))
    state = specs_of(transformation, jax.eval_shape(transformation.init, PARAMS), SPECS)
    mapped = jax.shard_map(
        lambda *args: stepper(transformation)(*args)[:2],
        mesh=mesh,
        in_specs=(SPECS, state, SPECS),
        out_specs=(SPECS, state),
        check_vma=check_vma,
    )
    return transformation, jax.jit(mapped)


@pytest.mark.parametrize("name", DECIDING)
@quick
@given(faults=faults_in(tuple(SHAPES)))
def test_a_mesh_decides_as_one_device(name: str, faults: dict[int, Any]) -> None:
    """Counters and norms are those of the whole tree; specs of P() make JAX check that all devices agree."""
    batches = batches_with(faults)
    transformation, step = on_one_device(name)
    expected = trained(step, transformation, PARAMS, batches)
    transformation, step = on_a_mesh(name, check_vma=True)
    assert_same(trained(step, transformation, PARAMS, batches), expected)


ROWS = {"both": PARAMS["both"]}
UNTYPED = [("shard_map", name) for name in ("apply_if_finite", "skip_not_finite", "nested", "around")] + [
    (how, name) for how in ("pmap", "vmap") for name in ("apply_if_finite", "nested")
]


@functools.cache
def by_rows(name: str, how: str, axes: str | None = "x") -> tuple[Any, Step]:
    """A step of eight devices or lanes, of which no type says what differs: each has a row. All results are stacked."""
    transformation = DECIDING[name](axes)
    state = jax.eval_shape(transformation.init, ROWS)
    rows = dict.fromkeys(ROWS, 0)
    places = optax.tree.map_params(
        transformation, lambda _, place: place, state, rows, transform_non_params=lambda _: None
    )
    in_axes = (rows, places if axes else jax.tree.map(lambda _: 0, state), rows)

    def step(*args: Any) -> Any:
        return stepper(transformation)(*args)[:2]

    if how == "pmap":
        return transformation, jax.pmap(step, axis_name="x", in_axes=in_axes)
    if how == "vmap":
        return transformation, jax.jit(jax.vmap(step, axis_name="x", in_axes=in_axes))

    def of_one(*args: Any) -> Any:
        args = jax.tree.map(lambda place, leaf: leaf if place is None else leaf[0], in_axes, args, is_leaf=is_none)
        return jax.tree.map(lambda leaf: leaf[None], step(*args))

    specs = jax.tree.map(lambda place: P() if place is None else P("x"), in_axes, is_leaf=is_none)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(of_one, mesh=mesh, in_specs=specs, out_specs=P("x"), check_vma=False)
    return transformation, jax.jit(mapped)


def is_none(leaf: Any) -> bool:
    return leaf is None


@pytest.mark.parametrize(("how", "name"), UNTYPED)
@quick
@given(faults=faults_in(tuple(ROWS)))
def test_without_types_devices_decide_together(name: str, how: str, faults: dict[int, Any]) -> None:
    """With check_vma=False, under pmap and under vmap."""
    batches = batches_with(faults, tuple(ROWS))
    transformation, step = on_one_device(name)
    expected = trained(step, transformation, ROWS, batches)

    transformation, step = by_rows(name, how)
    params, state = ROWS, transformation.init(ROWS)
    for grads in batches:
        params, stacked = step(grads, state, params)
        for leaf, kept in zip(jax.tree.leaves(stacked), jax.tree.leaves(state), strict=True):
            if kept.ndim == 0:
                np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], (8,)))
        state = jax.tree.map(lambda leaf, kept: leaf[0] if kept.ndim == 0 else leaf, stacked, state)
    assert_same(Result(params, state), expected)


@pytest.mark.parametrize("how", ["shard_map", "pmap"])
@pytest.mark.parametrize("name", ["apply_if_finite", "skip_not_finite"])
def test_without_an_axis_name_each_device_decides_for_itself(name: str, how: str) -> None:
    """Each row trains as if it were alone: only that with the NaN leaves out the step."""
    batches = batches_with({1: [("both", 13, np.nan)], 4: [("both", 30, np.inf)]}, tuple(ROWS))
    transformation, step = by_rows(name, how, None)
    state = jax.tree.map(lambda leaf: np.stack([leaf] * 8), transformation.init({"both": ROWS["both"][0]}))
    params = ROWS
    for grads in batches:
        params, state = step(grads, state, params)
    _, alone = on_one_device(name)
    for device, row in enumerate(ROWS["both"]):
        expected = trained(alone, transformation, {"both": row}, [{"both": grads["both"][device]} for grads in batches])
        assert_same(jax.tree.map(lambda leaf, device=device: leaf[device], Result(params, state)), expected)


@pytest.mark.parametrize("name", ["apply_if_finite", "skip_not_finite"])
@pytest.mark.parametrize("watched", [False, True], ids=["", "instrumented"])
def test_devices_along_other_axes_decide_separately(name: str, watched: bool) -> None:
    """Each of four groups of two devices trains like one device, instrumented or not."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    transformation = DECIDING[name]("y")
    if watched:
        transformation = optwrap.instrument(transformation)

    def train(grads: Any) -> Any:
        params = {"both": jax.lax.pcast(jnp.ones(grads.shape[1:]), ("x", "y"), to="varying")}
        return trained(of_group, transformation, params, [{"both": batch} for batch in grads]).params["both"]

    def of_group(*args: Any) -> Any:
        return stepper(transformation)(*args)[:2]

    grads = np.stack(
        [b["both"] for b in batches_with({2: [("both", 9, np.nan)], 3: [("both", 31, np.nan)]}, tuple(ROWS))]
    )
    mapped = jax.shard_map(train, mesh=mesh, in_specs=P(None, "x", "y"), out_specs=P("x", "y"))
    together = jax.jit(mapped)(grads)
    alone, step = on_one_device(name)
    for group in range(4):
        rows = slice(2 * group, 2 * group + 2)
        params, _ = trained(step, alone, {"both": ROWS["both"][rows]}, [{"both": batch[rows]} for batch in grads])
        np.testing.assert_array_equal(together[rows], params["both"])


@pytest.mark.parametrize(("check_vma", "times"), [(True, 1), (False, 8)])
def test_a_replicated_gradient_is_counted_once_if_types_tell(check_vma: bool, times: int) -> None:
    """Without types, a replicated gradient is counted once per device."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def judged(skip: Any, grads: Any) -> Any:
        steps = optwrap.MultiSteps(momentum(), 2, should_skip_update_fn=skip, axis_name="x")
        ask = jax.shard_map(
            lambda grads: steps.update(grads, steps.init(grads))[1].skip_state,
            mesh=mesh,
            in_specs=P(),
            out_specs=P(),
            check_vma=check_vma,
        )
        return jax.jit(ask)(grads)

    skip_state = judged(optwrap.skip_not_finite, np.array([1, np.nan, np.inf], np.float32))
    assert (bool(skip_state["should_skip"]), int(skip_state["num_not_finite"])) == (True, 2 * times)
    assert judged(LARGE, np.array([3, 4], np.float32))["norm_squared"] == 25 * times


def test_a_custom_skip_function_is_called_on_each_device() -> None:
    """If it is true on one device, all skip, and `should_skip` is true on all; the rest of its state may differ."""

    def negative(updates: Any, gradient_step: Any, params: Any) -> Any:
        del gradient_step, params
        return updates < 0, {"should_skip": updates < 0, "value": updates}

    def ask(update: Any) -> Any:
        steps = optwrap.MultiSteps(momentum(), 1, should_skip_update_fn=negative, axis_name="x")
        _, state = steps.update(update, steps.init(update))
        return state.skip_state, steps.has_updated(state)

    values = np.array([1, 2, -3, 4], np.float32)
    skip_state, updated = jax.pmap(ask, axis_name="x")(values)
    assert skip_state["should_skip"].all()
    assert not updated.any()
    np.testing.assert_array_equal(skip_state["value"], values)
    assert jax.pmap(ask, axis_name="x")(np.abs(values))[1].all()


def test_an_inner_transformation_may_use_collectives() -> None:
    """All devices take the step or none does."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map(lambda leaf: jax.lax.pmean(leaf, "x"), updates), state

    averaging = optax.GradientTransformation(optax.identity().init, update)
    guard = optwrap.apply_if_finite(averaging, 3, axis_name="x")
    step = jax.pmap(lambda grads: guard.update(grads, guard.init(grads))[0], axis_name="x")
    np.testing.assert_array_equal(step(np.arange(8, dtype=np.float32)), np.full(8, 3.5))
    assert not step(np.array([1, 2, np.nan, 4, 5, 6, 7, 8], np.float32)).any()


@pytest.mark.parametrize("make", [DECIDING["apply_if_finite"], DECIDING["skip_not_finite"]])
@pytest.mark.parametrize("under", ["jit", "shard_map", "pmap"])
def test_an_unknown_axis_is_refused(make: Make, under: str) -> None:
    """When first traced, with the name, the axes that are there, and what to do."""
    transformation = make(("x", "z"))

    def update(grads: Any) -> Any:
        return transformation.update(grads, transformation.init(grads))[0]

    mapped: Callable[[Any], Any]
    wrong = r"axis_name must be an axis of the shard_map or pmap in which update is called, got '{}'.*leave it out"
    if under == "jit":
        mapped, wrong = jax.jit(update), wrong.format("x")
    elif under == "pmap":
        mapped, wrong = jax.pmap(update, axis_name="x"), wrong.format("z")
    else:
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
        mapped, wrong = jax.shard_map(update, mesh=mesh, in_specs=P("x"), out_specs=P("x")), wrong.format("z")
        wrong = wrong.replace(".*", r", axes of shard_map there: 'x', 'y': .*")
    with pytest.raises(ValueError, match=wrong):
        mapped(np.ones(8, np.float32))


@pytest.mark.parametrize("wrong", [3, ["x"], ("x", 3), b"x"])
def test_an_axis_name_is_a_string_or_a_tuple_of_them(wrong: Any) -> None:
    """Found when the wrapper is made."""
    for make in DECIDING.values():
        with pytest.raises(
            TypeError, match="axis_name must be the name of a mesh axis, a tuple of names, or None, got"
        ):
            make(wrong)
    with pytest.raises(ValueError, match=r"got \('x', 'x'\): give each name once"):
        DECIDING["apply_if_finite"](("x", "x"))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@quick
@given(data=st.data())
def test_counts_of_many_devices_saturate(dtype: Any, data: st.DataObject) -> None:
    """Even if each device's count is near the largest integer."""
    largest = int(np.iinfo(dtype).max)
    near = st.sampled_from([0, 1, 2**16 - 1, 2**29, largest // 8, largest // 8 + 1, largest // 2, largest])
    counts = data.draw(st.lists(near | st.integers(0, largest), min_size=8, max_size=8))
    with jax.enable_x64(dtype is np.int64):
        for most in {max(counts), largest}:
            add = lambda count, most=most: Together(None, frozenset({"x"})).total_count(count, most)  # noqa: E731
            total = jax.vmap(add, axis_name="x")(np.array(counts, dtype))
            assert total.dtype == dtype
            assert total.tolist() == [min(sum(counts), largest)] * 8
