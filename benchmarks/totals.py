"""Trains with NaN gradients, and compares outcomes and totals with the list of bad steps."""

import collections
import dataclasses
import itertools
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import optwrap
from benchmarks.timing import wait
from examples.demo.exporter import answer

EVERY_K: Final = 4
"""Mini-steps in a window."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Where the Monitors report."""

    address: str
    exporter: bool
    """Whether an exporter listens there, whose totals are compared."""


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
            sys.exit(f"{title}: got {told}, and the truth is {true}")
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
