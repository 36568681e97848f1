"""Measures the cost of optwrap's telemetry: the time of a training step with it, as a ratio to the step without.

    python benchmarks/bench_step.py [--quick]

All variants train the same parameters through `apply_gradients`, with the same guarded adamw; one has no guard. The
variants take turns in one process, a few steps at a time up to `block_until_ready`, in a random order in each round.
The times are medians over the rounds, and the ratios are medians of the ratios in each round. The first cases have tiny
parameters, so that they measure the host's work for each step, where telemetry costs most. The other cases are models
that compute something.

Three ratios are printed below each table. Observation: a step whose reading is returned and observed, against the same
instrumented step that returns none. Instrumentation: against the same wrapper without it. End to end: wrapper and
telemetry, and telemetry alone, against the step with neither.

The tables also have the processor time of the whole process, which other programs disturb less, and which includes the
reporting threads; and XLA's figures for the compiled step, which are the same in every run.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import optwrap
from examples.demo import model, optimizer
from examples.demo.data import Batch, Corpus
from examples.demo.exporter import Exporter, answer
from examples.demo.settings import FULL

MIN_ROUNDS: Final = 10
GUARDED: Final = "bare"
UNGUARDED: Final = "no guard"
INSTRUMENTED: Final = "instrumented, nothing returned"
OBSERVED: Final = "reading observed"
WATCHED: Final = "no guard, reading observed"
TINY: Final = 64
"""Values per leaf in the cases that measure the host's work."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with its optimizer and data."""

    title: str
    tx: optax.GradientTransformation
    """The optimizer in its guard."""
    unguarded: optax.GradientTransformation
    """The same without."""
    params: Callable[[], Any]
    gradients: Callable[[Any], Any]
    """To be traced: parameters to gradients."""
    steps: int
    """In a row, for each variant in each round."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train a case."""

    title: str
    endpoint: str | None = None
    """Where a Monitor reports; None: no Monitor."""
    emit: str | None = None
    """How a reading leaves the step: "reading", "callback", "debug.callback"; None: it does not."""
    instrumented: bool = True
    guarded: bool = True


class Trainer:
    """A variant of a case, compiled and warmed up."""

    def __init__(self, case: Case, variant: Variant, run: str, stack: contextlib.ExitStack) -> None:
        self.variant = variant
        self.run = run
        self.steps = 0
        self.seconds: list[float] = []
        """Of a step, by round."""
        self.cpu_seconds: list[float] = []
        """Of all threads of the process, likewise."""
        monitor = None
        if variant.endpoint is not None:
            monitor = stack.enter_context(optwrap.Monitor(run=run, endpoint=variant.endpoint))
        tx: Any = case.tx if variant.guarded else case.unguarded
        if variant.instrumented:
            emit = "callback" if variant.emit == "callback" else "reading"
            tx = optwrap.instrument(tx, monitor, emit=emit)  # type: ignore[arg-type]
        heard: collections.deque[Any] = collections.deque(maxlen=1000)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any) -> Any:
            params, state = optwrap.apply_gradients(tx, case.gradients(params), state, params)
            reading = None
            if variant.emit == "reading":
                reading = optwrap.reading(state)
            elif variant.emit == "debug.callback":
                jax.debug.callback(heard.append, optwrap.reading(state))
            return params, state, reading

        self._step = step
        self._monitor = monitor
        self._observe = monitor.observe if monitor is not None and variant.emit == "reading" else None
        self._params = case.params()
        self._state = tx.init(self._params)
        compiled = step.lower(self._params, self._state).compile()
        memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
        # Not every backend has these figures; "-" then.
        self.figures = [
            "-" if memory is None else f"{memory.temp_size_in_bytes / 1024:.0f}",
            "-" if cost is None else f"{cost['flops'] / 1e6:.2f}",
            "-" if cost is None else f"{cost['bytes accessed'] / 1e6:.2f}",
        ]
        """XLA's: temporary KiB, millions of floating-point operations, MB accessed."""
        self.train(3)
        self.seconds.clear()
        self.cpu_seconds.clear()

    @property
    def state_leaves(self) -> int:
        """Leaves of the optimizer's state."""
        return len(jax.tree.leaves(self._state))

    def train(self, steps: int) -> None:
        """Take `steps` steps, and record the mean time of one."""
        params, state = self._params, self._state
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(steps):
            params, state, reading = self._step(params, state)
            if self._observe is not None:
                self._observe(reading)
        jax.block_until_ready((params, state))  # type: ignore[no-untyped-call]  # jax gives it no types
        self.seconds.append((time.perf_counter() - began) / steps)
        self.cpu_seconds.append((time.process_time() - cpu_began) / steps)
        self._params, self._state = params, state
        self.steps += steps


