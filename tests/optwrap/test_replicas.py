"""The replica with non-finite gradients: its flags, and its name in a report, against numpy."""

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from optwrap_exporter.wire import requests as wire

import optwrap
from optwrap._monitor.monitor import Monitor
from optwrap._monitor.thread import Parts
from optwrap._reading.replicas import NonfiniteReplicas, Replica, Replicas, named, nonfinite_replicas
from optwrap._reading.unpack import unpack
from tests.optwrap.monitoring import Books, StubExporter

pytestmark = pytest.mark.thin(3)

N = 8
SPOILT = np.array(
    [
        *np.eye(N, dtype=bool),
        np.zeros(N, bool),
        np.isin(np.arange(N), [2, 5]),
        np.isin(np.arange(N), [1, 6, 7]),
        np.ones(N, bool),
        np.zeros(N, bool),
    ]
)
"""bool[steps, N]: which rows of the batch, one for each device, spoil the gradients: each alone, some, all, none."""


class Way(NamedTuple):
    """A mesh, and the axes along which the replicas lie."""

    order: Callable[[list[Any]], list[Any]]
    shape: dict[str, int]
    replicas: str | tuple[str, ...]
    check_vma: bool = True

    @property
    def mesh(self) -> Mesh:
        devices = self.order(jax.devices()[:N])
        return Mesh(np.array(devices).reshape(list(self.shape.values())), tuple(self.shape))


def in_order(devices: list[Any]) -> list[Any]:
    return devices


def reverse(devices: list[Any]) -> list[Any]:
    return devices[::-1]


WAYS = {
    "one axis": Way(in_order, {"data": 8}, "data"),
    "without types": Way(in_order, {"data": 8}, "data", check_vma=False),
    "reversed": Way(reverse, {"data": 8}, "data"),
    "first of two": Way(in_order, {"data": 4, "model": 2}, "data"),
    "second of two": Way(reverse, {"model": 2, "data": 4}, "data"),
    "second of two without types": Way(in_order, {"model": 2, "data": 4}, "data", check_vma=False),
    "two axes": Way(reverse, {"a": 2, "b": 4}, ("b", "a")),
}


MONITORED = ("reversed", "second of two without types", "two axes")
"""Of these what arrives at an exporter is looked at; of all, the flags and the names."""


def truth(way: Way) -> list[tuple[int, int, str, int, int] | None]:
    """Replica, process, device, count and number of replicas of each step, from the mesh's own grid."""
    mesh, axes = way.mesh, (way.replicas,) if isinstance(way.replicas, str) else way.replicas
    rows: dict[int, list[int]] = {}
    ids: dict[int, list[int]] = {}
    for row, place in enumerate(itertools.product(*map(range, way.shape.values()))):
        at = dict(zip(way.shape, place, strict=True))
        replica = 0
        for axis in axes:
            replica = replica * way.shape[axis] + at[axis]
        rows.setdefault(replica, []).append(row)
        ids.setdefault(replica, []).append(mesh.devices[place].id)
    found: list[tuple[int, int, str, int, int] | None] = []
    for spoilt in SPOILT:
        bad = [replica for replica in sorted(rows) if spoilt[rows[replica]].any()]
        found.append((bad[0], 0, name(ids[bad[0]]), len(bad), len(rows)) if bad else None)
    return found


def name(ids: list[int]) -> str:
    ids = sorted(ids)
    return f"cpu:{ids[0]}" if len(ids) == 1 else f"cpu:{ids[0]}{'-' if ids[1] == ids[0] + 1 else ','}{ids[1]}"


def batches() -> np.ndarray[Any, Any]:
    """float32[steps, N, 3]: NaN, Inf and what overflows, in another value each time."""
    rows = np.ones([*SPOILT.shape, 3], np.float32)
    for place, (step, row) in enumerate(np.argwhere(SPOILT)):
        rows[step, row, place % 3] = (np.nan, np.inf, -np.inf)[place % 3]
    return rows


def loss(params: Any, row: Any) -> Any:
    return jnp.sum(params["w"] * row) + jnp.sum(params["b"])


def stepped(
    tx: Any, axes: Any, every: Any, *, pcast: bool, mesh: Mesh | None = None, name: str | None = None
) -> Callable[..., Any]:
    """One step on one device: its own gradients, their flags, and the optimizer on the mean."""

    def step(params: Any, state: Any, row: Any) -> Any:
        own = jax.lax.pcast(params, every, to="varying") if pcast else params
        grads = jax.grad(loss)(own, row)
        flags = optwrap.replica_flags(grads, axes, mesh=mesh)
        params, state = optwrap.apply_gradients(tx, jax.lax.pmean(grads, every), state, params, replica_flags=flags)
        return params, state, optwrap.reading(state, name)

    return step


