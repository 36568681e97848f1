"""With a returned reading JAX's compilation cache, export and single trace still work."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwrap

REPOSITORY = Path(__file__).parents[2]

TRAINING = """
import jax, jax.numpy as jnp, optax, optwrap

seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event.rpartition("/")[2]))
monitor = optwrap.Monitor(run="cached", endpoint="off")
tx = optwrap.instrument(optwrap.MultiSteps(optwrap.apply_if_finite(optax.adamw(1e-3), 3), 2), monitor)

@jax.jit
def step(params, state, grads):
    params, state = optwrap.apply_gradients(tx, grads, state, params)
    return params, state, optwrap.reading(state)

params = {"w": jnp.ones((16, 4)), "b": jnp.zeros(4)}
state = jax.jit(tx.init)(params)
seen.clear()
for _ in range(3):
    params, state, reading = step(params, state, params)
    monitor.observe(reading)
print(seen.count("cache_hits"), seen.count("cache_misses"))
"""


def train_in_a_process(cache: Path) -> tuple[int, int]:
    """Hits and misses of the persistent compilation cache, of the step alone."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    ran = subprocess.run(
        [sys.executable, "-c", TRAINING], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    hits, misses = ran.stdout.split()
    return int(hits), int(misses)


def test_a_second_process_finds_the_step_in_the_persistent_compilation_cache(tmp_path: Path) -> None:
    assert train_in_a_process(tmp_path) == (0, 1)
    assert train_in_a_process(tmp_path) == (1, 0)


def training(monitor: Any = None) -> tuple[Any, Any, Any]:
    """Parameters, state, and the step."""
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.adamw(1e-3), 3), monitor)
    params = {"w": jnp.ones((16, 4)), "b": jnp.zeros(4)}

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, optwrap.reading(state)

    return params, tx.init(params), step


def test_the_step_can_be_exported() -> None:
    """`jax.export` lowers it, for other platforms too, and what it lowered computes the same."""
    params, state, step = training()
    bad = params | {"b": params["b"].at[1].set(jnp.nan)}
    exported = jax.export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(params, state, params)
    for grads in (params, bad):
        for ours, direct in zip(
            jax.tree.leaves(exported.call(params, state, grads)),
            jax.tree.leaves(jax.jit(step)(params, state, grads)),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, direct)


@pytest.mark.parametrize("donate", [(), (0, 1)])
def test_the_step_is_traced_once(donate: tuple[int, ...], tmp_path: Path) -> None:
    """A thousand steps after the first, observed or not, good or bad, and none of them is traced again."""
    with optwrap.Monitor(run="traced-once", endpoint=f"unix://{tmp_path}/nobody.sock") as monitor:
        params, state, step = training(monitor)
        traces = 0

        @functools.partial(jax.jit, donate_argnums=donate)
        def counted(params: Any, state: Any, grads: Any) -> Any:
            nonlocal traces
            traces += 1
            return step(params, state, grads)

        monitor.observe(optwrap.reading(state))
        grads = jax.tree.map(jnp.ones_like, params)
        bad = grads | {"b": grads["b"].at[1].set(jnp.inf)}
        for number in range(1000):
            params, state, reading = counted(params, state, bad if number % 100 == 50 else grads)
            monitor.observe(reading)
        assert traces == 1
        assert optwrap.unpack(np.asarray(optwrap.reading(state))).step == 1000
