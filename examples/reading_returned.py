"""The step returns a reading, and the loop passes it to the monitor: two more lines than without.

Run it with `python -m examples.reading_returned`. If an exporter (`optwrap-exporter`) runs on this machine, its page
shows the run "reading-returned". The training does not need one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optwrap

STEPS = 300
CORRUPTED = (100, 101, 200)
"""Batches whose targets hold a NaN."""


def loss(params: dict[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error of a network with one hidden layer."""
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return jnp.mean((hidden @ params["out"]["w"] - y) ** 2)


def main() -> None:
    """Train for STEPS steps, and print how many were skipped."""
    rng = np.random.default_rng(0)
    params: Any = {
        "hidden": {"w": rng.normal(size=(4, 32)).astype(np.float32), "b": np.zeros(32, np.float32)},
        "out": {"w": (0.1 * rng.normal(size=(32, 1))).astype(np.float32)},
    }

    with optwrap.Monitor(run="reading-returned") as monitor:
        tx = optwrap.apply_if_finite(optax.adam(1e-2), max_consecutive_errors=5)
        tx = optwrap.instrument(tx, monitor)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
            value, grads = jax.value_and_grad(loss)(params, x, y)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value, optwrap.reading(opt_state)

        params = jax.tree.map(jnp.asarray, params)
        opt_state = tx.init(params)
        for number in range(STEPS):
            x = rng.normal(size=(64, 4)).astype(np.float32)
            y = np.sin(x.sum(axis=1, keepdims=True))
            if number in CORRUPTED:
                y[0] = np.nan
            params, opt_state, value, reading = step(params, opt_state, x, y)
            monitor.observe(reading, loss=value)

    skipped = int(opt_state.inner_state.total_notfinite)
    print(f"{STEPS} steps, of which {skipped} were skipped; loss {float(value):.4f}")


if __name__ == "__main__":
    main()
