"""The first non-finite replica of a step, in the reports that reach an exporter."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from optwrap_exporter.wire import requests as wire

import optwrap
from optwrap._monitor.monitor import Monitor
from optwrap._monitor.thread import Parts
from tests.optwrap.monitoring import StubExporter
from tests.optwrap.replicas import WAYS, Way, batches, in_order, loss, mapped, reverse, start, stepped, told, truth

pytestmark = pytest.mark.thin(3)

MONITORED = ("reversed", "second of two without types", "two axes")
"""Of these what arrives at an exporter is looked at; of all, the flags and the names."""


@pytest.fixture
def monitor(stub: StubExporter) -> Iterator[Monitor]:
    with Monitor("r", stub.endpoint, interval=0.02, _parts=Parts(environ={})) as made:
        yield made


@pytest.mark.parametrize("way", MONITORED)
def test_shard_map_names_the_first_replica_of_the_mesh(way: str, monitor: Monitor, stub: StubExporter) -> None:
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
def test_pmap_names_the_first_replica(order: Any, out_axes: int | None, monitor: Monitor, stub: StubExporter) -> None:
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
def test_flags_used_outside_their_shard_map_name_the_device(bare: bool, monitor: Monitor, stub: StubExporter) -> None:
    """The optimizer runs outside; of a bare array of bools only the index is known."""
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


def test_an_outer_instrumentation_keeps_the_replicas_of_the_inner_one(monitor: Monitor, stub: StubExporter) -> None:
    """It traces the inner `init`, which does not know the replicas, after the step."""
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


def test_the_state_does_not_depend_on_the_number_of_replicas() -> None:
    """So that a checkpoint can be used with another number of devices."""
    tx, params, state = start(None)

    def step(flags: Any) -> Any:
        return jax.eval_shape(lambda: tx.update(params, state, params, replica_flags=flags)[1])

    assert step(jnp.zeros(2, bool)) == step(jnp.zeros(512, bool)) == step(None)


def test_every_step_of_a_scan_names_its_replica(monitor: Monitor, stub: StubExporter) -> None:
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
    """Without the argument `mesh` only the index is known."""
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


def test_two_steps_with_different_meshes_name_no_device(stub: StubExporter) -> None:
    """The step traced last describes both, so the mesh is not known for sure."""
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
