"""What it costs to trace, lower and compile a step with many leaves, against bare adamw: CPU time, from one process.

    python benchmarks/bench_compile.py [--leaves N] [--size N] [--rounds N] [--only TEXT]

The step takes gradients, and donates parameters and state. In each round every form is traced, lowered and compiled
anew, with JAX's caches cleared, in an order that is drawn anew. Times are CPU time of the whole process, all of XLA's
threads included, which other programs disturb less than wall time; they are medians over the rounds. A ratio is the
median of each round's ratio to bare adamw in the same round. Nothing is run, and no array is made. Beside the times
stands what XLA allots for temporary values, which repeats exactly.
"""

import argparse
import dataclasses
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import optwrap
from benchmarks.timing import MIB, machine, ratio, temporary_bytes

Step = Callable[[Any, Any, Any], Any]

BARE: Final = "adamw, bare"
K: Final = 8


def updating(tx: Any) -> Step:
    """A step by `update` and `apply_updates`."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def fused(tx: Any) -> Step:
    """A step by `apply_gradients`."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        return optwrap.apply_gradients(tx, gradients, state, params)

    return step


def reading(tx: Any) -> Step:
    """A step by `apply_gradients` that returns its reading."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        params, state = optwrap.apply_gradients(tx, gradients, state, params)
        return params, state, optwrap.reading(state)

    return step


def multi_steps(library: Any) -> Any:
    """A library's MultiSteps that skips non-finite mini-steps, around adamw."""
    return library.MultiSteps(optax.adamw(1e-3), K, should_skip_update_fn=library.skip_not_finite)


ADAMW: Final = optax.adamw(1e-3)
FORMS: Final[Mapping[str, tuple[Any, Callable[[Any], Step]]]] = {
    BARE: (ADAMW, updating),
    "optax.apply_if_finite": (optax.apply_if_finite(ADAMW, 5), updating),
    "optwrap.apply_if_finite": (optwrap.apply_if_finite(ADAMW, 5), fused),
    "optwrap.apply_if_finite, instrumented": (optwrap.instrument(optwrap.apply_if_finite(ADAMW, 5)), reading),
    "optax.MultiSteps(skip_not_finite)": (multi_steps(optax), updating),
    "optwrap.MultiSteps(skip_not_finite)": (multi_steps(optwrap), fused),
    "optwrap.MultiSteps(skip_not_finite), instrumented": (optwrap.instrument(multi_steps(optwrap)), reading),
}
"""Optimizer and step of each form. optwrap's go through `apply_gradients`; the instrumented return their reading."""


@dataclasses.dataclass
class Compilations:
    """What the compilations of one form took, by round, in seconds of CPU time."""

    traced: list[float] = dataclasses.field(default_factory=list)
    lowered: list[float] = dataclasses.field(default_factory=list)
    compiled: list[float] = dataclasses.field(default_factory=list)
    temporary: float = float("nan")
    """Bytes that XLA allots for temporary values."""

    @property
    def totals(self) -> list[float]:
        """All three together."""
        return list(map(sum, zip(self.traced, self.lowered, self.compiled, strict=True)))


def compile_once(form: str, params: Any, into: Compilations) -> None:
    """Trace, lower and compile a form with nothing cached, and note what it took."""
    tx, step_of = FORMS[form]
    state = jax.eval_shape(tx.init, params)
    jax.clear_caches()  # type: ignore[no-untyped-call]  # jax gives it no types
    step = jax.jit(step_of(tx), donate_argnums=(0, 1))
    times = [time.process_time()]
    traced = step.trace(params, state, params)
    times.append(time.process_time())
    lowered = traced.lower()
    times.append(time.process_time())
    compiled = lowered.compile()
    times.append(time.process_time())
    into.traced.append(times[1] - times[0])
    into.lowered.append(times[2] - times[1])
    into.compiled.append(times[3] - times[2])
    into.temporary = temporary_bytes(compiled)


def main() -> None:
    """Measure every form and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, default=600, metavar="N", help="of the parameters (600)")
    parser.add_argument("--size", type=int, default=28_000, metavar="N", help="float32 values in each leaf (28,000)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="to measure (5; at least 2)")
    parser.add_argument("--only", default="", metavar="TEXT", help="bare adamw, and the forms with this in their name")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds: must be at least 2, for quartiles; got {options.rounds}")
    results = {form: Compilations() for form in FORMS if form == BARE or options.only in form}

    leaf = jax.eval_shape(lambda: jnp.zeros(options.size, jnp.float32))
    params = {f"w{i:04}": leaf for i in range(options.leaves)}
    compile_once(BARE, params, Compilations())  # what is imported on first use
    order = random.Random(0)
    for number in range(options.rounds):
        for form in order.sample(list(results), len(results)):
            compile_once(form, params, results[form])
        print(f"\rround {number + 1} of {options.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)

    console = Console(width=150)
    table = Table(
        title=f"{options.leaves} leaves of {options.size:,} float32 values; CPU seconds, {options.rounds} rounds",
        title_justify="left",
    )
    table.add_column("step", no_wrap=True)
    for heading in ("trace", "lower", "compile", "total", "of bare", "temporary MiB"):
        table.add_column(heading, justify="right")
    for form, result in results.items():
        parts = (result.traced, result.lowered, result.compiled, result.totals)
        table.add_row(
            form,
            *(f"{statistics.median(part):.2f}" for part in parts),
            ratio(result.totals, results[BARE].totals),
            f"{result.temporary / MIB:.1f}",
        )
    console.print(table)
    console.print(machine(), highlight=False)


if __name__ == "__main__":
    main()
