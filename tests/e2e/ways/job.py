"""The same training run in several ways; what is reported must be the same for all."""

import functools
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap
from tests.e2e.chaos.job import optimizer
from tests.e2e.chaos.truth import SHAPES, Recipe, gradients
from tests.optwrap.simulation import Leaves

SEED: Final = 11
RECIPE: Final = Recipe("guard around window", limit=2, every_k=3, skip="large")
STEPS: Final = 66
MANY: Final = 400
"""Steps that are dispatched before any of them is observed."""
AT_ONCE: Final = 11
"""Steps of one scan."""


Emit = Literal["reading", "callback"]
EMITS: Final[tuple[Emit, ...]] = ("reading", "callback")

Training = Callable[[Any, optwrap.Monitor, Emit], Any]
"""Runs all steps with a transformation, and has them reported; returns the last state."""


def each(steps: int = STEPS) -> list[Leaves]:
    """The gradients of every step."""
    return [gradients(SEED, 0, step) for step in range(1, steps + 1)]


def replicas(grads: Leaves, n: int) -> Leaves:
    """Gradients of `n` replicas whose mean is `grads`: n times a leaf from one of them, zero from the others.

    So a non-finite value comes from one replica alone.
    """
    rows = {name: np.zeros((n, *leaf.shape), np.float32) for name, leaf in grads.items()}
    for place, name in enumerate(grads):
        rows[name][place % n] = n * grads[name]
    return rows


def stepped(tx: Any) -> Callable[..., Any]:
    """One step, to be transformed."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, optwrap.reading(state)

    return step


def start(tx: Any) -> tuple[Any, Any]:
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    return params, tx.init(params)


def one_by_one(step: Callable[..., Any], carry: Any, given: list[Any], monitor: optwrap.Monitor, emit: Emit) -> Any:
    for grads in given:
        *carry, words = step(*carry, grads)
        if emit == "reading":
            monitor.observe(words)
        if not isinstance(words, jax.Array) or len(words.sharding.device_set) > 1:
            # An all-reduce blocks its thread of XLA:CPU until all devices are there, and a callback blocks one, too.
            # With several steps in flight on several devices, too few threads may be left for all devices to get
            # there, and the process aborts after a minute.
            jax.block_until_ready(words)
    return carry[1]


def jit(tx: Any, monitor: optwrap.Monitor, emit: Emit) -> Any:
    return one_by_one(jax.jit(stepped(tx)), start(tx), each(), monitor, emit)


def donated(tx: Any, monitor: optwrap.Monitor, emit: Emit) -> Any:
    return one_by_one(jax.jit(stepped(tx), donate_argnums=(0, 1)), start(tx), each(), monitor, emit)


def ahead(tx: Any, monitor: optwrap.Monitor, emit: Emit) -> Any:
    """The first step keeps the device busy, so that the others wait behind it."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, grads: Any, work: Any) -> Any:
        busy = jax.lax.fori_loop(0, work, lambda _, a: jnp.tanh(a @ a), jnp.full([200, 200], 0.1))
        grads = {**grads, "a": grads["a"] + 0 * busy[0, 0]}
        return stepped(tx)(params, state, grads)

    carry = start(tx)
    given = each(MANY)
    seen = []
    for place, grads in enumerate(given):
        *carry, words = step(*carry, grads, 2000 if place == 0 else 0)
        seen.append(words)
    if emit == "reading":
        for words in seen:
            monitor.observe(words)
    return carry[1]


def scan(tx: Any, monitor: optwrap.Monitor, emit: Emit) -> Any:
    @jax.jit
    def steps(carry: Any, grads: Any) -> Any:
        def step(carry: Any, grads: Any) -> Any:
            *carry, words = stepped(tx)(*carry, grads)
            return tuple(carry), words

        return jax.lax.scan(step, carry, grads)

    carry, given = start(tx), each()
    for first in range(0, STEPS, AT_ONCE):
        carry, words = steps(carry, jax.tree.map(lambda *leaves: np.stack(leaves), *given[first : first + AT_ONCE]))
        if emit == "reading":
            monitor.observe(words)
    return carry[1]


def sharded(tx: Any, monitor: optwrap.Monitor, emit: Emit) -> Any:
    """Parameters, moments and gradients sharded over eight devices."""
    mesh = jax.make_mesh((8,), ("x",))

    def placed(tree: Any) -> Any:
        return {
            name: jax.device_put(leaf, NamedSharding(mesh, P(*[None] * (np.ndim(leaf) - 1), "x")))
            for name, leaf in tree.items()
        }

    with jax.set_mesh(mesh):
        params = placed({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()})
        carry = params, jax.jit(tx.init)(params)
        return one_by_one(jax.jit(stepped(tx)), carry, [placed(grads) for grads in each()], monitor, emit)


