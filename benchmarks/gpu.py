"""What optwrap costs on the device that JAX finds, meant for a GPU: exact totals first, then ratios, from one run.

    python -m benchmarks.gpu [--small] [--no-exporter] [--trace DIRECTORY]

1. Totals. A training with NaN gradients reports by readings and by callbacks; every step's outcome and all totals must
   be exactly those that the list of bad steps gives. Otherwise the program exits with status 1.
2. The step with its reading observed, and with emit="callback", against the same step bare: once with tiny leaves,
   where the host's part shows, and once with a model whose bare step takes at least 20 ms.
3. Where the callback's time goes, from the same rounds: each line below those tables is a difference of two of the
   table's steps.
4. Every wrapper against optax's, by `update` and by `apply_gradients`, and against itself without a condition: both
   branches are computed and one is selected.

The forms take turns in one process, in an order that is drawn anew each round. Figures are medians over the rounds,
with quartiles; ratios and differences are those of each round. It ends within 8 minutes: wrappers for which no time is
left are named. With --small it takes seconds on a CPU, which shows that it works and nothing else. With --no-exporter
it needs jax, optax, rich and httpx, and none of the exporter's packages.
"""

import argparse
import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import optwrap
from benchmarks import bench_step, bench_wrappers, selects
from benchmarks.bench_step import GUARDED, INSTRUMENTED, OBSERVED, Variant
from benchmarks.timing import machine, ratio, spread, take_turns
from benchmarks.totals import Target, check_totals
from examples.demo.exporter import Exporter

WAITED: Final = "reading returned and waited for"
ONE_WORD: Final = "pure_callback of one word, empty"
WHOLE: Final = "pure_callback of the reading, empty"
UNHEARD: Final = 'emit="callback", observer empty'
CALLBACK: Final = 'emit="callback", Monitor'
DEBUG: Final = "jax.debug.callback of the reading"
DIFFERENCES: Final = (
    ("counting in the step", INSTRUMENTED, GUARDED),
    ("the host's call, and waiting for it", ONE_WORD, INSTRUMENTED),
    ("copying the reading to the host", WHOLE, ONE_WORD),
    ("optwrap's Python around observe", UNHEARD, WHOLE),
    ("Monitor.observe, and its thread", CALLBACK, UNHEARD),
    ("the callback in all", CALLBACK, INSTRUMENTED),
    ("jax.debug.callback in all", DEBUG, INSTRUMENTED),
    ("a loop that waits for each step", WAITED, INSTRUMENTED),
)
"""What takes time, the step that has it, and the step that lacks it."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured."""

    limit: float
    """Seconds for everything."""
    checked: int
    """Steps whose outcomes are checked."""
    tiny: int
    """Leaves of the tiny step's parameters."""
    shortest: float
    """Milliseconds that the bare step of the larger model takes at least."""
    width: int
    layers: int
    seconds: float
    """For the rounds of each step with a callback."""
    values: int
    """Parameters under the wrappers."""
    leaves: int
    """Their leaves at most: XLA takes long to compile many for a GPU."""
    rounds: int
    """Of each wrapper."""
    wrappers: Sequence[str]
    """Names of `bench_wrappers.CASES`."""


FULL: Final = Plan(
    limit=450.0,  # of 480: the last wrapper may take longer than those before it
    checked=400,
    tiny=10,
    shortest=20.0,
    width=2048,
    layers=8,
    seconds=20.0,
    values=2**26,
    leaves=256,
    rounds=15,
    wrappers=tuple(bench_wrappers.CASES),
)
SMALL: Final = Plan(
    limit=450.0,
    checked=40,
    tiny=2,
    shortest=0.2,
    width=32,
    layers=1,
    seconds=0.0,
    values=2**12,
    leaves=2,
    rounds=2,
    wrappers=("apply_if_finite", "MultiSteps, skip_not_finite", "masked", "lookahead", "flatten"),
)


