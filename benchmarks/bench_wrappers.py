"""Measures the time of a step under each wrapper, as a ratio to optax's wrapper and to no wrapper.

    python benchmarks/bench_wrappers.py [--quick] [--only NAME] [--rounds N]

Every case trains the same float32 parameters with adamw. The gradients are inputs, and parameters and state are
donated. There are up to five forms: no wrapper (bare), optax's wrapper, optwrap's with `update` and `apply_updates`,
optwrap's with `apply_gradients`, and the last one instrumented. The forms take turns in one process, one window of K
steps at a time, in a random order in each round. A time is the mean of a step in its window, and the median over the
rounds. A ratio is the median of the ratios in each round. The table also has XLA's figures for the compiled step, which
are the same in every run: memory for temporary values, and bytes read and written if every branch were taken. It runs
on any device.
"""

import argparse
import dataclasses
import functools
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import optwrap

K: Final = 8
"""Mini-steps per window."""
WARM_UP: Final = 2
"""Windows that are not measured."""
MIB: Final = 2**20

Build = Callable[[Any, optax.GradientTransformation], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Case:
    """One way of using a wrapper."""

    build: Build
    """From a library and an inner optimizer."""
    leaves: int = 64
    values: int = 2**24
    """Parameters in all."""
    quick: int = 2**20
    """The same with --quick."""
    pair: bool = False
    """Whether the parameters are lookahead's pair."""
    bad: str = ""
    """In which leaves the gradients of every step have a NaN: those whose name begins so; in none where it is empty."""


def multi_steps(library: Any, inner: Any, skip: Any = None) -> optax.GradientTransformation:
    """MultiSteps of a library, as a transformation."""
    return library.MultiSteps(inner, K, should_skip_update_fn=skip).gradient_transformation()


def skip_large(library: Any) -> Any:
    """The skip function with a limit that is never reached."""
    return functools.partial(library.skip_large_updates, max_squared_norm=1e12)


def half(tree: Any) -> Any:
    """A mask of every other leaf."""
    return {name: place % 2 == 0 for place, name in enumerate(tree)}


CASES: Final[dict[str, Case]] = {
    "apply_if_finite": Case(lambda library, inner: library.apply_if_finite(inner, 5)),
    "apply_if_finite, every step skipped": Case(
        lambda library, inner: library.apply_if_finite(inner, 2**30), bad="w0003"
    ),
    "apply_if_finite, every step skipped, NaN in every leaf": Case(
        lambda library, inner: library.apply_if_finite(inner, 2**30), bad="w"
    ),
    "MultiSteps": Case(multi_steps),
    "MultiSteps, skip_not_finite": Case(
        lambda library, inner: multi_steps(library, inner, library.skip_not_finite),
    ),
    "MultiSteps, skip_large_updates": Case(lambda library, inner: multi_steps(library, inner, skip_large(library))),
    "MultiSteps(apply_if_finite)": Case(
        lambda library, inner: multi_steps(library, library.apply_if_finite(inner, 5)),
    ),
    "apply_if_finite(MultiSteps, skip_not_finite)": Case(
        lambda library, inner: library.apply_if_finite(multi_steps(library, inner, library.skip_not_finite), 5)
    ),
    "masked": Case(lambda library, inner: library.masked(inner, half)),
    "lookahead": Case(lambda library, inner: library.lookahead(inner, 6, 0.5), pair=True),
    "flatten": Case(lambda library, inner: library.flatten(inner), leaves=1000, values=1_000_000, quick=100_000),
}

FORMS: Final = ("bare", "optax", "update", "apply_gradients", "instrumented")


class Trainer:
    """One form of a case, compiled, with the current parameters and state of its training."""

    def __init__(self, case: Case, form: str, values: int) -> None:
        inner = optax.adamw(1e-3)
        transformation = inner if form == "bare" else case.build(optax if form == "optax" else optwrap, inner)
        if form == "instrumented":
            transformation = optwrap.instrument(transformation)
        self._params: Any = tree(values, case.leaves, seed=0)
        if case.pair and form != "bare":
            pair = optax.LookaheadParams.init_synced(self._params)
            self._params = jax.tree.map(jnp.copy, pair)  # an array must not be donated twice
        self._state = jax.jit(transformation.init)(self._params)

        # Results in the order of the donated arguments, because JAX matches them by order.
        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
            if form in ("apply_gradients", "instrumented"):
                return optwrap.apply_gradients(transformation, gradients, state, params)
            updates, state = transformation.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        like = self._params.fast if isinstance(self._params, optax.LookaheadParams) else self._params
        self._step = step.lower(self._params, self._state, like).compile()
        self.seconds: list[float] = []
        """Of a step, by measured round."""

    def window(self, gradients: Any) -> float:
        """Train K steps; seconds per step."""
        start = time.perf_counter()
        for _ in range(K):
            self._params, self._state = self._step(self._params, self._state, gradients)
        jax.block_until_ready((self._params, self._state))  # type: ignore[no-untyped-call]  # jax gives it no types
        return (time.perf_counter() - start) / K

    @property
    def temporary(self) -> float:
        """MiB of temporary values that XLA allocates for the step."""
        figures = self._step.memory_analysis()
        return (
            float("nan") if figures is None else float(figures.temp_size_in_bytes) / MIB
        )  # not every backend has these figures

    @property
    def accessed(self) -> float:
        """MiB that the step reads and writes if every branch is taken."""
        figures = self._step.cost_analysis()
        return float("nan") if figures is None else float(figures["bytes accessed"]) / MIB


def tree(values: int, leaves: int, seed: int) -> dict[str, jax.Array]:
    """Normally distributed float32 values, in equal leaves."""
    keys = jax.random.split(jax.random.key(seed), leaves)
    size = values // leaves
    shape = (size // 128, 128) if size % 128 == 0 else (size,)
    return {f"w{i:04}": jax.random.normal(key, shape) for i, key in enumerate(keys)}


def measure(case: Case, quick: bool, rounds: int) -> dict[str, Trainer]:
    """Run every form of a case for some rounds; returns them."""
    values = case.quick if quick else case.values
    gradients = tree(values, case.leaves, seed=1)
    bad = {
        name: leaf.at[0].set(jnp.nan) if case.bad and name.startswith(case.bad) else leaf
        for name, leaf in gradients.items()
    }
    trainers = {form: Trainer(case, form, values) for form in FORMS}
    order = list(trainers.items())
    for turn in range(WARM_UP + rounds):
        random.shuffle(order)
        for form, trainer in order:
            seconds = trainer.window(bad if form != "bare" else gradients)
            if turn >= WARM_UP:
                trainer.seconds.append(seconds)
    return trainers


def ratio(trainers: Mapping[str, Trainer], form: str, baseline: str) -> str:
    """The median of each round's ratio, with its quartiles."""
    rounds = zip(trainers[form].seconds, trainers[baseline].seconds, strict=True)
    low, middle, high = statistics.quantiles([seconds / base for seconds, base in rounds], n=4)
    return f"{middle:.3f} ({low:.2f} to {high:.2f})"


def rows(name: str, trainers: Mapping[str, Trainer]) -> Sequence[tuple[str, ...]]:
    """The table's rows of a case."""
    return [
        (
            name if form == FORMS[0] else "",
            form,
            f"{statistics.median(trainer.seconds) * 1e3:.2f}",
            "" if form in ("bare", "optax") else ratio(trainers, form, "optax"),
            "" if form == "bare" else ratio(trainers, form, "bare"),
            ratio(trainers, form, "apply_gradients") if form == "instrumented" else "",
            f"{trainer.temporary:.0f}",
            f"{trainer.accessed:.0f}",
        )
        for form, trainer in trainers.items()
    ]


def main() -> None:
    """Measure the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the parameters and few rounds")
    parser.add_argument("--rounds", type=int, help="to measure (11; quick: 3; two at least)")
    parser.add_argument("--only", metavar="NAME", help=f"cases whose name holds NAME, of: {'; '.join(CASES)}")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 2:
        parser.error(f"--rounds: must be 2 at least, for quartiles; got {options.rounds}")
    chosen = {name: case for name, case in CASES.items() if options.only is None or options.only in name}
    if not chosen:
        parser.error(f"--only: no case's name holds {options.only!r}; they are {'; '.join(CASES)}")
    rounds = options.rounds or (3 if options.quick else 11)

    console = Console(width=150)
    table = Table(
        title=f"a step of adamw, float32, donated, k = {K}; 16 million parameters in 64 leaves; flatten: 1,000 of 1,000"
    )
    for heading in ("wrapper", "form"):
        table.add_column(heading)
    for heading in ("ms", "of optax", "of bare", "of not instrumented", "temporary MiB", "accessed MiB"):
        table.add_column(heading, justify="right")
    for place, (name, case) in enumerate(chosen.items(), start=1):
        console.print(f"{place} of {len(chosen)}: {name}", highlight=False)
        for row in rows(name, measure(case, options.quick, rounds)):
            table.add_row(*row)
        table.add_section()
    console.print(table)
    device = jax.devices()[0]
    console.print(
        f"medians of {rounds} rounds' ratios (quartiles); jax {jax.__version__}, optax {optax.__version__}, "
        f"{device.platform} ({device.device_kind}), {os.cpu_count()} CPU cores; {K} steps a round",
        highlight=False,
    )


if __name__ == "__main__":
    main()
