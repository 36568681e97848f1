"""What a training step costs with optwrap's telemetry, against the same step without: ratios, from one run.

    python benchmarks/bench_step.py [--quick] [--only TEXT]

Every variant trains the same parameters with the same guarded adamw, through `apply_gradients`; some with adamw alone.
Parameters and state are donated. The variants take turns in one process, in an order that is drawn anew each round, a
few steps at a time up to `block_until_ready`. The figures are medians over the rounds, the ratios medians of each
round's own ratio. The first cases have leaves of 64 values on purpose: what is left is what the host pays for each
step, which is where telemetry costs. The other cases are models that compute something.

Some ratios are printed below each table: observation (the reading returned and observed, against the same instrumented
step that returns none), instrumentation (against the same optimizer, not instrumented) and end to end (reading
observed, against the step with neither guard nor telemetry).

Beside the time there is the CPU time of the whole process, which other programs disturb less, and which includes the
reporting threads; and XLA's own figures of the compiled step, which repeat exactly.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import optwrap
from benchmarks.timing import Times, cost, machine, quartiles, ratio, take_turns, temporary_bytes, wait
from examples.demo import model, optimizer
from examples.demo.data import Batch, Corpus
from examples.demo.exporter import Exporter, answer
from examples.demo.settings import FULL

MIN_ROUNDS: Final = 10
GUARDED: Final = "bare"
UNGUARDED: Final = "no guard"
INSTRUMENTED: Final = "instrumented, nothing returned"
OBSERVED: Final = "reading observed"
SCALARS: Final = "reading and three scalars observed"
UNGUARDED_INSTRUMENTED: Final = "no guard, instrumented, nothing returned"
WATCHED: Final = "no guard, reading observed"
TINY: Final = 64
"""Values in a leaf of the cases that measure the host's part."""
SMALL: Final = 256
"""Values in a leaf of the case beside them. XLA:CPU executes a program in a cheaper way if none of its arrays has more
than 512 bytes, 128 values of float32."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained."""

    title: str
    tx: optax.GradientTransformation
    """The optimizer in its guard."""
    unguarded: optax.GradientTransformation
    """The same without."""
    params: Callable[[], Any]
    gradients: Callable[[Any, Any], Any]
    """To be traced: parameters and `data` to gradients."""
    data: Any
    """What the step is given beside parameters and state; a large array must not become a constant of the program."""
    steps: int
    """In a row, for each variant in each round."""


def returned(reading: Any) -> Any:
    """Return the reading from the step."""
    return reading


def debugged(reading: Any) -> None:
    """Hand the reading to the host by JAX's usual callback."""
    jax.debug.callback(collections.deque(maxlen=1000).append, reading)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train a case."""

    title: str
    endpoint: str | None = None
    """Where a Monitor reports; None: no Monitor."""
    leave: Callable[[Any], Any] | None = None
    """What the traced step does with its reading; the step returns the result. None: nothing."""
    callback: bool = False
    """Whether the step is instrumented with emit="callback"."""
    instrumented: bool = True
    guarded: bool = True
    scalars: tuple[str, ...] = ()
    """Scalars that the step returns beside its reading, observed with it."""


class Trainer:
    """A variant of a case, compiled and warm.

    Args:
      case: what is trained.
      variant: how.
      monitor: gets the readings; from the loop, unless the variant has emit="callback".
    """

    def __init__(self, case: Case, variant: Variant, monitor: optwrap.Observer | None) -> None:
        self.variant = variant
        self.steps = 0
        self.times = Times()
        tx: Any = case.tx if variant.guarded else case.unguarded
        if variant.instrumented:
            tx = optwrap.instrument(tx, monitor, emit="callback" if variant.callback else "reading")

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, data: Any) -> Any:
            params, state = optwrap.apply_gradients(tx, case.gradients(params, data), state, params)
            left = None if variant.leave is None else variant.leave(optwrap.reading(state))
            first = jax.tree.leaves(params)[0].reshape(-1)[0].astype(jnp.float32)
            return params, state, left, {name: first + i for i, name in enumerate(variant.scalars)}

        self._step = step
        self._data = case.data
        self._observe = monitor.observe if monitor is not None and variant.leave is returned else None
        self._params = case.params()
        self._state = tx.init(self._params)
        compiled = step.lower(self._params, self._state, case.data).compile()
        self.figures = [
            f"{temporary_bytes(compiled) / 1024:.0f}",
            f"{cost(compiled, 'flops') / 1e6:.2f}",
            f"{cost(compiled, 'bytes accessed') / 1e6:.2f}",
        ]
        """XLA's: temporary KiB, millions of floating-point operations, MB accessed."""
        self.train(3)
        self.times.clear()

    @property
    def state_leaves(self) -> int:
        """Leaves of the optimizer's state."""
        return len(jax.tree.leaves(self._state))

    def train(self, steps: int) -> None:
        """Take `steps` steps and note what one of them took."""
        params, state = self._params, self._state
        with self.times.round(steps):
            for _ in range(steps):
                params, state, reading, scalars = self._step(params, state, self._data)
                if self._observe is not None:
                    self._observe(reading, **scalars)
            wait((params, state))
        self._params, self._state = params, state
        self.steps += steps


