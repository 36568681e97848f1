"""A training of several processes that stops itself: run by tests.e2e.ways.test_stopping."""

import functools
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optwrap

STEPS: Final = 40
BAD: Final = (3, 8, 9, 10, 11, 12, 13, 30)
"""Steps in which one replica brings a NaN. The guard rejects two in a row, and accepts the third and later ones."""
REJECTED: Final = 2
POLICIES: Final = {
    "streak": (optwrap.StopPolicy(not_finite_streak=4, lag=3), 1),
    "accepted": (optwrap.StopPolicy(accepted_not_finite=3, lag=0), 1),
    "skipped": (optwrap.StopPolicy(skipped=(3, 20), lag=8), 1),
    "scanned": (optwrap.StopPolicy(not_finite_streak=4, accepted_not_finite=9, skipped=(9, 20), lag=2), 2),
    "never": (optwrap.StopPolicy(not_finite_streak=7, skipped=(4, 20)), 1),
}
"""The policies, and how many steps one reading has."""


def replica_of(step: int, n: int) -> int:
    """The replica that brings the NaN of a step."""
    return step % n


class Names:
    """Takes the parameters' names, so that one compiled step serves the Monitors of all policies."""

    def describe(self, layout: optwrap.Layout, *, stepping: bool = False) -> None:
        del stepping
        self.layout = layout

    def observe(self, reading: Any) -> None:
        raise NotImplementedError


def program(mesh: Mesh, names: Names) -> Any:
    """The initial parameters and state, and the jitted function that takes the steps of one reading."""
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.sgd(0.1), REJECTED), names)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(), P(None, "data")), out_specs=P())
    def steps(params: Any, state: Any, rows: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            own = jax.lax.pcast(params, "data", to="varying")
            grads = jax.grad(lambda params: jax.numpy.sum(params["w"] * rows[0]))(own)
            flags = optwrap.replica_flags(grads, "data")
            grads = jax.lax.pmean(grads, "data")
            carry = optwrap.apply_gradients(tx, grads, state, params, replica_flags=flags)
            return carry, optwrap.reading(carry[1])

        return jax.lax.scan(step, (params, state), rows)

    params = {"w": np.ones(3, np.float32)}
    carry = jax.tree.map(lambda leaf: placed(leaf, mesh, P()), (params, tx.init(params)))
    jax.eval_shape(steps, *carry, jax.ShapeDtypeStruct([1, mesh.devices.size, 3], np.float32))
    return carry, steps


def placed(leaf: Any, mesh: Mesh, spec: P) -> Any:
    """An array on all processes."""
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, NamedSharding(mesh, spec), lambda index: whole[index])


def train(
    job: Any, mesh: Mesh, monitor: optwrap.Monitor, per_reading: int, delay: Any
) -> tuple[int, optwrap.Stop | None]:
    """Train until the Monitor says stop; returns the number of readings observed, and why."""
    (carry, steps), n = job, mesh.devices.size
    for first in range(1, STEPS, per_reading):
        rows = np.ones([per_reading, n, 3], np.float32)
        for step in set(range(first, first + per_reading)) & set(BAD):
            rows[step - first, replica_of(step, n), 1] = np.nan
        delay()
        carry, readings = steps(*carry, placed(rows, mesh, P(None, "data")))
        delay()
        monitor.observe(readings)
        delay()
        if stop := monitor.should_stop():
            return (first - 1) // per_reading + 1, stop
    return STEPS // per_reading, None


def together(connection: Connection, endpoint: str, log: Path, launch: tuple[str, int, int]) -> None:
    """Run in one of several processes; sends what `train` returned, by policy.

    Process 0 reports to the exporter, the others report nothing. Process 1 is late now and then.
    """
    coordinator, n, index = launch
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), sys.stderr.fileno())
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, n, index)
    random = np.random.default_rng(index)

    def delay() -> None:
        if index == 1 and random.random() < 0.3:
            time.sleep(random.exponential(0.02))

    mesh, names, found = Mesh(np.array(jax.devices()), ("data",)), Names(), {}
    job = program(mesh, names)
    for name, (policy, per_reading) in POLICIES.items():
        with optwrap.Monitor(name, "off" if index else endpoint, interval=0.05, stop=policy) as monitor:
            monitor.describe(names.layout, stepping=True)
            found[name] = train(job, mesh, monitor, per_reading, delay)
    jax.distributed.shutdown()  # waits for the others, whom the end of the first process would end
    connection.send(found)