def guarded() -> optax.GradientTransformation:
    """The optimizer of every case but the demo's."""
    return optwrap.apply_if_finite(optax.adamw(1e-3), 10)


def leaves(count: int, values: int, steps: int) -> Case:
    """Adam with weight decay whose state, guard included, has `count` leaves, each of `values` values or a scalar."""
    parameters = (
        count - 4
    ) // 2  # mu and nu of each leaf, the count of adamw, and the three scalars of apply_if_finite
    tx = guarded()

    def params() -> Any:
        return {f"layer_{i:03}": jnp.full(values, 1.0 + i) for i in range(parameters)}

    assert len(jax.tree.leaves(tx.init(params()))) == count
    size = "" if values == TINY else f", {parameters * values / 1e6:.1f} million parameters"
    return Case(
        f"{count} state leaves{size}",
        tx,
        optax.adamw(1e-3),
        params,
        lambda p: jax.tree.map(lambda x: 0.01 * x, p),
        steps,
    )


def transformer(steps: int) -> Case:
    """The demo's model, optimizer and first batch."""
    corpus = Corpus(context=FULL.context, layers=FULL.layers)
    shape = model.Shape(len(corpus.vocabulary), FULL.context, FULL.layers, FULL.heads, FULL.width)
    batch = Batch(*map(jnp.asarray, corpus.decode(next(corpus.batches(FULL.batch, seed=0)))))

    def gradients(params: Any) -> Any:
        return jax.grad(model.loss, has_aux=True)(params, shape, batch, corpus.scale)[0]

    tx = optimizer.guarded(FULL)
    return Case("the demo's transformer", tx, optimizer.bare(FULL), lambda: model.init(0, shape), gradients, steps)


def perceptron(width: int, layers: int, steps: int) -> Case:
    """A multi-layer perceptron, forward and backward, over a batch of 64."""
    keys = jax.random.split(jax.random.key(0), layers + 1)
    batch = jax.random.normal(keys[-1], (64, width))

    def params() -> Any:
        return {
            f"layer_{i}": {"w": jax.random.normal(key, (width, width)) / width**0.5, "b": jnp.zeros(width)}
            for i, key in enumerate(keys[:-1])
        }

    def loss(params: Any) -> jax.Array:
        hidden = batch
        for layer in params.values():
            hidden = jnp.tanh(hidden @ layer["w"] + layer["b"])
        return jnp.mean((hidden - batch) ** 2)

    size = layers * width * (width + 1)
    shown = f"{size / 1e6:.1f} million" if size > 1e5 else f"{size}"
    return Case(f"a perceptron of {shown} parameters", guarded(), optax.adamw(1e-3), params, jax.grad(loss), steps)


@contextlib.contextmanager
def nobody() -> Iterator[tuple[str, str]]:
    """Two endpoints: a port on which nobody listens, and one that accepts connections and never answers."""
    with socket.socket() as absent, socket.socket() as hanging:
        for sock in (absent, hanging):
            sock.bind(("127.0.0.1", 0))
        hanging.listen()
        yield tuple(f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in (absent, hanging))  # type: ignore[misc]  # two


