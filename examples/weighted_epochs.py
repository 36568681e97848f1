"""Batches are weighted by their number of tokens, and the last window of each epoch is flushed.

Run it with `python -m examples.weighted_epochs`. If an exporter (`optwrap-exporter`) runs on this machine, its page
shows the run "weighted-epochs". The training does not need one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optwrap

EPOCHS, BATCHES, LONGEST = 6, 10, 64


def loss(params: dict[str, Any], x: jax.Array, y: jax.Array, present: jax.Array) -> jax.Array:
    """Mean squared error over the tokens that are present; the others are padding."""
    error = (x @ params["w"] - y) ** 2
    return jnp.sum(jnp.where(present, error, 0.0)) / jnp.sum(present)


def main() -> None:
    """Train for EPOCHS epochs, and print how many steps were taken."""
    rng = np.random.default_rng(0)
    target = np.linspace(-1.0, 1.0, 8, dtype=np.float32)
    lengths = rng.integers(0, LONGEST + 1, BATCHES)
    lengths[3] = 0  # only padding: its gradient is NaN, and its weight is 0
    inputs = rng.normal(size=(BATCHES, LONGEST, 8)).astype(np.float32)

    with optwrap.Monitor(run="weighted-epochs") as monitor:
        steps = optwrap.MultiSteps(optax.adam(0.1), every_k_schedule=4, weighted=True)
        tx = optwrap.instrument(steps, monitor)

        @jax.jit
        def step(params: Any, opt_state: Any, x: jax.Array, length: jax.Array) -> Any:
            present = jnp.arange(LONGEST) < length
            value, grads = jax.value_and_grad(loss)(params, x, x @ target, present)
            params, opt_state = optwrap.apply_gradients(tx, grads, opt_state, params, weight=length)
            return params, opt_state, value, optwrap.reading(opt_state)

        @jax.jit
        def end_epoch(params: Any, opt_state: Any) -> Any:
            # flush takes the state of MultiSteps, which is inside that of the instrumentation.
            updates, inner = steps.flush(opt_state.inner_state, params)
            return optax.apply_updates(params, updates), opt_state._replace(inner_state=inner)

        params: Any = {"w": jnp.zeros(8)}
        opt_state = tx.init(params)
        for _ in range(EPOCHS):
            for x, length in zip(inputs, lengths, strict=True):
                params, opt_state, value, reading = step(params, opt_state, x, length)
                monitor.observe(reading)
            params, opt_state = end_epoch(params, opt_state)

    taken = int(opt_state.inner_state.gradient_step)
    print(f"{EPOCHS} epochs of {BATCHES} batches, {taken} steps of the optimizer; loss {float(value):.4f}")


if __name__ == "__main__":
    main()
