"""`replica_flags`: the flags of each replica's gradients, and what `update` does with them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap
from optwrap._reading.unpack import unpack
from tests.optwrap.replicas import COLLECTIVES, SPOILT, WAYS, Way, batches, in_order, start

pytestmark = pytest.mark.thin(3)

MESH = WAYS["one axis"]


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_there_is_one_flag_for_each_replica_equal_on_every_device(way: Way) -> None:
    axes = (way.replicas,) if isinstance(way.replicas, str) else way.replicas
    spec = P(tuple(way.shape))
    flags = jax.jit(
        jax.shard_map(
            lambda rows: optwrap.replica_flags({"w": rows}, way.replicas),
            mesh=way.mesh,
            in_specs=spec,
            out_specs=P(),
            check_vma=way.check_vma,
        )
    )
    for batch, spoilt in zip(batches(), SPOILT, strict=True):
        grid = np.moveaxis(
            spoilt.reshape(list(way.shape.values())), [list(way.shape).index(axis) for axis in axes], range(len(axes))
        )
        got = flags(batch).flags
        expected = grid.reshape(int(np.prod([way.shape[axis] for axis in axes])), -1).any(1)
        assert got.dtype == np.bool_
        for shard in got.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected)


def test_finite_gradients_whose_squares_overflow_set_no_flag() -> None:
    flags = jax.vmap(lambda row: optwrap.replica_flags([row], "data"), axis_name="data", out_axes=None)
    got = flags(jnp.array([[3e38, 3e38], [1, jnp.nan]], jnp.float32))
    np.testing.assert_array_equal(got.flags, [False, True])


def test_leaves_may_have_any_dtype_and_any_sharding() -> None:
    """In one tree some leaves differ along each axis; another is empty."""
    mesh = WAYS["first of two"].mesh

    def flags(rows: Any, same: Any, mine: Any) -> Any:
        tree = {"rows": rows, "same": same, "none": None, "step": jnp.int32(3), "empty": jnp.zeros((0,))}
        tree |= {"half": mine.astype(jnp.bfloat16), "complex": mine.astype(jnp.complex64)}
        return optwrap.replica_flags(tree, "data"), optwrap.replica_flags({}, "data")

    specs = (P("data", "model"), P(), P("data"))
    mapped = jax.jit(jax.shard_map(flags, mesh=mesh, in_specs=specs, out_specs=P()))
    for place in range(4):
        for spoilt in range(2):
            given = [np.ones([4, 6], np.float32), np.ones(3, np.float32), np.ones(4, np.float32)]
            given[2 * spoilt][(place, 5)[: 2 - spoilt]] = np.nan
            got, none = mapped(*given)
            np.testing.assert_array_equal(got.flags, np.arange(4) == place)
            assert not none.flags.any()


def test_nothing_is_gathered_along_an_axis_that_the_compiler_shards() -> None:
    """shard_map over the replicas only; the compiler handles the other axis."""
    mesh = WAYS["first of two"].mesh
    flags = jax.jit(
        jax.shard_map(
            lambda rows: optwrap.replica_flags(rows, "data"),
            mesh=mesh,
            in_specs=P("data"),
            out_specs=P(),
            axis_names={"data"},
        )
    )
    rows = np.ones([4, 6], np.float32)
    rows[2, 5] = np.nan
    placed = jax.device_put(rows, NamedSharding(mesh, P("data", "model")))
    np.testing.assert_array_equal(flags(placed).flags, np.arange(4) == 2)
    text = str(flags.lower(placed).compile().as_text())
    assert not [kind for kind in COLLECTIVES if f" {kind}(" in text and not kind.startswith("all-reduce")]


def test_under_a_vmap_within_the_replicas_lie_along_both() -> None:
    """Two replicas on each of four devices, row-major in the order in which the axes are named.

    Without check_vma: with it JAX (0.10.2) itself cannot add up along both.
    """
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))

    def flags(rows: Any) -> Any:
        own = functools.partial(optwrap.replica_flags, axis_name=("data", "sub"))
        return jax.vmap(own, axis_name="sub", out_axes=None)(rows[0])

    mapped = jax.jit(jax.shard_map(flags, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False))
    for batch, spoilt in zip(batches(), SPOILT, strict=True):
        np.testing.assert_array_equal(mapped(batch.reshape(4, 2, 3)).flags, spoilt)


def around(kind: str) -> Any:
    named = functools.partial(optwrap.instrument, optax.sgd(0.1))
    match kind:
        case "nested":
            return optwrap.instrument(optwrap.MultiSteps(named(name="in"), 1), name="out")
        case "chained":
            return optax.chain(named(name="in"), named(name="out"))
        case "one of a chain":
            return optax.chain(optax.clip(1.0), named(name="out"))


@pytest.mark.parametrize("apply", [True, False])
@pytest.mark.parametrize("kind", ["nested", "chained", "one of a chain"])
def test_every_instrumentation_gets_the_flags(kind: str, apply: bool) -> None:
    tx, params = around(kind), {"w": jnp.ones(2)}
    names = ["out"] if kind == "one of a chain" else ["in", "out"]

    @jax.jit
    def step(state: Any, flags: Any) -> Any:
        if apply:
            _, state = optwrap.apply_gradients(tx, params, state, params, replica_flags=flags)
        else:
            _, state = tx.update(params, state, params, replica_flags=flags)
        return [optwrap.reading(state, name) for name in names]

    state = tx.init(params)
    for flags, figures in (
        (np.array([False, True, True]), (1, 2)),
        (np.zeros(3, bool), (None, 0)),
        (None, (None, None)),
    ):
        for words in step(state, flags):
            got = unpack(np.asarray(words))
            assert (got.replica, got.replicas_not_finite) == figures


def strict(updates: Any, state: Any, params: Any = None, *, value: Any) -> Any:
    del params
    return jax.tree.map(lambda leaf: -value * leaf, updates), state


def test_the_inner_transformation_does_not_get_the_flags() -> None:
    """It may accept only its own extra args."""
    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), strict)
    tx, params = optwrap.instrument(inner), {"w": jnp.ones(2)}
    updates, _ = tx.update(params, tx.init(params), params, value=2.0, replica_flags=jnp.array([True]))
    np.testing.assert_array_equal(updates["w"], [-2, -2])


@pytest.mark.parametrize(
    "tx", [optax.adam(0.1), optax.chain(optax.clip(1.0), optax.sgd(0.1)), optwrap.apply_if_finite(optax.sgd(0.1), 3)]
)
def test_without_an_instrumentation_the_flags_are_ignored(tx: Any) -> None:
    params = {"w": jnp.ones(2)}
    tx = optax.with_extra_args_support(tx)
    state, flags = tx.init(params), jnp.array([True, False])
    for with_flags, without in zip(
        jax.tree.leaves(optwrap.apply_gradients(tx, params, state, params, replica_flags=flags)),
        jax.tree.leaves(optwrap.apply_gradients(tx, params, state, params)),
        strict=True,
    ):
        np.testing.assert_array_equal(with_flags, without)


@pytest.mark.parametrize(
    ("flags", "got"),
    [
        (jnp.zeros(8), r"float32\[8\]"),
        (np.zeros([2, 4], bool), r"bool\[2, 4\]"),
        (np.zeros(0, bool), r"bool\[0\]"),
        (jnp.array(True), r"bool\[\]"),
        (True, "True"),
        ([True, False], r"\[True, False\]"),
    ],
)
def test_values_that_are_no_flags_are_refused(flags: Any, got: str) -> None:
    tx, params, state = start(None)
    with pytest.raises(TypeError, match=rf"replica_flags must be bool\[replicas\], got {got}: pass what"):
        tx.update(params, state, params, replica_flags=flags)


@pytest.mark.parametrize(
    ("axis", "spec", "mesh", "kind", "says"),
    [
        ("batch", P("data"), None, ValueError, r"got 'batch', axes of shard_map there: 'data': compute the gradients"),
        (None, P("data"), None, ValueError, r"axis_name must be the axis along which the replicas lie.*got None"),
        (3, P("data"), None, TypeError, r"axis_name must be the name of a mesh axis, a tuple of names"),
        ("data", P(), None, ValueError, r"same along 'data': call it before their mean.*jax.lax.pcast"),
        ("data", P("data"), "mesh", TypeError, r"mesh must be the jax.sharding.Mesh of the step, or None, got 'mesh'"),
        ("data", P("data"), {"x": 8}, ValueError, r"mesh must have the axes \{'data': 8\}, got one with \{'x': 8\}"),
        ("data", P("data"), {"data": 4, "x": 2}, ValueError, r"got one with \{'data': 4, 'x': 2\}: pass the mesh that"),
    ],
)
def test_wrong_arguments_are_refused_when_traced(
    axis: Any, spec: Any, mesh: Any, kind: type[Exception], says: str
) -> None:
    given = Way(in_order, mesh, "data").mesh if isinstance(mesh, dict) else mesh
    asked = jax.shard_map(
        lambda rows: optwrap.replica_flags(rows, axis, mesh=given), mesh=MESH.mesh, in_specs=spec, out_specs=P()
    )
    with pytest.raises(kind, match=says):
        jax.jit(asked)(np.ones([8, 2], np.float32))


def test_plain_jit_is_refused_because_gradients_are_already_summed() -> None:
    with pytest.raises(
        ValueError, match=r"axes of shard_map there: none: compute .* under plain jit .* already summed"
    ):
        jax.jit(lambda grads: optwrap.replica_flags(grads, "data"))({"w": jnp.ones(2)})


def test_a_step_sends_one_scalar_for_each_replica() -> None:
    flags = jax.shard_map(
        lambda rows: optwrap.replica_flags(rows, "data"), mesh=MESH.mesh, in_specs=P("data"), out_specs=P()
    )
    text = str(jax.jit(flags).lower(np.ones([8, 64], np.float32)).compile().as_text())
    sent = [line for line in text.splitlines() if any(f" {kind}(" in line for kind in COLLECTIVES)]
    assert len(sent) == 1
    assert "s32[8]" in sent[0]