def mapped(way: Way, step: Callable[..., Any]) -> Callable[..., Any]:
    """The step on every device of the mesh, each with its row of the batch."""
    every = tuple(way.shape)
    return jax.shard_map(
        lambda params, state, rows: step(params, state, rows[0]),
        mesh=way.mesh,
        in_specs=(P(), P(), P(every)),
        out_specs=(P(), P(), P()),
        check_vma=way.check_vma,
    )


@pytest.fixture
def monitor(stub: StubExporter) -> Iterator[Monitor]:
    with Monitor("r", stub.endpoint, interval=0.02, _parts=Parts(environ={})) as made:
        yield made


def start(monitor: Monitor | None, **options: Any) -> tuple[Any, Any, Any]:
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 100), monitor, **options)
    params = {"b": jnp.ones([]), "w": jnp.ones(3)}
    return tx, params, tx.init(params)


def told(books: Books) -> list[tuple[Any, ...] | None]:
    """The reported replicas of each step; checks that the totals equal the sum of the records."""
    rows: dict[int, tuple[Any, ...]] = {}
    totals: Counter[tuple[Any, ...]] = Counter()
    for reports in books.incarnations().values():
        for report in reports:
            wire.Report.model_validate(report, strict=False)
            assert "replicas" not in report["at_start"]
            for one in report.get("replicas", ()):
                assert one["step"] not in rows, "each step once"
                assert one["step"] in report["steps"]["step"]
                rows[one["step"]] = tuple(one[key] for key in ("replica", "process", "device", "count", "of"))
        totals.update(
            {(one["replica"], one["process"], one["device"]): one["steps"] for one in reports[-1]["totals"]["replicas"]}
        )
    assert totals == Counter(row[:3] for row in rows.values())
    return [rows.get(step) for step in range(1, len(SPOILT) + 1)]


@pytest.mark.parametrize("way", MONITORED)
def test_under_shard_map_the_first_replica_is_named_where_the_mesh_has_it(
    way: str, monitor: Monitor, stub: StubExporter
) -> None:
    check_training(WAYS[way], monitor, stub)


def check_training(way: Way, monitor: Monitor, stub: StubExporter) -> None:
    tx, params, state = start(monitor)
    step = jax.jit(mapped(way, stepped(tx, way.replicas, tuple(way.shape), pcast=way.check_vma)))
    for batch in batches():
        params, state, words = step(params, state, batch)
        monitor.observe(words)
    assert monitor.flush(20)
    assert told(stub.books) == truth(way)


@pytest.mark.parametrize(("order", "out_axes"), [(in_order, None), (reverse, 0)])
def test_under_pmap_too(order: Any, out_axes: int | None, monitor: Monitor, stub: StubExporter) -> None:
    tx, params, state = start(monitor)
    way = Way(order, {"data": 8}, "data")
    devices = list(way.mesh.devices)
    step = jax.pmap(
        stepped(tx, "data", "data", pcast=False),
        axis_name="data",
        in_axes=(None, None, 0),
        out_axes=(None, None, out_axes),
        devices=devices,
    )
    for batch in batches():
        params, state, words = step(params, state, batch)
        monitor.observe(words)
    assert monitor.flush(20)
    assert told(stub.books) == truth(way)


@pytest.mark.parametrize("bare", [False, True])
def test_flags_that_have_left_their_shard_map_still_name_the_device(
    bare: bool, monitor: Monitor, stub: StubExporter
) -> None:
    """The optimizer runs outside of the shard_map. Of a bare array of bools only the index is known."""
    way = WAYS["second of two"]
    tx, params, state = start(monitor)

    def of_one(params: Any, rows: Any) -> Any:
        grads = jax.grad(loss)(jax.lax.pcast(params, tuple(way.shape), to="varying"), rows[0])
        return jax.lax.pmean(grads, tuple(way.shape)), optwrap.replica_flags(grads, "data")

    gradients = jax.shard_map(of_one, mesh=way.mesh, in_specs=(P(), P(tuple(way.shape))), out_specs=P())

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        grads, flags = gradients(params, batch)
        given = flags.flags if bare else jax.tree.map(jnp.logical_or, flags, flags)
        params, state = optwrap.apply_gradients(tx, grads, state, params, replica_flags=given)
        return params, state, optwrap.reading(state)

    for batch in batches():
        params, state, words = step(params, state, batch)
        monitor.observe(words)
    assert monitor.flush(20)
    expected = truth(way)
    if bare:
        expected = [row and (row[0], None, None, *row[3:]) for row in expected]  # type: ignore[misc]
    assert told(stub.books) == expected


