"""A resume with orbax: the counters are part of the optimizer's state, and counting goes on where it was saved."""

import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

import optwrap
from examples.loops.flax_nnx import batch

SAVED, STEPS = 8, 20
"""The checkpoint is of step 8; the second launch goes on to step 20."""


def launch(checkpoints: pathlib.Path, last: int) -> None:
    """Train up to step `last`, from the newest checkpoint if there is one."""
    # [watched]
    manager = ocp.CheckpointManager(checkpoints)
    start = manager.latest_step() or 0
    monitor = optwrap.Monitor(run="orbax-resume", counts_from="first_reading" if start else "zero")
    with monitor, manager:
        tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.1), 5), monitor)
        params = {"w": jnp.zeros(2)}
        state = {"params": params, "opt_state": tx.init(params)}
        if start:
            state = manager.restore(start, args=ocp.args.StandardRestore(state))

        @jax.jit
        def train_step(state: Any, x: jax.Array) -> Any:
            grads = jax.grad(lambda params: jnp.mean((x @ params["w"] - 1) ** 2))(state["params"])
            params, opt_state = optwrap.apply_gradients(tx, grads, state["opt_state"], state["params"])
            return {"params": params, "opt_state": opt_state}, optwrap.reading(opt_state)

        for step in range(start, last):
            state, reading = train_step(state, batch(step))
            monitor.observe(reading)
        manager.save(last, args=ocp.args.StandardSave(state))
    # [watched]


def main() -> None:
    """Train in two launches."""
    with tempfile.TemporaryDirectory() as directory:
        for last in (SAVED, STEPS):
            launch(pathlib.Path(directory), last)


if __name__ == "__main__":
    main()
