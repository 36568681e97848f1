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
import collections
import contextlib
import dataclasses
import functools
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich.console import Console
from rich.table import Table

import optwrap
from benchmarks import bench_step, bench_wrappers
from benchmarks.bench_step import GUARDED, INSTRUMENTED, OBSERVED, Variant
from benchmarks.timing import machine, ratio, spread, take_turns, wait
from examples.demo.exporter import Exporter, answer

EVERY_K: Final = 4
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


@dataclasses.dataclass(frozen=True)
class Target:
    """Where the Monitors report."""

    address: str
    exporter: bool
    """Whether an exporter listens there, whose totals are compared."""


# --- totals ----------------------------------------------------------------------------------------------------------


class Recorder:
    """An observer that keeps every reading, and passes it on to a Monitor."""

    def __init__(self, monitor: optwrap.Monitor) -> None:
        self._monitor = monitor
        self._layout: optwrap.Layout | None = None
        self._readings: list[Any] = []

    def describe(self, layout: optwrap.Layout, *, stepping: bool = False) -> None:
        """Keep the parameters' names."""
        self._layout = layout
        self._monitor.describe(layout, stepping=stepping)

    def observe(self, reading: Any) -> None:
        """Keep a reading."""
        self._readings.append(reading)
        self._monitor.observe(reading)

    @property
    def readings(self) -> list[optwrap.Reading]:
        """What was observed, in order; a reading that was delivered twice is there once."""
        words = [np.asarray(reading) for reading in self._readings]
        first = words[:1] + [now for before, now in itertools.pairwise(words) if not np.array_equal(before, now)]
        return [optwrap.unpack(each, self._layout) for each in first]


def check_totals(target: Target, steps: int, console: Console) -> None:
    """Train with bad gradients; exit unless readings, callbacks and the exporter's totals are exactly the truth.

    Args:
      target: where the Monitors report.
      steps: how many to train.
      console: gets the table.
    """
    params = {f"w{i}": jnp.ones(64) for i in range(4)}
    good = jax.tree.map(lambda leaf: 0.01 * leaf, params)
    draw = random.Random(0)
    faults = [draw.choice(list(params)) if draw.random() < 0.3 else None for _ in range(steps)]
    outcomes: list[str] = []
    for fault in faults:
        taken = sum(outcome != "skipped_not_finite" for outcome in outcomes)
        good_outcome = "applied" if taken % EVERY_K == EVERY_K - 1 else "accumulated"
        outcomes.append(good_outcome if fault is None else "skipped_not_finite")
    by_outcome = collections.Counter(outcomes)
    by_parameter = collections.Counter(fault for fault in faults if fault is not None)

    bad = by_parameter.total()
    table = Table(title=f"{steps} steps, {bad} of them with a NaN gradient", title_justify="left")
    for heading in ("totals from", "steps", "applied", "accumulated", "skipped", "compared with the truth"):
        table.add_column(heading)

    def compare(title: str, told: Any, true: Any, totals: Mapping[str, int]) -> None:
        if told != true:
            sys.exit(f"gpu: {title}: got {told}, and the truth is {true}")
        counts = (totals[name] for name in ("applied", "accumulated", "skipped_not_finite"))
        table.add_row(title, str(sum(totals.values())), *map(str, counts), "exact")

    for emit in ("reading", "callback"):
        run = f"totals-{emit}"
        with optwrap.Monitor(run=run, endpoint=target.address) as monitor:
            recorder = Recorder(monitor)
            train_with_faults(emit, recorder, params, good, faults)
        readings = recorder.readings
        totals = readings[-1].totals
        told = [reading.step for reading in readings], [reading.outcome for reading in readings]
        compare(f"{emit}s, step by step", told, (list(range(1, steps + 1)), outcomes), totals.outcomes)
        counted = totals.steps, totals.not_finite_steps, dict(totals.parameters)
        compare(f"{emit}s, the last one's totals", (*counted, +collections.Counter(totals.outcomes)),
                (steps, bad, dict(by_parameter), by_outcome), totals.outcomes)  # fmt: skip
        if target.exporter:
            stored = answer(target.address, run)["totals"]
            compare(f"the exporter, from {emit}s",
                    (stored["steps"], stored["not_finite_steps"], +collections.Counter(stored["outcomes"])),
                    (steps, bad, by_outcome), stored["outcomes"])  # fmt: skip
    console.print(table)


def train_with_faults(emit: Any, recorder: Recorder, params: Any, good: Any, faults: Sequence[str | None]) -> None:
    """One step for each of `faults`: the parameter whose gradient has a NaN, or None."""
    window = optwrap.MultiSteps(optax.adamw(1e-3), EVERY_K)
    tx = optwrap.instrument(optwrap.apply_if_finite(window, 2**30), recorder, emit=emit)
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any, gradients: Any) -> Any:
        params, state = optwrap.apply_gradients(tx, gradients, state, params)
        return params, state, optwrap.reading(state)

    for fault in faults:
        gradients = good if fault is None else {**good, fault: good[fault].at[7].set(jnp.nan)}
        params, state, reading = step(params, state, gradients)
        if emit == "reading":
            recorder.observe(reading)
    wait(state)


