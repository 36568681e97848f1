"""What a step under each wrapper costs, update and apply, against the same under optax's: ratios, from one run.

    python benchmarks/bench_wrappers.py [--quick]

All train the same float32 parameters, 16 million in 64 leaves (a million with --quick), with adamw, gradients given,
state and parameters donated. The variants take turns in one process, one window of K steps at a time, in an order that
is drawn anew each round; a time is that of a step, averaged over its window, and the median over the rounds. XLA's own
figures of the compiled step, which repeat exactly, stand beside the times: memory for temporary values, and bytes read
and written if every branch were taken.
"""

import argparse
import dataclasses
import functools
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import jax
import optax
from rich.console import Console
from rich.table import Table

import optwrap

K: Final = 8
"""Mini-steps per window."""
LEAVES: Final = 64
WARM_UP: Final = 2
"""Windows that are not measured."""
MIB: Final = 2**20

Build = Callable[[Any, optax.GradientTransformation], optax.GradientTransformation]


def multi_steps(library: Any, inner: Any, skip: Any = None) -> optax.GradientTransformation:
    """MultiSteps of a library, as a transformation."""
    return library.MultiSteps(inner, K, should_skip_update_fn=skip).gradient_transformation()


def skip_large(library: Any) -> Any:
    """The skip function with a limit that is never reached."""
    return functools.partial(library.skip_large_updates, max_squared_norm=1e12)


CASES: Final[dict[str, Build]] = {
    "apply_if_finite": lambda library, inner: library.apply_if_finite(inner, 5),
    "MultiSteps": multi_steps,
    "MultiSteps, skip_not_finite": lambda library, inner: multi_steps(library, inner, library.skip_not_finite),
    "MultiSteps, skip_large_updates": lambda library, inner: multi_steps(library, inner, skip_large(library)),
    "MultiSteps(apply_if_finite)": lambda library, inner: multi_steps(library, library.apply_if_finite(inner, 5)),
    "apply_if_finite(MultiSteps, skip_not_finite)": lambda library, inner: library.apply_if_finite(
        multi_steps(library, inner, library.skip_not_finite), 5
    ),
}


@dataclasses.dataclass
class Variant:
    """One compiled training step, and the training under way."""

    step: Any
    state: Any
    params: Any
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Of a step, averaged over each measured window."""

    def window(self, gradients: Any) -> float:
        """Train K steps; seconds per step."""
        start = time.perf_counter()
        for _ in range(K):
            self.state, self.params = self.step(gradients, self.state, self.params)
        jax.block_until_ready((self.state, self.params))  # type: ignore[no-untyped-call]  # jax gives it no types
        return (time.perf_counter() - start) / K

    @property
    def milliseconds(self) -> float:
        """Median time of a step."""
        return statistics.median(self.seconds) * 1e3

    @property
    def temporary(self) -> float:
        """MiB of temporary values that XLA allots to the step."""
        return float(self.step.memory_analysis().temp_size_in_bytes) / MIB

    @property
    def accessed(self) -> float:
        """MiB that the step reads and writes if every branch is taken."""
        return float(self.step.cost_analysis()["bytes accessed"]) / MIB


def tree(values: int, seed: int) -> dict[str, jax.Array]:
    """Normally distributed float32 values, in LEAVES matrices."""
    keys = jax.random.split(jax.random.key(seed), LEAVES)
    return {f"w{i:02}": jax.random.normal(key, (values // LEAVES // 128, 128)) for i, key in enumerate(keys)}


def variant(transformation: optax.GradientTransformation, values: int) -> Variant:
    """The transformation's training step, compiled, at its start."""
    params = tree(values, seed=0)
    state = jax.jit(transformation.init)(params)

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def step(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = transformation.update(gradients, state, params)
        return state, optax.apply_updates(params, updates)

    return Variant(step.lower(params, state, params).compile(), state, params)


def measure(variants: list[Variant], gradients: Any, rounds: int) -> None:
    """Let the variants take turns."""
    order = list(variants)
    for turn in range(WARM_UP + rounds):
        random.shuffle(order)
        for each in order:
            seconds = each.window(gradients)
            if turn >= WARM_UP:
                each.seconds.append(seconds)


def main() -> None:
    """Measure every case against optax and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a million parameters and few rounds")
    quick = parser.parse_args().quick
    values, rounds = (2**20, 3) if quick else (2**24, 9)

    table = Table(title=f"update and apply, adamw, {values:,} float32 parameters in {LEAVES} leaves, k = {K}")
    table.add_column("wrapper")
    for heading in ("optax ms", "optwrap ms", "ratio", "of bare adamw", "temporary MiB", "accessed MiB"):
        table.add_column(heading, justify="right")

    gradients = tree(values, seed=1)
    inner = optax.adamw(1e-3)
    for name, build in CASES.items():
        ours, theirs, bare = (
            variant(transformation, values) for transformation in (build(optwrap, inner), build(optax, inner), inner)
        )
        measure([ours, theirs, bare], gradients, rounds)
        table.add_row(
            name,
            f"{theirs.milliseconds:.2f}",
            f"{ours.milliseconds:.2f}",
            f"{ours.milliseconds / theirs.milliseconds:.2f}",
            f"{ours.milliseconds / bare.milliseconds:.2f}",
            f"{ours.temporary:.0f} ({theirs.temporary:.0f})",
            f"{ours.accessed:.0f} ({theirs.accessed:.0f})",
        )
    console = Console(width=150)
    console.print(table)
    device = jax.devices()[0]
    console.print(
        f"ratio: optwrap to optax; in brackets: optax's. jax {jax.__version__}, optax {optax.__version__}, "
        f"{device.platform} ({device.device_kind}), {os.cpu_count()} CPU cores; {rounds} rounds of {K} steps",
        highlight=False,
    )


if __name__ == "__main__":
    main()