def shard_map(tx: Any, monitor: optwrap.Monitor, emit: Emit) -> Any:
    """Each of eight devices has gradients of its own; the optimizer gets their mean."""
    mesh = jax.make_mesh((8,), ("x",))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("x")), out_specs=(P(), P(), P()))
    def step(params: Any, state: Any, grads: Any) -> Any:
        return stepped(tx)(params, state, jax.tree.map(lambda rows: jax.lax.pmean(rows[0], "x"), grads))

    given = [jax.device_put(replicas(grads, 8), NamedSharding(mesh, P("x"))) for grads in each()]
    with jax.set_mesh(mesh):
        return one_by_one(step, start(tx), given, monitor, emit)


def pmap(tx: Any, monitor: optwrap.Monitor, emit: Emit) -> Any:
    """The same, with a copy of the state on each device."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        return stepped(tx)(params, state, jax.lax.pmean(grads, "x"))

    carry = jax.tree.map(lambda leaf: np.stack([leaf] * 8), start(tx))
    given = [replicas(grads, 8) for grads in each()]
    return one_by_one(jax.pmap(step, axis_name="x"), carry, given, monitor, emit)


def mesh_of_processes(tx: Any, monitor: optwrap.Monitor, emit: Emit, devices: list[Any]) -> Any:
    """A plain jit over a mesh of all processes' devices; each has a part of the batch."""
    mesh = Mesh(np.array(devices), ("x",))
    n = len(devices)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def step(params: Any, state: Any, grads: Any) -> Any:
        return stepped(tx)(params, state, jax.tree.map(lambda rows: jnp.mean(rows, axis=0), grads))

    def placed(rows: Any) -> Any:
        return jax.make_array_from_callback(rows.shape, NamedSharding(mesh, P("x")), lambda index: rows[index])

    carry = jax.tree.map(
        lambda leaf: jax.make_array_from_callback(
            np.shape(leaf), NamedSharding(mesh, P()), lambda index: np.asarray(leaf)[index]
        ),
        start(tx),
    )
    given = [jax.tree.map(placed, replicas(grads, n)) for grads in each()]
    return one_by_one(step, carry, given, monitor, emit)


WAYS: Final[dict[str, Training]] = {
    "jit": jit,
    "donated": donated,
    "ahead": ahead,
    "scan": scan,
    "sharded": sharded,
    "shard_map": shard_map,
    "pmap": pmap,
}
ORDERS: Final = ("in-order", "reversed")
"""Of the processes in the mesh."""


def report(run: str, endpoint: str, train: Training, emit: Emit) -> None:
    """Run a training with a Monitor of its own."""
    with optwrap.Monitor(run, endpoint, interval=0.05) as monitor:
        tx = optwrap.instrument(optimizer(RECIPE), monitor, emit=emit)
        jax.block_until_ready(train(tx, monitor, emit))
        assert monitor.flush(60), f"{run}: not everything arrived"


def alone(connection: Connection, endpoint: str, log: Path, cases: list[tuple[str, Emit]]) -> None:
    """Run cases in one process."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), sys.stderr.fileno())
    jax.config.update("jax_num_cpu_devices", 8)
    for way, emit in cases:
        report(f"{way}-{emit}", endpoint, WAYS[way], emit)
    connection.send("done")


def together(
    connection: Connection, endpoint: str, log: Path, launch: tuple[str, int, int], cases: list[tuple[str, Emit]]
) -> None:
    """Run cases in one of several processes with one device each.

    Args:
      connection: to send "done" over.
      endpoint: of the exporter.
      log: file for standard error.
      launch: address of the coordinator, number of processes, index of this one.
      cases: order of the processes in the mesh, and how steps are reported.
    """
    coordinator, n, index = launch
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), sys.stderr.fileno())
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, n, index)
    for order, emit in cases:
        devices = jax.devices() if order == "in-order" else jax.devices()[::-1]
        train: Training = functools.partial(mesh_of_processes, devices=devices)
        report(f"{n}-{order}-{emit}", endpoint, train, emit)
    jax.distributed.shutdown()  # waits for the others, which the end of the first process would abort
    connection.send("done")
