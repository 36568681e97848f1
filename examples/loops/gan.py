"""Two optimizers in one step, as in a GAN: each has its own Monitor and run."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optwrap

STEPS = 12
CORRUPTED = 4
"""The step in which a real sample is NaN: the discriminator sees it, the generator does not."""


def main() -> None:
    """Train a generator of one number against a discriminator."""
    # [watched]
    with optwrap.Monitor(run="gan.generator") as of_g, optwrap.Monitor(run="gan.discriminator") as of_d:
        g_tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.05), 5), of_g)
        d_tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.05), 5), of_d)

        @jax.jit
        def train_step(g: Any, d: Any, g_state: Any, d_state: Any, real: jax.Array) -> Any:
            d_grads = jax.grad(lambda d: jnp.mean(score(d, g["shift"] + 0 * real) - score(d, real)))(d)
            g_grads = jax.grad(lambda g: -score(d, g["shift"]))(g)
            d_updates, d_state = d_tx.update(d_grads, d_state, d)
            g_updates, g_state = g_tx.update(g_grads, g_state, g)
            g, d = optax.apply_updates(g, g_updates), optax.apply_updates(d, d_updates)
            return g, d, g_state, d_state, optwrap.reading(g_state), optwrap.reading(d_state)

        g, d = {"shift": jnp.zeros(())}, {"slope": jnp.ones(())}
        g_state, d_state = g_tx.init(g), d_tx.init(d)
        for step in range(STEPS):
            real = jnp.where(step == CORRUPTED, jnp.nan, 3.0 + jnp.arange(4.0))
            g, d, g_state, d_state, of_generator, of_discriminator = train_step(g, d, g_state, d_state, real)
            of_g.observe(of_generator)
            of_d.observe(of_discriminator)
    # [watched]


def score(d: Any, x: jax.Array) -> jax.Array:
    """How real a sample looks."""
    return jnp.tanh(d["slope"] * x)


if __name__ == "__main__":
    main()
