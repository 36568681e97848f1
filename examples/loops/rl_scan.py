"""A whole training inside one jit, as in PureJaxRL: nested scans, whose readings are observed as they are."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optwrap

UPDATES, EPOCHS, MINIBATCHES = 5, 2, 4
CORRUPTED = 3
"""The update in which one return is NaN."""


def main() -> None:
    """Learn to predict returns."""
    # [watched]
    monitor = optwrap.Monitor(run="rl-scan")
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.1), 5), monitor)

    def minibatch(carry: Any, rows: Any) -> Any:
        params, opt_state = carry
        grads = jax.grad(lambda params: jnp.mean((rows[0] @ params["w"] - rows[1]) ** 2))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), optwrap.reading(opt_state)

    def update(carry: Any, number: jax.Array) -> Any:
        rollout = collect(number)
        return jax.lax.scan(lambda carry, _: jax.lax.scan(minibatch, carry, rollout), carry, length=EPOCHS)

    @jax.jit
    def train() -> Any:
        params = {"w": jnp.zeros(3)}
        return jax.lax.scan(update, (params, tx.init(params)), jnp.arange(UPDATES))

    with monitor:
        _, readings = train()  # uint32[updates, epochs, minibatches, words]
        monitor.observe(readings)
    # [watched]


def collect(number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Observations and returns in minibatches; the first minibatch of a corrupted update has a NaN."""
    seen = jax.random.normal(jax.random.key(number), (MINIBATCHES, 8, 3))
    returns = seen.sum(axis=-1)
    return seen, returns.at[0, 0].set(jnp.where(number == CORRUPTED, jnp.nan, returns[0, 0]))


if __name__ == "__main__":
    main()
