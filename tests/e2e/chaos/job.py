"""A training process: a tiny jitted job with a real Monitor, which follows commands from a pipe."""

import dataclasses
import functools
import itertools
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import optwrap
from optwrap._monitor.sending.schedule import Clock
from optwrap._monitor.sending.transport import HttpTransport
from optwrap._monitor.settings import Settings
from optwrap._monitor.source import JaxSource
from optwrap._monitor.thread import Parts
from tests.e2e.chaos.schedule import Checkpoints
from tests.e2e.chaos.truth import LARGE, SHAPES, Recipe, gradients

INTERVAL: Final = 0.1
"""Seconds between reports."""
PATIENCE: Final = 0.5
"""Timeout of an answer in seconds: short, so that many hangs fit into a run."""


@dataclasses.dataclass(frozen=True)
class Life:
    """The settings of one training process."""

    name: str
    """Unique; the ids of its incarnations begin with it."""
    seed: int
    run: str
    process: int
    processes: int
    launch: int
    recipe: Recipe
    emit: Any
    endpoint: str
    directory: Path
    pace: float
    checkpoints: Checkpoints
    restored: Path | None = None
    """The checkpoint that it resumes from."""
    behind: float = 0.0
    """Seconds by which its machine's clock is behind."""

    @property
    def log(self) -> Path:
        """What it writes to standard error."""
        return self.directory / f"{self.name}.log"


class InPod(JaxSource):
    """Reports the life's process_count, although to JAX each process is alone here; and its name as the host."""

    def __init__(self, settings: Settings, life: Life) -> None:
        super().__init__(settings.process, settings.attempt)
        self._life = life

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"host": self._life.name, "process_count": self._life.processes}


def optimizer(recipe: Recipe) -> Any:
    """The optimizer that Recipe.part simulates."""

    def guard(inner: Any) -> Any:
        return optwrap.apply_if_finite(inner, recipe.limit)

    def window(inner: Any) -> Any:
        skips = {
            "not_finite": optwrap.skip_not_finite,
            "large": functools.partial(optwrap.skip_large_updates, max_squared_norm=LARGE**2),
            None: None,
        }
        return optwrap.MultiSteps(inner, recipe.every_k, should_skip_update_fn=skips[recipe.skip])

    adam = optax.adam(1e-3)
    match recipe.kind:
        case "guard":
            return guard(adam)
        case "window":
            return window(adam)
        case "guard around window":
            return guard(window(adam).gradient_transformation())
        case "window around guard":
            return window(guard(adam))


class Trainer:
    """The state of a training, and its Monitor."""

    def __init__(self, life: Life, monitor: optwrap.Monitor) -> None:
        self.life = life
        self.monitor = monitor
        tx = optwrap.instrument(optimizer(life.recipe), monitor, emit=life.emit)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, optwrap.reading(state)

        params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
        self._step = step
        self.carry: Any = params, tx.init(params)
        self.taken = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            grads = gradients(self.life.seed, self.life.launch, self.taken + 1)
            *carry, words = self._step(*self.carry, grads)
            self.carry = tuple(carry)
            self.taken += 1
            if self.life.emit == "reading":
                self.monitor.observe(words)
            time.sleep(self.life.pace)

    def flush(self, limit: float) -> bool:
        """Whether the exporter gets everything within `limit` seconds. Each try of `flush` sends at once."""
        jax.block_until_ready(self.carry)
        deadline = time.monotonic() + limit
        while not self.monitor.flush(0.5):
            if time.monotonic() > deadline:
                return False
        return True

    def save(self, path: Path) -> None:
        if self.life.checkpoints == "orbax":
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, {"carry": self.carry, "taken": np.array(self.taken)})
        else:
            with path.open("wb") as file:
                np.savez(file, *jax.tree.leaves(self.carry), taken=self.taken)

    def restore(self, path: Path) -> None:
        if self.life.checkpoints == "orbax":
            like = {"carry": jax.eval_shape(lambda: self.carry), "taken": np.array(0)}
            with ocp.StandardCheckpointer() as checkpointer:
                saved = checkpointer.restore(path, like)
            self.carry, self.taken = saved["carry"], int(saved["taken"])
        else:
            with np.load(path) as saved:
                self.taken = int(saved["taken"])
                treedef: Any = jax.tree.structure(self.carry)
                leaves = [jnp.asarray(saved[f"arr_{n}"]) for n in range(treedef.num_leaves)]
                self.carry = jax.tree.unflatten(treedef, leaves)

    def fork(self, children: int) -> None:
        """Fork as a data loader does: some children end at once, some live on for a while."""
        for child in range(children):
            with warnings.catch_warnings(action="ignore"):  # of JAX, which the children do not use
                pid = os.fork()
            if pid == 0:
                assert self.monitor.flush(0)
                time.sleep(0.3 * child)
                os._exit(0)


def monitor_of(life: Life, clock: Callable[[], float]) -> optwrap.Monitor:
    """A Monitor with a clock that can be set back, known ids of incarnations and short timeouts."""
    incarnations = itertools.count()

    parts = Parts(
        environ={},
        # A short backoff, to save time.
        clock=Clock(time=clock, jitter=lambda: 0.02),
        transport=lambda settings: HttpTransport(settings.endpoint, answer_timeout=PATIENCE),
        source=lambda settings: InPod(settings, life),
        new_id=lambda: f"{life.name}.{os.getpid()}.{next(incarnations)}",
    )
    return optwrap.Monitor(
        life.run, life.endpoint, life.process, attempt=f"launch-{life.launch}", interval=INTERVAL, _parts=parts
    )


def main(connection: Connection, life: Life) -> None:
    """Follow commands until the command "end", a kill, or the end of the parent."""
    os.dup2(os.open(life.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), sys.stderr.fileno())
    jax.config.update("jax_compilation_cache_dir", str(life.directory / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    behind = life.behind

    def set_clock_back(seconds: float) -> None:
        nonlocal behind
        behind += seconds

    def fail() -> None:
        raise RuntimeError("the training failed, as planned")

    with monitor_of(life, lambda: time.time() - behind) as monitor:
        trainer = Trainer(life, monitor)
        if life.restored is not None:
            trainer.restore(life.restored)
        connection.send("made")
        commands: dict[str, Callable[..., Any]] = {
            "train": trainer.train,
            "flush": trainer.flush,
            "save": trainer.save,
            "roll back": trainer.restore,
            "fork": trainer.fork,
            "set clock back": set_clock_back,
            "handle SIGTERM": lambda: signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) and None,
            "fail": fail,
        }
        while True:
            try:
                command, *given = connection.recv()
            except EOFError:
                os._exit(1)
            if command == "end":
                break
            connection.send(commands[command](*given))
    connection.send("ended")
