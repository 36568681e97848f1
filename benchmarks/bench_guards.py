"""Rules that skip spikes, side by side: what they miss and what they skip falsely, and what skip_spikes costs.

    python benchmarks/bench_guards.py [--seeds N] [--markdown] [--no-cost]

The first two tables run the rules of benchmarks/spike_rules.py over synthetic norms with known spikes
(benchmarks/spike_scenarios.py), the third over norms of real trainings (benchmarks/spike_traces.npz). `-` is the
number of spikes that were missed, `+` that of other steps that were skipped, each a mean over the seeds.

The last table has the cost of a step through apply_gradients, as ratios to apply_if_finite in one process, in turns;
and XLA's own figures of the compiled step, which repeat exactly.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import optwrap
from benchmarks.spike_rules import RULES
from benchmarks.spike_scenarios import SCENARIOS, SHIFTS, STEPS, Scenario, drawn
from benchmarks.spike_traces import FILE, TRAININGS
from benchmarks.timing import Times, cost, machine, ratio, take_turns, temporary_bytes, wait

ROUNDS: Final = 30
Array = np.ndarray[Any, Any]


def cell(wanted: Array, ignored: Array, skipped: Array) -> str:
    """What a rule missed and what it skipped falsely: means over the seeds.

    Args:
      wanted: bool[steps], the spikes.
      ignored: bool[seeds, steps], the steps that are not finite: missed if they are taken.
      skipped: bool[seeds, steps].
    """
    missed = np.mean(np.sum((wanted | ignored) & ~skipped, axis=-1))
    false = np.mean(np.sum(skipped & ~wanted & ~ignored, axis=-1))
    parts = [
        f"{sign}{value:,.3g}" if value < 1000 else f"{sign}{value:,.0f}"
        for sign, value in (("-", missed), ("+", false))
        if value
    ]
    return " ".join(parts) or "ok"


def of_scenarios(scenarios: tuple[Scenario, ...], seeds: int) -> list[tuple[str, ...]]:
    """A row for each scenario."""
    norms = drawn(scenarios, seeds)
    skipped = {name: rule(norms.reshape(-1, STEPS)).reshape(norms.shape) for name, rule in RULES.items()}
    rows = []
    for i, scenario in enumerate(scenarios):
        wanted = np.zeros(STEPS, bool)
        wanted[list(scenario.spikes)] = True
        ignored = ~np.isfinite(norms[i])
        rows.append((scenario.name, *(cell(wanted, ignored, skipped[name][i]) for name in RULES)))
    return rows


def of_traces() -> list[tuple[str, ...]]:
    """Two rows for each real training: sound data, and data with faults."""
    traces = np.load(FILE)
    rows = []
    for name in TRAININGS:
        for title, faulty in ((name, []), (f"{name}, faults", traces[f"{name}, faulty"])):
            norms = traces[title][None].astype(np.float64)
            wanted = np.zeros(norms.shape[1], bool)
            wanted[faulty] = True
            # A fault is wanted whether its norm is finite or not.
            rows.append((title, *(cell(wanted, np.zeros(norms.shape, bool), rule(norms)) for rule in RULES.values())))
    return rows


FORMS: Final[dict[str, Callable[[Any], Any]]] = {
    "apply_if_finite": lambda inner: optwrap.apply_if_finite(inner, 10),
    "skip_spikes": optwrap.skip_spikes,
    "skip_spikes, shadow": functools.partial(optwrap.skip_spikes, shadow=True),
    "apply_if_finite, instrumented": lambda inner: optwrap.instrument(optwrap.apply_if_finite(inner, 10)),
    "skip_spikes, instrumented": lambda inner: optwrap.instrument(optwrap.skip_spikes(inner)),
}
BASELINES: Final = {"skip_spikes, instrumented": "apply_if_finite, instrumented"}
SIZES: Final = {
    "2 leaves of 64": (2, 64, 300),
    "200 leaves of 64": (200, 64, 20),
    "16 leaves of 62,500": (16, 62_500, 10),
}


def costs(count: int, size: int, steps: int) -> list[tuple[str, ...]]:
    """The cost of a step of adamw with `count` leaves of `size` values, in each form."""
    times, rounds, figures = {}, {}, {}
    for form, guarded in FORMS.items():
        tx = guarded(optax.adamw(1e-3))

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, tx: Any = tx) -> Any:
            return optwrap.apply_gradients(tx, jax.tree.map(lambda leaf: 0.01 * leaf, params), state, params)

        params = {f"layer_{i:03}": jnp.full(size, 1.0 + i) for i in range(count)}
        state = tx.init(params)
        compiled = step.lower(params, state).compile()
        figures[form] = (
            f"{cost(compiled, 'flops'):,.0f}",
            f"{cost(compiled, 'bytes accessed') / 1e3:,.1f}",
            f"{temporary_bytes(compiled) / 1024:,.1f}",
        )
        times[form] = Times()
        rounds[form] = functools.partial(_round, step, [(params, state)], steps, times[form])
    for train in rounds.values():
        train()
    for one in times.values():
        one.clear()
    take_turns(rounds, lambda done: done >= ROUNDS)
    rows: list[tuple[str, ...]] = []
    for form, one in times.items():
        base = times[BASELINES.get(form, "apply_if_finite")]
        ratios = ratio(one.seconds, base.seconds), ratio(one.cpu_seconds, base.cpu_seconds)
        rows.append((form, f"{one.ms:.3f}", *ratios, *figures[form]))
    return rows


def _round(step: Any, carry: list[Any], steps: int, times: Times) -> None:
    with times.round(steps):
        for _ in range(steps):
            carry[0] = step(*carry[0])
        wait(carry[0])


def show(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]], *, markdown: bool) -> None:
    """Print one table."""
    if markdown:
        print(f"\n{title}\n")
        for row in (head, ("---",) * len(head), *rows):
            print("| " + " | ".join(row) + " |")
        return
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="of each scenario (default 20)")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/guides/guards.md")
    parser.add_argument("--no-cost", action="store_true", help="leave out the cost")
    options = parser.parse_args()
    show_one = functools.partial(show, markdown=options.markdown)
    show_one("Scenarios", ("scenario", *RULES), of_scenarios(SCENARIOS, options.seeds))
    show_one("Level shifts near the limit", ("scenario", *RULES), of_scenarios(SHIFTS, options.seeds))
    show_one("Real trainings", ("training", *RULES), of_traces())
    if options.no_cost:
        return
    print(machine())
    head = ("form", "ms", "time, ratio", "CPU, ratio", "flops", "kB accessed", "temporary KiB")
    for title, (count, size, steps) in SIZES.items():
        show_one(title, head, costs(count, size, steps))


if __name__ == "__main__":
    main()
