"""What a step under each wrapper costs against the same under optax's, and against no wrapper: ratios, from one run.

    python benchmarks/bench_wrappers.py [--quick] [--only NAME] [--rounds N]

Every case trains the same float32 parameters with adamw, gradients given, parameters and state donated, in up to five
forms: with no wrapper at all (bare), under optax's wrapper, under optwrap's by `update` and `apply_updates`, under
optwrap's by `apply_gradients`, and the last instrumented. The forms take turns in one process, one window of K steps at
a time, in an order that is drawn anew each round; a time is that of a step, averaged over its window, the median over
the rounds, and a ratio the median of the rounds' own ratios. XLA's own figures of the compiled step, which repeat
exactly, stand beside the times: memory for temporary values, and bytes read and written if every branch were taken.
It runs on whatever device JAX finds.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import optwrap
from benchmarks.timing import MIB, Times, cost, machine, ratio, take_turns, temporary_bytes, wait

K: Final = 8
"""Mini-steps per window."""
VALUES: Final = 2**24
"""Parameters of most cases."""
WARM_UP: Final = 2
"""Windows that are not measured."""

Build = Callable[[Any, optax.GradientTransformation], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Case:
    """One way of using a wrapper."""

    build: Build
    """From a library and an inner optimizer."""
    leaves: int = 64
    values: int = VALUES
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


def optimizer(case: Case, form: str) -> optax.GradientTransformation:
    """The optimizer of one form of a case."""
    inner = optax.adamw(1e-3)
    if form == "bare":
        return inner
    wrapped = case.build(optax if form == "optax" else optwrap, inner)
    return optwrap.instrument(wrapped) if form == "instrumented" else wrapped


def parameters(case: Case, form: str) -> Any:
    """The parameters before the first step."""
    fast = tree(case.values, case.leaves, seed=0)
    if case.pair and form != "bare":
        # What is donated must not be there twice.
        return jax.tree.map(jnp.copy, optax.LookaheadParams.init_synced(fast))
    return fast


def step_of(form: str, tx: optax.GradientTransformation) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """The step of one form: parameters, state and gradients to parameters and state."""

    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        # Results in the order of what is donated: JAX pairs them by it.
        if form in ("apply_gradients", "instrumented"):
            return optwrap.apply_gradients(tx, gradients, state, params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


class Trainer:
    """One form of a case, compiled, and its training under way."""

    def __init__(self, case: Case, form: str, gradients: Any) -> None:
        tx = optimizer(case, form)
        self._params = parameters(case, form)
        self._state = jax.jit(tx.init)(self._params)
        self._gradients = gradients
        step = jax.jit(step_of(form, tx), donate_argnums=(0, 1))
        self._step = step.lower(self._params, self._state, gradients).compile()
        self.times = Times()
        for _ in range(WARM_UP):
            self.window()
        self.times.clear()

    def window(self) -> None:
        """Train K steps, and note what one of them took."""
        with self.times.round(K):
            for _ in range(K):
                self._params, self._state = self._step(self._params, self._state, self._gradients)
            wait((self._params, self._state))

    @property
    def temporary(self) -> float:
        """MiB of temporary values that XLA allots to the step."""
        return temporary_bytes(self._step) / MIB

    @property
    def accessed(self) -> float:
        """MiB that the step reads and writes if every branch is taken."""
        return cost(self._step, "bytes accessed") / MIB


def tree(values: int, leaves: int, seed: int) -> dict[str, jax.Array]:
    """Normally distributed float32 values, in equal leaves."""
    keys = jax.random.split(jax.random.key(seed), leaves)
    size = values // leaves
    shape = (size // 128, 128) if size % 128 == 0 else (size,)
    return {f"w{i:04}": jax.random.normal(key, shape) for i, key in enumerate(keys)}


def gradients_of(case: Case, form: str) -> Any:
    """The gradients of every step; those of the bare form have no NaN."""
    gradients = tree(case.values, case.leaves, seed=1)
    if case.bad and form != "bare":
        return {
            name: leaf.at[0].set(jnp.nan) if name.startswith(case.bad) else leaf for name, leaf in gradients.items()
        }
    return gradients


def measure(case: Case, rounds: int) -> dict[str, Trainer]:
    """Every form of a case, after its rounds."""
    bare, others = gradients_of(case, "bare"), gradients_of(case, "optax")
    trainers = {form: Trainer(case, form, bare if form == "bare" else others) for form in FORMS}
    take_turns({form: trainer.window for form, trainer in trainers.items()}, lambda done: done >= rounds)
    return trainers


def rows(name: str, trainers: Mapping[str, Trainer]) -> Sequence[tuple[str, ...]]:
    """The table's rows of a case."""

    def of(form: str, baseline: str) -> str:
        return ratio(trainers[form].times.seconds, trainers[baseline].times.seconds)

    return [
        (
            name if form == FORMS[0] else "",
            form,
            f"{trainer.times.ms:.2f}",
            "" if form in ("bare", "optax") else of(form, "optax"),
            "" if form == "bare" else of(form, "bare"),
            of(form, "apply_gradients") if form == "instrumented" else "",
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
        sized = dataclasses.replace(case, values=case.quick) if options.quick else case
        for row in rows(name, measure(sized, rounds)):
            table.add_row(*row)
        table.add_section()
    console.print(table)
    console.print(
        f"medians of {rounds} rounds' ratios (quartiles); {machine()}; {K} steps a round",
        highlight=False,
    )


if __name__ == "__main__":
    main()