def test_an_instrumentation_around_it_does_not_make_it_forget(monitor: Monitor, stub: StubExporter) -> None:
    """An outer instrumentation traces the inner `init` after the step; `init` does not know the replicas."""
    way = WAYS["reversed"]
    inner, params, _ = start(monitor, name="in")
    tx = optwrap.instrument(inner, name="out")
    state = tx.init(params)
    step = jax.jit(mapped(way, stepped(tx, "data", "data", pcast=True, name="in")))
    for batch in batches()[:3]:
        params, state, words = step(params, state, batch)
        monitor.observe(words)
    assert monitor.flush(20)
    assert told(stub.books)[:3] == truth(way)[:3]


def test_a_state_has_no_place_for_each_replica() -> None:
    """So that a checkpoint can be used with another number of devices."""
    tx, params, state = start(None)

    def step(flags: Any) -> Any:
        return jax.eval_shape(lambda: tx.update(params, state, params, replica_flags=flags)[1])

    assert step(jnp.zeros(2, bool)) == step(jnp.zeros(512, bool)) == step(None)


def test_of_a_scan_over_steps_each_is_named(monitor: Monitor, stub: StubExporter) -> None:
    way = WAYS["reversed"]
    tx, params, state = start(monitor)
    step = mapped(way, stepped(tx, "data", "data", pcast=True))

    @jax.jit
    def steps(params: Any, state: Any, given: Any) -> Any:
        def body(carry: Any, batch: Any) -> Any:
            *carry, words = step(*carry, batch)
            return tuple(carry), words

        return jax.lax.scan(body, (params, state), given)[1]

    monitor.observe(steps(params, state, batches()))
    assert monitor.flush(20)
    assert told(stub.books) == truth(way)


@pytest.mark.parametrize("passed", [True, False])
def test_a_callback_names_the_device_if_it_is_given_the_mesh(
    passed: bool, monitor: Monitor, stub: StubExporter
) -> None:
    """Without the argument `mesh` only the replica's index is known."""
    way = WAYS["reversed"]
    tx, params, state = start(monitor, emit="callback")
    one = stepped(tx, "data", "data", pcast=True, mesh=way.mesh if passed else None)
    step = jax.jit(mapped(way, one))
    for batch in batches():
        params, state, _ = jax.block_until_ready(step(params, state, batch))
    assert monitor.flush(20)
    expected = truth(way)
    if not passed:
        expected = [row and (row[0], None, None, *row[3:]) for row in expected]  # type: ignore[misc]
    assert told(stub.books) == expected


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_the_flags_are_one_for_each_replica_and_the_same_on_every_device(way: Way) -> None:
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


def test_finite_gradients_whose_squares_overflow_bring_nothing() -> None:
    flags = jax.vmap(lambda row: optwrap.replica_flags([row], "data"), axis_name="data", out_axes=None)
    got = flags(jnp.array([[3e38, 3e38], [1, jnp.nan]], jnp.float32))
    np.testing.assert_array_equal(got.flags, [False, True])


def test_whatever_the_leaves_are_and_wherever_they_are_the_same() -> None:
    """For a tree of many dtypes in which only some leaves differ along each axis, and for an empty tree."""
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


def test_along_an_axis_that_the_compiler_shards_nothing_is_gathered() -> None:
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
    text = flags.lower(placed).compile().as_text()
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
def test_every_instrumentation_on_the_way_has_the_figures(kind: str, apply: bool) -> None:
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


def test_what_is_inside_is_not_given_the_flags() -> None:
    """The flags are not passed on to a transformation that accepts only its own extra args."""
    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), strict)
    tx, params = optwrap.instrument(inner), {"w": jnp.ones(2)}
    updates, _ = tx.update(params, tx.init(params), params, value=2.0, replica_flags=jnp.array([True]))
    np.testing.assert_array_equal(updates["w"], [-2, -2])


@pytest.mark.parametrize(
    "tx", [optax.adam(0.1), optax.chain(optax.clip(1.0), optax.sgd(0.1)), optwrap.apply_if_finite(optax.sgd(0.1), 3)]
)
def test_without_an_instrumentation_they_are_one_more_extra_argument(tx: Any) -> None:
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
def test_flags_that_are_none_are_refused(flags: Any, got: str) -> None:
    tx, params, state = start(None)
    with pytest.raises(TypeError, match=rf"replica_flags must be bool\[replicas\], got {got}: pass what"):
        tx.update(params, state, params, replica_flags=flags)


MESH = WAYS["one axis"]


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
def test_what_cannot_be_asked_is_refused_where_it_is_traced(
    axis: Any, spec: Any, mesh: Any, kind: type[Exception], says: str
) -> None:
    given = Way(in_order, mesh, "data").mesh if isinstance(mesh, dict) else mesh
    asked = jax.shard_map(
        lambda rows: optwrap.replica_flags(rows, axis, mesh=given), mesh=MESH.mesh, in_specs=spec, out_specs=P()
    )
    with pytest.raises(kind, match=says):
        jax.jit(asked)(np.ones([8, 2], np.float32))


