"""One process of the job: data-parallel training over all hosts, two Monitors, and the truth of every step in a file.

python -m tests.deploy.rehearsal.trainer LAUNCH, where LAUNCH is a `Launch` as JSON.
"""

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

import optwrap

P: Any = jax.sharding.PartitionSpec  # which has no types

ROWS: Final = 8
"""Examples of a batch in each process."""
INTERVAL: Final = 0.5
"""Seconds between reports."""
HEARTBEAT: Final = 3600
"""Seconds without a word from a process after which jax.distributed ends the job: longer than a cable is out."""
PARAMETER: Final = "hidden/b"
"""The first parameter, in the tree's order, that a NaN in a batch reaches."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """What one process needs to know. All but `process` and `sidecar` is the same for all processes of a launch."""

    attempt: str
    process: int
    processes: int
    coordinator: str
    directory: str
    """Shared by all hosts: checkpoints, the truth, and the step up to which to train."""
    name: str
    """The runs are `<name>.sidecars` and `<name>.shared`."""
    sidecar: str
    """The endpoint of the host's own exporter."""
    shared: str
    """The endpoint of the job's exporter, which wants the token in `token_file`."""
    token_file: str
    steps: int
    bad: tuple[int, ...] = ()
    """Batches with a NaN in the rows of the last process."""
    left_out: tuple[int, ...] = ()
    """Batches that are left out."""
    limit: int = 100
    """Errors in a row that the guard rejects."""
    stop: int | None = None
    """The training stops itself at a streak of so many non-finite steps."""
    save_every: int = 20
    pace: float = 0.05
    """Seconds that it waits before each step."""

    @classmethod
    def parse(cls, text: str) -> Self:
        given = json.loads(text)
        return cls(**given | {name: tuple(given[name]) for name in ("bad", "left_out")})

    @property
    def batches(self) -> list[int]:
        """Step n takes the n-th of these."""
        return [number for number in range(1, self.steps + len(self.left_out) + 1) if number not in self.left_out]


class Pair:
    """An observer that passes everything to both Monitors."""

    def __init__(self, monitors: Sequence[optwrap.Monitor]) -> None:
        self.monitors = monitors
        self.layout: Any = None

    def describe(self, layout: Any, *, stepping: bool = False) -> None:
        self.layout = layout
        for monitor in self.monitors:
            monitor.describe(layout, stepping=stepping)

    def observe(self, reading: Any) -> None:
        for monitor in self.monitors:
            monitor.observe(reading)

    def should_stop(self) -> optwrap.Stop | None:
        first, second = [monitor.should_stop() for monitor in self.monitors]
        assert first == second, f"two Monitors of the same readings decide differently: {first}, {second}"
        return first


def loss(params: dict[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error of a network with one hidden layer."""
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return jnp.mean((hidden @ params["out"]["w"] - y) ** 2)


def train(launch: Launch) -> int:
    """Train from the checkpoint, if there is one, to the last step or a stop; returns the exit code."""
    place = Path(launch.directory)
    policy = None if launch.stop is None else optwrap.StopPolicy(not_finite_streak=launch.stop, lag=4)
    with contextlib.ExitStack() as stack:
        # The hello goes before JAX is there.
        monitors = [
            stack.enter_context(
                optwrap.Monitor(
                    f"{launch.name}.{kind}",
                    endpoint,
                    launch.process,
                    attempt=launch.attempt,
                    token_file=token,
                    interval=INTERVAL,
                    stop=policy,
                )
            )
            for kind, endpoint, token in (
                ("sidecars", launch.sidecar, None),
                ("shared", launch.shared, launch.token_file),
            )
        ]
        jax.distributed.initialize(
            launch.coordinator, launch.processes, launch.process, heartbeat_timeout_seconds=HEARTBEAT
        )
        truth = stack.enter_context((place / f"{launch.attempt}-{launch.process}.jsonl").open("w", buffering=1))
        return _loop(launch, Pair(monitors), truth, place)


def _loop(launch: Launch, pair: Pair, truth: Any, place: Path) -> int:
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    guarded = optwrap.apply_if_finite(optax.adam(1e-2), max_consecutive_errors=launch.limit)
    tx = optwrap.instrument(guarded, pair)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        grads = jax.grad(loss)(params, x, y)
        params, state = optwrap.apply_gradients(tx, grads, state, params)
        return params, state, optwrap.reading(state)

    def batch(number: int) -> tuple[Any, Any]:
        x = np.random.default_rng(number).normal(size=(ROWS * launch.processes, 4)).astype(np.float32)
        y = np.sin(x.sum(axis=1, keepdims=True))
        if number in launch.bad:
            y[-1] = np.nan

        def placed(whole: Any) -> Any:
            return jax.make_array_from_callback(whole.shape, rows, lambda index: whole[index])

        return placed(x), placed(y)

    rng = np.random.default_rng(0)
    params: Any = {
        "hidden": {"w": rng.normal(size=(4, 8)).astype(np.float32), "b": np.zeros(8, np.float32)},
        "out": {"w": (0.1 * rng.normal(size=(8, 1))).astype(np.float32)},
    }
    carry: Any = jax.jit(lambda tree: (tree, tx.init(tree)), out_shardings=everywhere)(params)
    done, carry = _restored(place / "checkpoint.npz", carry, everywhere)

    def say(**what: Any) -> None:
        truth.write(json.dumps(what) + "\n")

    batches = launch.batches
    while done < launch.steps:
        _wait_for(place / "until", done)
        time.sleep(launch.pace)
        *carry, words = step(*carry, *batch(batches[done]))
        done += 1
        reading = optwrap.unpack(words, pair.layout)
        say(
            step=reading.step,
            batch=batches[done - 1],
            outcome=reading.outcome,
            finite=reading.finite,
            norm=reading.norm,
            streak=reading.gauges["not_finite_streak"],
            parameters=dict(reading.nonfinite_parameters),
        )
        pair.observe(words)
        if stop := pair.should_stop():
            say(stop={"reason": stop.reason, "step": stop.step, "last_clean_step": stop.last_clean_step})
            return optwrap.Stop.exit_code
        if done % launch.save_every == 0 and reading.finite and launch.process == 0:
            _save(place / "checkpoint.npz", carry, done)
    return 0


def _wait_for(file: Path, done: int) -> None:
    """Wait until the file says that more than `done` steps may be taken."""
    while int(file.read_text()) <= done:
        time.sleep(0.02)


def _save(path: Path, carry: Any, done: int) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, *map(np.asarray, jax.tree.leaves(carry)), done=done)
    part.replace(path)


def _restored(path: Path, carry: Any, everywhere: Any) -> tuple[int, Any]:
    if not path.exists():
        return 0, carry
    leaves, treedef = jax.tree.flatten(carry)
    with np.load(path) as saved:
        found = [saved[f"arr_{number}"] for number in range(len(leaves))]
        return int(saved["done"]), jax.device_put(jax.tree.unflatten(treedef, found), everywhere)


def main() -> None:
    """Exit with 0 at the end of the training, and with 65 if it stopped itself."""
    sys.exit(train(Launch.parse(sys.argv[1])))


if __name__ == "__main__":
    main()
