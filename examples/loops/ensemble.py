"""An ensemble in one vmap: each member is a run, `ensemble.0`, `ensemble.1`, ..."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optwrap

MEMBERS, STEPS = 4, 12
CORRUPTED = (2, 7)
"""The member and the step whose batch is NaN."""


def main() -> None:
    """Train the members, each from its own parameters."""
    # [watched]
    with optwrap.Monitor(run="ensemble", members=MEMBERS) as monitor:
        tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.1), 5), monitor)

        @jax.jit
        @jax.vmap
        def train_step(params: Any, opt_state: Any, x: jax.Array) -> Any:
            grads = jax.grad(lambda params: jnp.mean((x @ params["w"] - 1) ** 2))(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, optwrap.reading(opt_state)

        params = {"w": jax.random.normal(jax.random.key(0), (MEMBERS, 3))}
        opt_state = jax.vmap(tx.init)(params)
        for step in range(STEPS):
            params, opt_state, reading = train_step(params, opt_state, batches(step))
            monitor.observe(reading)  # uint32[members, words]
    # [watched]


def batches(step: int) -> jax.Array:
    """A batch for each member."""
    x = jax.random.normal(jax.random.key(step), (MEMBERS, 8, 3))
    member, when = CORRUPTED
    return x.at[member, 0, 0].set(jnp.nan) if step == when else x


if __name__ == "__main__":
    main()
