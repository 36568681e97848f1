"""Data-parallel training over several processes, in which each device in turn has a NaN in its own gradients."""

import functools
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap

EACH: Final = 2
"""Devices of a process."""
ORDERS: Final = ("in-order", "reversed")
EMITS: Final = ("reading", "callback")


def bad_rows(n: int) -> list[list[int]]:
    """For each step, the positions in the mesh of the devices that have a NaN: each alone, two, none, all."""
    return [*([place] for place in range(n)), [1, n - 1], [], list(range(n)), []]


def train(monitor: optwrap.Monitor, mesh: Mesh, emit: Any) -> None:
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), 100), monitor, emit=emit)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P())
    def step(params: Any, state: Any, rows: Any) -> Any:
        own = jax.lax.pcast(params, "data", to="varying")
        grads = jax.grad(lambda params: jnp.sum(params["w"] * rows[0]))(own)
        flags = optwrap.replica_flags(grads, "data", mesh=mesh if emit == "callback" else None)
        grads = jax.lax.pmean(grads, "data")
        params, state = optwrap.apply_gradients(tx, grads, state, params, replica_flags=flags)
        return params, state, optwrap.reading(state)

    def placed(leaf: Any, spec: P) -> Any:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, NamedSharding(mesh, spec), lambda index: whole[index])

    params = {"w": np.ones(3, np.float32)}
    params, state = jax.tree.map(lambda leaf: placed(leaf, P()), (params, tx.init(params)))
    n = mesh.devices.size
    for bad in bad_rows(n):
        rows = np.ones([n, 3], np.float32)
        rows[bad, 1] = np.nan
        params, state, words = jax.block_until_ready(step(params, state, placed(rows, P("data"))))
        if emit == "reading":
            monitor.observe(words)


def together(connection: Connection, endpoint: str, log: Path, launch: tuple[str, int, int]) -> None:
    """Run in one of several processes; sends (process, id) of all devices at the end, in JAX's order."""
    coordinator, n, index = launch
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), sys.stderr.fileno())
    jax.config.update("jax_num_cpu_devices", EACH)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, n, index)
    for order in ORDERS:
        devices = jax.devices() if order == "in-order" else jax.devices()[::-1]
        for emit in EMITS:
            with optwrap.Monitor(f"{order}-{emit}", endpoint, interval=0.05) as monitor:
                train(monitor, Mesh(np.array(devices), ("data",)), emit)
                assert monitor.flush(60), f"{order}, {emit}: not everything arrived"
    where = [(device.process_index, device.id) for device in jax.devices()]
    jax.distributed.shutdown()  # waits for the others, whom the end of the first process would end
    connection.send(where)