def test_under_plain_jit_it_is_said_that_the_gradients_are_summed_already() -> None:
    with pytest.raises(
        ValueError, match=r"axes of shard_map there: none: compute .* under plain jit .* already summed"
    ):
        jax.jit(lambda grads: optwrap.replica_flags(grads, "data"))({"w": jnp.ones(2)})


def test_a_step_sends_one_scalar_for_each_replica() -> None:
    flags = jax.shard_map(
        lambda rows: optwrap.replica_flags(rows, "data"), mesh=MESH.mesh, in_specs=P("data"), out_specs=P()
    )
    text = jax.jit(flags).lower(np.ones([8, 64], np.float32)).compile().as_text()
    sent = [line for line in text.splitlines() if any(f" {kind}(" in line for kind in COLLECTIVES)]
    assert len(sent) == 1
    assert "s32[8]" in sent[0]


COLLECTIVES = [
    f"{kind}{start}"
    for kind in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    for start in ("", "-start")
]


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_where_the_reading_lies_says_which_devices_a_replica_is(way: Way) -> None:
    """The mesh of the reading overrides the mesh given to replica_flags."""
    words = jax.device_put(np.zeros(3, np.uint32), NamedSharding(way.mesh, P()))
    axes = (way.replicas,) if isinstance(way.replicas, str) else way.replicas
    known = Replicas(int(np.prod([way.shape[axis] for axis in axes])), axes, Mesh(way.mesh.devices[::-1], way.shape))
    for row in filter(None, truth(way)):
        assert nonfinite_replicas(row[0], row[3], known, words) == NonfiniteReplicas(Replica(*row[:3]), *row[3:])


def test_a_replica_of_many_devices_is_named_shortly() -> None:
    """Ranges, and no more than a few of them."""
    grid = np.empty(256, object)
    grid[:] = [FakeDevice(number, number // 64) for number in range(256)]
    grid = grid.reshape(2, 128)
    names = [named(grid[0])[1], named(grid[1])[1], named(grid[:, 3])[1], named(grid[1, ::2])[1]]
    assert names == ["tpu:0-127", "tpu:128-255", "tpu:3,131", "tpu:128,130,132,134,136,138,140,142,..."]
    assert [named(grid[row])[0] for row in (0, 1)] == [0, 2]


@dataclasses.dataclass
class FakeDevice:
    id: int
    process_index: int
    platform: str = "tpu"


def test_a_mesh_that_is_not_the_replicas_names_nobody() -> None:
    """A mesh without these axes or with other sizes, and no mesh."""
    mesh = WAYS["one axis"].mesh
    for known in (None, Replicas(8), Replicas(8, ("x",), mesh), Replicas(4, ("data",), mesh)):
        of = known.count if known else None
        assert nonfinite_replicas(1, 2, known, np.zeros(3)) == NonfiniteReplicas(Replica(1, None, None), 2, of)
    assert nonfinite_replicas(3, 2, Replicas(8, ("data",), mesh), None) == NonfiniteReplicas(
        Replica(3, 0, "cpu:3"), 2, 8
    )


def test_the_step_of_one_mesh_is_not_told_of_with_the_replicas_of_another(stub: StubExporter) -> None:
    """A program may have two steps; the one traced last, here with fewer replicas, describes both."""
    params = {"w": jnp.ones(2)}
    with Monitor("two", stub.endpoint, 0, interval=0.05) as monitor:
        tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 9), monitor)

        def step(mesh: Mesh) -> Any:
            def one(state: Any, own: Any) -> Any:
                grads = {"w": own[0]}
                flags = optwrap.replica_flags(grads, "data", mesh=mesh)
                grads = jax.lax.pmean(grads, "data")
                return tx.update(grads, state, params, replica_flags=flags)[1]

            mapped = jax.shard_map(one, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
            return jax.jit(lambda state, own: (state := mapped(state, own), optwrap.reading(state)))

        large, small = (step(Mesh(np.array(jax.devices()[:n]), ("data",))) for n in (4, 2))
        state = tx.init(params)
        for run, n in ((large, 4), (small, 2)):
            jax.block_until_ready(run(state, np.ones((n, 2), np.float32)))
        for spoilt in (3, 1):
            own = np.ones((4, 2), np.float32)
            own[spoilt] = np.nan
            state, words = large(jax.device_get(state), own)
            monitor.observe(words)
        assert monitor.flush(20)
    bodies = [wire.Report.model_validate_json(json.dumps(body)) for body in stub.books.order]
    told = [(one.step, one.replica, one.device, one.count, one.of) for body in bodies for one in body.replicas]
    assert told == [(1, 3, None, 1, None), (2, 1, None, 1, None)]
