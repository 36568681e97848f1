"""The step reports through a host callback, and the training loop does not change.

Run it with `python -m examples.host_callback`. If an exporter (`optwrap-exporter`) runs on this machine, its page shows
the run "host-callback". The training does not need one.
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
    """Train for STEPS mini-steps, two per optimizer step, and print how many steps were taken."""
    rng = np.random.default_rng(0)
    params: Any = {
        "hidden": {"w": rng.normal(size=(4, 32)).astype(np.float32), "b": np.zeros(32, np.float32)},
        "out": {"w": (0.1 * rng.normal(size=(32, 1))).astype(np.float32)},
    }

    with optwrap.Monitor(run="host-callback") as monitor:
        tx = optwrap.MultiSteps(optax.adam(1e-2), 2, should_skip_update_fn=optwrap.skip_not_finite)
        tx = optwrap.instrument(tx, monitor, emit="callback")

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
            value, grads = jax.value_and_grad(loss)(params, x, y)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        params = jax.tree.map(jnp.asarray, params)
        opt_state = tx.init(params)
        for number in range(STEPS):
            x = rng.normal(size=(64, 4)).astype(np.float32)
            y = np.sin(x.sum(axis=1, keepdims=True))
            if number in CORRUPTED:
                y[0] = np.nan
            params, opt_state, value = step(params, opt_state, x, y)

        last = float(value)  # wait for the last step: it reports only when the device runs it

    taken = int(opt_state.inner_state.gradient_step)
    print(f"{STEPS} mini-steps, {taken} steps of the optimizer, the corrupted batches skipped; loss {last:.4f}")


if __name__ == "__main__":
    main()
