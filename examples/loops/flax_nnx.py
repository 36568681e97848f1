"""flax.nnx: the reading comes from the optimizer's own state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optwrap

STEPS = 20
CORRUPTED = (5, 6)


def main() -> None:
    """Fit a line."""
    # [watched]
    monitor = optwrap.Monitor(run="flax-nnx")
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.1), 5), monitor)
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model: nnx.Linear, optimizer: nnx.Optimizer[nnx.Linear], x: jax.Array) -> jax.Array:
        grads = nnx.grad(lambda model: jnp.mean((model(x) - 1) ** 2))(model)
        optimizer.update(model, grads)
        return optwrap.reading(optimizer.opt_state)

    with monitor:
        for step in range(STEPS):
            monitor.observe(train_step(model, optimizer, batch(step)))
    # [watched]


def batch(step: int) -> jax.Array:
    """Four points, one of them NaN in a corrupted batch."""
    x = np.random.default_rng(step).normal(size=(4, 2)).astype(np.float32)
    if step in CORRUPTED:
        x[0, 0] = np.nan
    return jnp.asarray(x)


if __name__ == "__main__":
    main()