# --- readings and callbacks ------------------------------------------------------------------------------------------


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


# --- wrappers --------------------------------------------------------------------------------------------------------


FORMS: Final = ("bare", "optax", "update", "apply_gradients")
STEP: Final = ("optwrap._core.cond", "optwrap._wrappers.lookahead")
"""Modules whose condition is whether the wrapped optimizer's step, or a synchronisation, is taken."""
EVERYTHING: Final = ("optwrap.",)
"""And those that count only where something is not finite."""
SELECTS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "update, step selected": ("update", STEP),
    "apply_gradients, step selected": ("apply_gradients", STEP),
    "apply_gradients, all selected": ("apply_gradients", EVERYTHING),
}
"""Forms without some conditions: the form that has them, and the modules in which they are replaced."""


@contextlib.contextmanager
def selecting(modules: tuple[str, ...]) -> Iterator[list[str]]:
    """Where a module's name begins with one of `modules`, its steps traced in the block compute both branches.

    A loop that runs at most once runs always: the body of optwrap's selects by itself.

    Yields:
      The modules whose conditions were replaced.
    """
    replaced: list[str] = []
    usual_cond, usual_while = lax.cond, lax.while_loop

    def here(function: Callable[..., Any]) -> bool:
        module = getattr(function, "__module__", None) or ""
        if module.startswith(modules):
            replaced.append(module)
            return True
        return False

    def cond(predicate: Any, true_fun: Any, false_fun: Any, *operands: Any, **options: Any) -> Any:
        if not here(true_fun):
            return usual_cond(predicate, true_fun, false_fun, *operands, **options)
        both = true_fun(*operands), false_fun(*operands)
        return jax.tree.map(functools.partial(jnp.where, predicate), *both)

    def while_loop(cond_fun: Any, body_fun: Any, init_val: Any) -> Any:
        return body_fun(init_val) if here(body_fun) else usual_while(cond_fun, body_fun, init_val)

    with mock.patch.object(lax, "cond", cond), mock.patch.object(lax, "while_loop", while_loop):
        yield replaced


def conditions(case: bench_wrappers.Case, form: str, modules: tuple[str, ...]) -> set[str]:
    """Those of `modules` with a condition in one form of a case."""
    tiny = dataclasses.replace(case, leaves=4, values=32)
    tx = bench_wrappers.optimizer(tiny, form)
    params = bench_wrappers.parameters(tiny, form)
    with selecting(modules) as replaced:
        step = bench_wrappers.step_of(form, tx)
        jax.eval_shape(step, params, tx.init(params), bench_wrappers.gradients_of(tiny, form))
    return set(replaced)


def wrapper(case: bench_wrappers.Case, rounds: int) -> dict[str, bench_wrappers.Trainer]:
    """Every form of a case, after its rounds; forms without a condition only if there is one."""
    bare, others = (bench_wrappers.gradients_of(case, form) for form in ("bare", "optax"))
    trainers = {form: bench_wrappers.Trainer(case, form, bare if form == "bare" else others) for form in FORMS}
    known: dict[str, set[str]] = {}
    for title, (form, modules) in SELECTS.items():
        found = conditions(case, form, modules)
        if found and found != known.get(form):
            known[form] = found
            with selecting(modules):
                trainers[title] = bench_wrappers.Trainer(case, form, others)
    take_turns({form: trainer.window for form, trainer in trainers.items()}, lambda done: done >= rounds)
    return trainers


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
        table = wrapper_table(f"{name}: {values:,} parameters in {leaves} leaves", wrapper(case, plan.rounds))
        longest = max(longest, time.monotonic() - began)
        console.print(table)


def wrapper_table(title: str, trainers: Mapping[str, bench_wrappers.Trainer]) -> Table:
    """The table of one wrapper."""
    table = Table(title=title, title_justify="left")
    table.add_column("form", min_width=max(map(len, SELECTS)))
    for heading in ("ms", "of optax", "of bare", "of the same with conditions", "CPU ms", "temporary MiB"):
        table.add_column(heading, justify="right")
    for form, trainer in trainers.items():

        def of(baseline: str, ours: list[float] = trainer.times.seconds) -> str:
            return ratio(ours, trainers[baseline].times.seconds)

        table.add_row(
            form,
            f"{trainer.times.ms:.3f}",
            "" if form in ("bare", "optax") else of("optax"),
            "" if form == "bare" else of("bare"),
            of(SELECTS[form][0]) if form in SELECTS else "",
            f"{trainer.times.cpu_ms:.3f}",
            f"{trainer.temporary:.1f}",
        )
    return table


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