class Empty:
    """An observer that does nothing."""

    def describe(self, layout: optwrap.Layout, *, stepping: bool = False) -> None:
        """Do nothing."""

    def observe(self, reading: Any) -> None:
        """Do nothing."""


class Waiting(Empty):
    """An observer that waits for the device, as a loop does that prints its loss after each step."""

    def observe(self, reading: Any) -> None:
        """Copy the reading to the host."""
        np.asarray(reading)


class Timed:
    """A Monitor, and how long each call of its `observe` took, as the callback sees it."""

    def __init__(self, monitor: optwrap.Monitor) -> None:
        self.describe = monitor.describe
        self._monitor = monitor
        self.seconds: list[float] = []

    def observe(self, reading: Any) -> None:
        """Pass a reading on."""
        began = time.perf_counter()
        self._monitor.observe(reading)
        self.seconds.append(time.perf_counter() - began)


def empty_callback(words: jax.Array) -> jax.Array:
    """Call a function of the host that does nothing with `words`; the step returns its result, so that it is called."""
    zero = np.zeros([], np.uint32)
    called: jax.Array = jax.pure_callback(lambda _: zero, zero, words)
    return called


def long_step(plan: Plan, console: Console) -> bench_step.Case:
    """A perceptron with a batch so large that the bare step takes `plan.shortest` ms."""
    batch = 64
    while True:
        case = bench_step.perceptron(plan.width, plan.layers, 5, batch)
        trainer = bench_step.Trainer(case, Variant(GUARDED, instrumented=False), None)
        for _ in range(3):
            trainer.train(case.steps)
        console.print(f"{case.title}, batch of {batch}: {trainer.times.ms:.2f} ms a step, bare", highlight=False)
        if trainer.times.ms >= plan.shortest:
            return dataclasses.replace(case, title=f"{case.title}, batch of {batch}")
        batch *= min(max(round(1.3 * plan.shortest / trainer.times.ms), 2), 16)


def step_and_callback(
    case: bench_step.Case, run: str, target: Target, seconds: float, console: Console, *, trace: str | None = None
) -> None:
    """Measure every way in which a reading can leave the step; print the table and where the time goes.

    Args:
      case: what is trained.
      run: begins the names of the Monitors' runs.
      target: where the Monitors report.
      seconds: how long to measure.
      console: gets the tables.
      trace: where JAX's profile of five steps with a callback is written; None for none.
    """
    with contextlib.ExitStack() as stack:
        returning = stack.enter_context(optwrap.Monitor(run=f"{run}-reading", endpoint=target.address))
        called = Timed(stack.enter_context(optwrap.Monitor(run=f"{run}-callback", endpoint=target.address)))
        observers: list[tuple[Variant, optwrap.Observer | None]] = [
            (Variant(GUARDED, instrumented=False), None),
            (Variant(INSTRUMENTED), None),
            (Variant(OBSERVED, leave=bench_step.returned), returning),
            (Variant(WAITED, leave=bench_step.returned), Waiting()),
            (Variant(ONE_WORD, leave=lambda reading: empty_callback(reading[0])), None),
            (Variant(WHOLE, leave=empty_callback), None),
            (Variant(UNHEARD, callback=True), Empty()),
            (Variant(CALLBACK, callback=True), called),
            (Variant(DEBUG, leave=bench_step.debugged), None),
        ]
        trainers = {variant.title: bench_step.Trainer(case, variant, observer) for variant, observer in observers}
        if trace is not None:
            with jax.profiler.trace(trace):
                trainers[CALLBACK].train(5)
            trainers[CALLBACK].times.clear()
        called.seconds.clear()
        until = time.monotonic() + seconds
        take_turns(
            {title: functools.partial(trainer.train, case.steps) for title, trainer in trainers.items()},
            lambda rounds: rounds >= 2 and time.monotonic() >= until,
        )
    times = {title: trainer.times for title, trainer in trainers.items()}
    bare = times[GUARDED]
    rounds = len(bare.seconds)
    table = Table(title=f"{case.title}; {rounds} rounds of {case.steps} steps", title_justify="left")
    table.add_column("step")
    for heading in ("ms", "of bare", "CPU ms", "CPU, of bare"):
        table.add_column(heading, justify="right")
    for title, each in times.items():
        table.add_row(
            title,
            f"{each.ms:.3f}",
            ratio(each.seconds, bare.seconds),
            f"{each.cpu_ms:.3f}",
            ratio(each.cpu_seconds, bare.cpu_seconds),
        )
    console.print(table)
    table = Table(
        title="where the callback's time goes: ms a step, medians of the rounds' differences", title_justify="left"
    )
    for heading in ("part", "step that has it", "step that lacks it"):
        table.add_column(heading)
    for heading in ("ms", "CPU ms"):
        table.add_column(heading, justify="right")
    for part, having, lacking in DIFFERENCES:
        table.add_row(
            part,
            having,
            lacking,
            difference(times[having].seconds, times[lacking].seconds),
            difference(times[having].cpu_seconds, times[lacking].cpu_seconds),
        )
    low, middle, high = spread([1e3 * each for each in called.seconds])
    table.add_row("inside Monitor.observe", CALLBACK, "", f"{middle:.4f} ({low:.4f} to {high:.4f})", "")
    console.print(table)
    if target.exporter:
        for title, name in ((OBSERVED, "reading"), (CALLBACK, "callback")):
            bench_step.check_arrived(target.address, f"{run}-{name}", trainers[title], console)