def measure(case: Case, endpoint: str, seconds: float, run: str, console: Console) -> None:
    """Train every variant of `case` in turns for some seconds, print the table, and check that everything arrived."""
    with contextlib.ExitStack() as stack:
        absent, hanging = stack.enter_context(nobody())
        variants = [
            Variant(GUARDED, instrumented=False),
            Variant(UNGUARDED, instrumented=False, guarded=False),
            Variant(INSTRUMENTED),
            Variant(OBSERVED, endpoint, "reading"),
            Variant(WATCHED, endpoint, "reading", guarded=False),
            Variant("reading observed, exporter absent", absent, "reading"),
            Variant("reading observed, exporter hangs", hanging, "reading"),
            Variant('emit="callback"', endpoint, "callback"),
            Variant("jax.debug.callback of the reading", None, "debug.callback"),
        ]
        trainers = [Trainer(case, variant, f"{run}-{i}", stack) for i, variant in enumerate(variants)]
        order = random.Random(0)
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(trainers[0].seconds) < MIN_ROUNDS:
            for trainer in order.sample(trainers, len(trainers)):
                trainer.train(case.steps)
    show(case, trainers, console)
    for trainer in trainers:
        if trainer.variant.endpoint == endpoint:
            told = answer(endpoint, trainer.run)
            missing = told["dropped"]["steps"] + told["dropped"]["not_stored"]
            console.print(f"{trainer.variant.title}: {told['totals']['steps']} of {trainer.steps} steps arrived, "
                          f"{missing} step records were dropped")  # fmt: skip
            if told["totals"]["steps"] != trainer.steps:
                sys.exit("bench_step: the exporter's total is not the number of steps trained")


def show(case: Case, trainers: list[Trainer], console: Console) -> None:
    """The table of one case."""
    bare = trainers[0]
    table = Table(title=f"{case.title}; {len(bare.seconds)} rounds of {case.steps} steps", title_justify="left")
    table.add_column("step")
    for heading in (
        "leaves",
        "ms",
        "ratio",
        "its quartiles",
        "CPU ms",
        "CPU ratio",
        "temp KiB",
        "MFLOP",
        "MB accessed",
    ):
        table.add_column(heading, justify="right")
    for trainer in trainers:
        low, middle, high = ratios(trainer.seconds, bare.seconds)
        table.add_row(
            trainer.variant.title,
            f"{trainer.state_leaves}",
            f"{statistics.median(trainer.seconds) * 1e3:.3f}",
            f"{middle:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{statistics.median(trainer.cpu_seconds) * 1e3:.3f}",
            f"{ratios(trainer.cpu_seconds, bare.cpu_seconds)[1]:.2f}",
            *trainer.figures,
        )
    console.print(table)
    by_title = {trainer.variant.title: trainer for trainer in trainers}
    for what, ours, baseline in (
        ("observation", OBSERVED, INSTRUMENTED),
        ("instrumentation", INSTRUMENTED, GUARDED),
        ("end to end", OBSERVED, UNGUARDED),
        ("end to end, without a guard", WATCHED, UNGUARDED),
    ):
        low, middle, high = ratios(by_title[ours].seconds, by_title[baseline].seconds)
        cpu = ratios(by_title[ours].cpu_seconds, by_title[baseline].cpu_seconds)[1]
        more = statistics.median(by_title[ours].seconds) - statistics.median(by_title[baseline].seconds)
        console.print(
            f"{what}: {middle:.3f} ({low:.3f} to {high:.3f}), processor time {cpu:.3f}, {more * 1e3:+.3f} ms: "
            f"{ours} against {baseline}",
            highlight=False,
        )


def ratios(ours: list[float], bare: list[float]) -> list[float]:
    """Quartiles of the ratios in each round. Other load on the machine slows both times of a round alike."""
    return statistics.quantiles((np.array(ours) / np.array(bare)).tolist(), n=4)


def main() -> None:
    """Measure all cases against one exporter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two small cases, two seconds each: to see that it runs")
    parser.add_argument("--seconds", type=float, help="to measure each case for (15; quick: 2)")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases with this in their title")
    options = parser.parse_args()
    seconds = options.seconds or (2.0 if options.quick else 15.0)
    if options.quick:
        cases = [leaves(10, TINY, 20), leaves(50, TINY, 20)]
    else:
        cases = [leaves(count, TINY, 20) for count in (10, 50, 200, 600)]
        cases += [perceptron(16, 2, 20), perceptron(512, 4, 10), perceptron(1024, 10, 3), transformer(5)]
    console = Console(width=150)
    device = jax.devices()[0]
    console.print(
        f"jax {jax.__version__}, optax {optax.__version__}, optwrap {version('optwrap')}, {device.platform} "
        f"({device.device_kind}), {os.cpu_count()} CPU cores",
        highlight=False,
    )
    with tempfile.TemporaryDirectory() as directory, Exporter("127.0.0.1:0", Path(directory)) as exporter:
        for number, case in enumerate(case for case in cases if options.only in case.title):
            measure(case, exporter.endpoint, seconds, f"case-{number}", console)


if __name__ == "__main__":
    main()
