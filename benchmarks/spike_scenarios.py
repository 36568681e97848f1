"""Synthetic gradient norms with known spikes, for the rules that skip spikes. Used by bench_guards.py and by the tests.

A scenario is 3,000 norms: log-normal noise around a level of 1, and something that happens to it. Each is drawn for
several seeds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import numpy as np

STEPS: Final = 3000
NOISE: Final = 0.15
"""Standard deviation of the logarithm."""

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What happens to the norms."""

    name: str
    change: Callable[[Array], Array | None]
    """Changes the norms of one seed in place, or returns new ones."""
    spikes: tuple[int, ...] = ()
    """Steps that a rule should skip, besides those that are not finite."""
    most_lost: int = 0
    """The most other steps that skip_spikes may skip for each change of the level, in one seed."""
    noise: float = NOISE


def drawn(scenarios: tuple[Scenario, ...], seeds: int) -> Array:
    """The norms: float64[scenarios, seeds, STEPS]."""
    norms = np.empty((len(scenarios), seeds, STEPS))
    for i, scenario in enumerate(scenarios):
        for seed in range(seeds):
            row = np.exp(np.random.default_rng([i, seed]).normal(0.0, scenario.noise, STEPS))
            changed = scenario.change(row)
            norms[i, seed] = row if changed is None else changed
    return norms


def times(*factors: tuple[int | slice, float]) -> Callable[[Array], None]:
    """Multiplies the norms of these steps."""

    def change(norms: Array) -> None:
        for steps, factor in factors:
            norms[steps] *= factor

    return change


def _decline(norms: Array) -> None:
    norms *= np.maximum(1.0, 100.0 ** (1 - np.arange(STEPS) / 500))
    norms[600] *= 10


def _constant(norms: Array) -> Array:
    return np.where(np.arange(len(norms)) < 1000, 1.0, 1.01)


def _drift(norms: Array) -> None:
    norms *= 10 ** (np.arange(STEPS) / STEPS)


SCENARIOS: Final = (
    Scenario("one spike, 10x", times((1000, 10.0)), (1000,)),
    Scenario("one spike, 4x", times((1000, 4.0)), (1000,)),
    Scenario("100x, then 10x 20 steps later", times((1000, 100.0), (1020, 10.0)), (1000, 1020)),
    Scenario("10 in a row, 20x", times((slice(1000, 1010), 20.0)), tuple(range(1000, 1010))),
    Scenario("level up 5x for good", times((slice(1000, None), 5.0)), most_lost=32),
    Scenario("level up 40x for good", times((slice(1000, None), 40.0)), most_lost=32),
    Scenario("level down 10x, spike of 10x", times((slice(1000, None), 0.1), (1200, 10.0)), (1200,)),
    Scenario("drift up 10x over all steps", _drift),
    Scenario("decline 100 to 1 in 500, spike at 600", _decline, (600,)),
    Scenario("one NaN, spike 200 later", times((1000, np.nan), (1200, 10.0)), (1200,)),
    Scenario("one Inf, spike 200 later", times((1000, np.inf), (1200, 10.0)), (1200,)),
    Scenario("NaN at 10, spike at 1,000", times((10, np.nan), (1000, 10.0)), (1000,)),
    Scenario("1,000x at 20, 10x at 100", times((20, 1000.0), (100, 10.0)), (20, 100)),
    Scenario("200 NaN in a row", times((slice(1000, 1200), np.nan))),
    Scenario("constant, then 1 % more", _constant),
    Scenario("heavy noise (0.5)", times(), noise=0.5),
)
"""The sixteen that other rules fail at, each at another."""

RATIOS: Final = (2.0, 2.5, 3.0, 3.5, 4.0)
"""Level shifts near the limit: some norms pass, others are skipped."""


def _there_and_back(ratio: float) -> Callable[[Array], None]:
    return times(*((slice(start, start + 400), ratio) for start in range(500, STEPS, 800)))


SHIFTS: Final = tuple(
    scenario
    for ratio in RATIOS
    for scenario in (
        Scenario(f"level up {ratio}x for good", times((slice(1000, None), ratio)), most_lost=40),
        Scenario(f"level up {ratio}x and back, 4 times", _there_and_back(ratio), most_lost=40),
    )
)
