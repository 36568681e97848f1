"""`benchmarks/gpu.py` where there is no GPU: that it checks the totals and prints every table. No time is asserted."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import bench_wrappers, gpu, selects, totals

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_the_gpu_benchmark_checks_the_totals_and_prints_every_table() -> None:
    """With --small, and with a real exporter."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--small"],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "200"},  # so that no cell is wrapped
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in done.stdout.splitlines()]
    titles = [row[0] for row in rows if row]
    compared = {row[0] for row in rows if row and row[-1] == "exact"}
    assert compared == {
        *("readings, step by step", "readings, the last one's totals", "the exporter, from readings"),
        *("callbacks, step by step", "callbacks, the last one's totals", "the exporter, from callbacks"),
    }
    assert done.stdout.count("steps arrived, 0 step records were dropped") == 4, "a reading and a callback each"
    for part, _, _ in gpu.DIFFERENCES:
        assert titles.count(part) == 2, f"{part}: a row for the tiny step, and one for the long"
    wrappers = gpu.SMALL.wrappers
    assert [name for name in wrappers if f"\n{name}: " not in done.stdout] == []
    for form in selects.FORMS:
        tables = len(wrappers) + 2 * (form == "bare")
        assert titles.count(form) == tables, f"{form}: a row in the table of each wrapper"
    assert {form: titles.count(form) for form in selects.SELECTS} == {
        "update, step selected": 2,  # apply_if_finite and MultiSteps
        "apply_gradients, step selected": 3,  # lookahead, too
        "apply_gradients, all selected": 1,  # the skip function of MultiSteps
    }


@pytest.mark.parametrize(
    ("name", "form", "modules"),
    [
        ("apply_if_finite", "update", {"optwrap._core.cond"}),
        ("apply_if_finite", "apply_gradients", {"optwrap._core.cond"}),
        ("MultiSteps", "apply_gradients", {"optwrap._core.cond"}),
        ("lookahead", "update", set()),
        ("lookahead", "apply_gradients", {"optwrap._wrappers.lookahead"}),
        ("masked", "apply_gradients", set()),
        ("flatten", "apply_gradients", set()),
    ],
)
def test_the_conditions_of_the_wrappers_steps_are_found(name: str, form: str, modules: set[str]) -> None:
    """The GPU benchmark replaces them by selects, and has to know in which modules they are."""
    assert selects.conditions(bench_wrappers.CASES[name], form, selects.STEP) == modules


def test_the_gpu_benchmark_ends_if_an_outcome_is_not_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN that it does not know of makes it exit."""
    train = totals.train_with_faults

    def train_with_another(emit: str, recorder: totals.Recorder, params: Any, good: Any, faults: Sequence[Any]) -> None:
        train(emit, recorder, params, good, ["w0", *faults[1:]])

    monkeypatch.setattr(totals, "train_with_faults", train_with_another)
    with pytest.raises(SystemExit, match=r"readings, step by step: got .*skipped_not_finite"):
        totals.check_totals(totals.Target("off", exporter=False), 4, Console(quiet=True))
