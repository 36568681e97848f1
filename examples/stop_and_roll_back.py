"""A training that stops itself, goes back to the last clean checkpoint, and leaves the bad batches out.

Run it with `python -m examples.stop_and_roll_back`. If an exporter (`optwrap-exporter`) runs on this machine, its page
shows the run "stop-and-roll-back". The training does not need one.

Three batches hold a NaN. The guard rejects two in a row, so the third reaches the parameters, and the training is lost:
the Monitor's policy stops it. In this example the program then plays the scheduler, and launches the training again.
With `--launches 1` it does not: it exits with 65, and the next run of the program with the same `--directory` goes on.
With `--coordinator`, `--processes` and `--process` it is one of several processes, which all stop at the same step:
`make demo ARGS=--pod` shows that.
"""

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

import optwrap

P: Any = jax.sharding.PartitionSpec  # which has no types

BATCHES = 120
CORRUPTED = (55, 56, 57)
"""Batches whose targets hold a NaN."""
SAVE_EVERY = 20
"""Steps from one checkpoint to the next."""
POLICY = optwrap.StopPolicy(accepted_not_finite=1, not_finite_streak=10)


def batch(number: int, rows: Any) -> tuple[Any, Any]:
    """The inputs and the targets of one batch, each device with its part of the rows."""
    x = np.random.default_rng(number).normal(size=(64, 4)).astype(np.float32)
    y = np.sin(x.sum(axis=1, keepdims=True))
    if number in CORRUPTED:
        y[0] = np.nan

    def placed(whole: Any) -> Any:
        return jax.make_array_from_callback(whole.shape, rows, lambda index: whole[index])

    return placed(x), placed(y)


def loss(params: dict[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error of a network with one hidden layer."""
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return jnp.mean((hidden @ params["out"]["w"] - y) ** 2)


def launch(directory: Path) -> optwrap.Stop | float:
    """Train from the newest checkpoint to the last batch; returns the loss, or the reason to stop before."""
    skip_file = directory / "skip_batches.json"
    skipped = set(json.loads(skip_file.read_text())["batches"] if skip_file.exists() else ())
    batches = [number for number in range(1, BATCHES + 1) if number not in skipped]  # step s takes the s-th of them

    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    rng = np.random.default_rng(0)
    params: Any = {
        "hidden": {"w": rng.normal(size=(4, 32)).astype(np.float32), "b": np.zeros(32, np.float32)},
        "out": {"w": (0.1 * rng.normal(size=(32, 1))).astype(np.float32)},
    }
    with (
        ocp.CheckpointManager(directory / "checkpoints") as checkpoints,
        optwrap.Monitor(run="stop-and-roll-back", stop=POLICY) as monitor,
    ):
        tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(1e-2), max_consecutive_errors=2), monitor)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def train_step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
            value, grads = jax.value_and_grad(loss)(params, x, y)
            params, opt_state = optwrap.apply_gradients(tx, grads, opt_state, params)
            return params, opt_state, value, optwrap.reading(opt_state)

        params = jax.device_put(params, everywhere)
        opt_state = jax.jit(tx.init, out_shardings=everywhere)(params)
        done = checkpoints.latest_step() or 0
        if done:
            params, opt_state = checkpoints.restore(done, args=ocp.args.StandardRestore((params, opt_state)))
        value = jnp.nan
        for step in range(done + 1, len(batches) + 1):
            params, opt_state, value, reading = train_step(params, opt_state, *batch(batches[step - 1], rows))
            monitor.observe(reading)
            if stop := monitor.should_stop():
                stop.save(skip_file, batch_of=lambda step: batches[step - 1])
                checkpoints.wait_until_finished()
                for saved in checkpoints.all_steps():
                    if saved > stop.last_clean_step:
                        checkpoints.delete(saved)  # so the newest one is always clean
                return stop
            if step % SAVE_EVERY == 0:
                checkpoints.save(step, args=ocp.args.StandardSave((params, opt_state)))
        return float(value)


def train(directory: Path, launches: int) -> int:
    """Launch the training until it reaches a finite loss; returns the exit code."""
    for _ in range(launches):
        end = launch(directory)
        if isinstance(end, optwrap.Stop):
            batches = json.loads((directory / "skip_batches.json").read_text())["batches"]
            print(f"stopped at step {end.step}: {end.reason}")
            print(f"back to step {end.last_clean_step} or earlier, without batches {batches}")
        else:
            print(f"reached the end with a loss of {end:.4f}")
            return 0 if np.isfinite(end) else optwrap.Stop.exit_code
    return optwrap.Stop.exit_code


def main() -> int:
    """Read the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.stop_and_roll_back")
    parser.add_argument("--launches", type=int, default=3, help="launches of the training (%(default)s)")
    parser.add_argument("--directory", type=Path, help="for checkpoints (default: one that is deleted at the end)")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, for one of several processes")
    parser.add_argument("--processes", type=int, help="their number")
    parser.add_argument("--process", type=int, help="index of this one")
    options = parser.parse_args()
    if options.coordinator is not None:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    with tempfile.TemporaryDirectory() as temporary:
        return train((options.directory or Path(temporary)).absolute(), options.launches)


if __name__ == "__main__":
    sys.exit(main())