def guarded() -> optax.GradientTransformation:
    """The optimizer of every case but the demo's."""
    return optwrap.apply_if_finite(optax.adamw(1e-3), 10)


def leaves(count: int, steps: int, size: int = TINY) -> Case:
    """Parameters of `count` leaves of so many values each, with little to compute."""
    tx = guarded()

    def params() -> Any:
        return {f"layer_{i:03}": jnp.full(size, 1.0 + i, jnp.float32) for i in range(count)}

    return Case(
        f"{count} leaves of {size} values",
        tx,
        optax.adamw(1e-3),
        params,
        lambda p, _: jax.tree.map(lambda x: 0.01 * x, p),
        None,
        steps,
    )


def transformer(steps: int) -> Case:
    """The demo's model, optimizer and first batch."""
    corpus = Corpus(context=FULL.context, layers=FULL.layers)
    shape = model.Shape(len(corpus.vocabulary), FULL.context, FULL.layers, FULL.heads, FULL.width)
    batch = Batch(*map(jnp.asarray, corpus.decode(next(corpus.batches(FULL.batch, seed=0)))))

    def gradients(params: Any, batch: Any) -> Any:
        return jax.grad(model.loss, has_aux=True)(params, shape, batch, corpus.scale)[0]

    tx = optimizer.guarded(FULL)
    return Case(
        "the demo's transformer", tx, optimizer.bare(FULL), lambda: model.init(0, shape), gradients, batch, steps
    )


def perceptron(width: int, layers: int, steps: int, batch_size: int = 64) -> Case:
    """A multi-layer perceptron, forward and backward, over one batch."""
    keys = jax.random.split(jax.random.key(0), layers + 1)
    batch = jax.random.normal(keys[-1], (batch_size, width))

    def params() -> Any:
        return {
            f"layer_{i}": {"w": jax.random.normal(key, (width, width)) / width**0.5, "b": jnp.zeros(width)}
            for i, key in enumerate(keys[:-1])
        }

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        hidden = batch
        for layer in params.values():
            hidden = jnp.tanh(hidden @ layer["w"] + layer["b"])
        return jnp.mean((hidden - batch) ** 2)

    size = layers * width * (width + 1)
    shown = f"{size / 1e6:.1f} million" if size > 1e5 else f"{size}"
    return Case(
        f"a perceptron of {shown} parameters", guarded(), optax.adamw(1e-3), params, jax.grad(loss), batch, steps
    )


@contextlib.contextmanager
def nobody() -> Iterator[tuple[str, str]]:
    """Two endpoints: where nobody listens, and where connections are taken and never answered."""
    with socket.socket() as absent, socket.socket() as hanging:
        for sock in (absent, hanging):
            sock.bind(("127.0.0.1", 0))
        hanging.listen()
        yield tuple(f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in (absent, hanging))  # type: ignore[misc]  # two