def difference(ours: list[float], baseline: list[float]) -> str:
    """The median of the rounds' differences in ms, with the quartiles."""
    low, middle, high = spread([1e3 * (a - b) for a, b in zip(ours, baseline, strict=True)])
    return f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"


def wrappers(plan: Plan, ends: float, console: Console) -> None:
    """Measure every wrapper for which there is time, and print a table of each.

    Args:
      plan: how much is measured.
      ends: when to be done, by `time.monotonic()`.
      console: gets the tables.
    """
    console.print(
        f"wrappers: a step of adamw, float32, donated, k = {bench_wrappers.K}; {plan.rounds} rounds of "
        f"{bench_wrappers.K} steps",
        highlight=False,
    )
    longest = 0.0
    for name in plan.wrappers:
        full = bench_wrappers.CASES[name]
        began = time.monotonic()
        if began + longest > ends:
            console.print(f"no time is left for: {name}", highlight=False)
            continue
        leaves = min(full.leaves, plan.leaves)
        values = plan.values if full.values == bench_wrappers.VALUES else 1000 * leaves
        case = dataclasses.replace(full, leaves=leaves, values=values)
        table = selects.table(f"{name}: {values:,} parameters in {leaves} leaves", selects.measured(case, plan.rounds))
        longest = max(longest, time.monotonic() - began)
        console.print(table)


def main() -> None:
    """Check, measure and print."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes and few rounds: shows that it works")
    parser.add_argument("--no-exporter", action="store_true", help="Monitors report to where nobody listens")
    parser.add_argument("--trace", metavar="DIRECTORY", help="also write JAX's profile of five steps with a callback")
    options = parser.parse_args()
    plan = SMALL if options.small else FULL
    console = Console(width=170)
    console.print(machine(), highlight=False)
    with contextlib.ExitStack() as stack:
        if options.no_exporter:
            target = Target(stack.enter_context(bench_step.nobody())[0], exporter=False)
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            target = Target(stack.enter_context(Exporter("127.0.0.1:0", Path(directory))).endpoint, exporter=True)
        check_totals(target, plan.checked, console)
        step_and_callback(bench_step.leaves(plan.tiny, 20), "tiny", target, plan.seconds, console)
        case = long_step(plan, console)
        step_and_callback(case, "long", target, plan.seconds, console, trace=options.trace)
    wrappers(plan, began + plan.limit, console)
    console.print(f"{time.monotonic() - began:.0f} s in all; {machine()}", highlight=False)


if __name__ == "__main__":
    main()