def measure(case: Case, endpoint: str, seconds: float, run: str, console: Console) -> None:
    """Train every variant of `case` in turns for so long, print the table, and check that everything arrived."""
    with contextlib.ExitStack() as stack:
        absent, hanging = stack.enter_context(nobody())
        variants = [
            Variant(GUARDED, instrumented=False),
            Variant(UNGUARDED, instrumented=False, guarded=False),
            Variant(INSTRUMENTED),
            Variant(UNGUARDED_INSTRUMENTED, guarded=False),
            Variant(OBSERVED, endpoint, returned),
            Variant(SCALARS, endpoint, returned, scalars=("loss", "accuracy", "tokens")),
            Variant(WATCHED, endpoint, returned, guarded=False),
            Variant("reading observed, exporter absent", absent, returned),
            Variant("reading observed, exporter hangs", hanging, returned),
            Variant('emit="callback"', endpoint, callback=True),
            Variant("jax.debug.callback of the reading", None, debugged),
        ]
        runs = {f"{run}-{i}": variant for i, variant in enumerate(variants)}
        trainers = {}
        for name, variant in runs.items():
            monitor = None
            if variant.endpoint is not None:
                monitor = stack.enter_context(optwrap.Monitor(run=name, endpoint=variant.endpoint))
            trainers[name] = Trainer(case, variant, monitor)
        until = time.monotonic() + seconds
        take_turns(
            {name: functools.partial(trainer.train, case.steps) for name, trainer in trainers.items()},
            lambda rounds: rounds >= MIN_ROUNDS and time.monotonic() >= until,
        )
    show(case, list(trainers.values()), console)
    for name, trainer in trainers.items():
        if trainer.variant.endpoint == endpoint:
            check_arrived(endpoint, name, trainer, console)


def check_arrived(endpoint: str, run: str, trainer: Trainer, console: Console) -> None:
    """Exit if the exporter has not counted exactly the steps trained."""
    told = answer(endpoint, run)
    missing = told["dropped"]["steps"] + told["dropped"]["not_stored"]
    console.print(f"{trainer.variant.title}: {told['totals']['steps']} of {trainer.steps} steps arrived, "
                  f"{missing} step records were dropped", highlight=False)  # fmt: skip
    if told["totals"]["steps"] != trainer.steps:
        sys.exit(f"{trainer.variant.title}: the exporter's total is not the number of steps trained")


def show(case: Case, trainers: list[Trainer], console: Console) -> None:
    """The table of one case."""
    bare = trainers[0]
    table = Table(title=f"{case.title}; {len(bare.times.seconds)} rounds of {case.steps} steps", title_justify="left")
    table.add_column("step")
    for heading in (
        "state leaves",
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
        low, middle, high = quartiles(trainer.times.seconds, bare.times.seconds)
        table.add_row(
            trainer.variant.title,
            f"{trainer.state_leaves}",
            f"{trainer.times.ms:.3f}",
            f"{middle:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{trainer.times.cpu_ms:.3f}",
            f"{quartiles(trainer.times.cpu_seconds, bare.times.cpu_seconds)[1]:.2f}",
            *trainer.figures,
        )
    console.print(table)
    times = {trainer.variant.title: trainer.times for trainer in trainers}
    for what, ours, baseline in (
        ("observation", OBSERVED, INSTRUMENTED),
        ("three scalars", SCALARS, OBSERVED),
        ("instrumentation", INSTRUMENTED, GUARDED),
        ("instrumentation, without a guard", UNGUARDED_INSTRUMENTED, UNGUARDED),
        ("end to end", OBSERVED, UNGUARDED),
        ("end to end, without a guard", WATCHED, UNGUARDED),
    ):
        cpu = quartiles(times[ours].cpu_seconds, times[baseline].cpu_seconds)[1]
        console.print(
            f"{what}: {ratio(times[ours].seconds, times[baseline].seconds)}, CPU time {cpu:.3f}, "
            f"{times[ours].ms - times[baseline].ms:+.3f} ms: {ours} against {baseline}",
            highlight=False,
        )


def main() -> None:
    """Measure all cases against one exporter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two small cases, two seconds each: to see that it runs")
    parser.add_argument("--seconds", type=float, help="to measure each case for (15; quick: 2)")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases with this in their title")
    options = parser.parse_args()
    seconds = options.seconds or (2.0 if options.quick else 15.0)
    if options.quick:
        cases = [leaves(10, 20), leaves(50, 20)]
    else:
        cases = [leaves(count, 20) for count in (3, 10, 50, 200, 600)]
        cases += [leaves(count, 20, SMALL) for count in (10, 200)]
        cases += [perceptron(16, 2, 20), perceptron(512, 4, 10), perceptron(1024, 10, 3), transformer(5)]
    console = Console(width=150)
    console.print(machine(), highlight=False)
    with tempfile.TemporaryDirectory() as directory, Exporter("127.0.0.1:0", Path(directory)) as exporter:
        for number, case in enumerate(case for case in cases if options.only in case.title):
            measure(case, exporter.endpoint, seconds, f"case-{number}", console)


if __name__ == "__main__":
    main()
