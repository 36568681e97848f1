"""What the tests of the demo share: its truth, and how it is run and asked.

The truth is computed from the table of faults alone, by a few lines that know neither optax nor optwrap.
"""

import collections
import contextlib
import dataclasses
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import httpx
import pytest

from examples.demo.data import Corpus
from examples.demo.faults import Outcome
from examples.demo.settings import (
    EVERY_K,
    FULL,
    MAX_CONSECUTIVE_ERRORS,
    REBASE_AFTER,
    SAVE_EVERY,
    STOP_AFTER,
    Settings,
)
from tests.polling import wait_until

REPOSITORY = Path(__file__).parents[2]
MANY = 2000
"""Micro-steps of a training in which there is time to do something; short as steps are, some seconds."""
LAG = 8
"""Readings by which a decision to stop is late, as `StopPolicy` documents."""
CORPUS = Corpus(context=FULL.context, layers=FULL.layers)


# --- the truth -----------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A step that was taken."""

    step: int
    outcome: str
    mini_step: int
    """Mini-steps in the window after it."""
    parameter: str | None
    """The parameter that was not finite."""
    streak: int
    """Non-finite steps in a row up to this one."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """What must come of a table of faults."""

    rows: list[Row]
    """Every step, in the order in which they were taken; after a rollback a number occurs again."""
    state: list[Row]
    """The steps of the state at the end."""
    rebases: int
    left_out: tuple[int, ...] = ()
    """The batches that were left out after a stop."""

    @property
    def longest_streak(self) -> int:
        return max(row.streak for row in self.state)

    @property
    def parameters(self) -> list[tuple[str, int, int, int]]:
        """Of each bad parameter: path, steps, first step, last step; in no order."""
        steps_of = collections.defaultdict(list)
        for row in self.rows:
            if row.parameter is not None:
                steps_of[row.parameter].append(row.step)
        return sorted((path, len(steps), steps[0], steps[-1]) for path, steps in steps_of.items())


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """The totals of these steps."""
    counted = collections.Counter(row.outcome for row in rows)
    names = (
        *("applied", "accumulated", "skipped_not_finite", "skipped_large", "skipped_other"),
        "accepted_not_finite",
    )
    return {
        "steps": len(rows),
        "gradient_steps": counted["applied"],
        "outcomes": {name: counted[name] for name in names},
        "skipped": {reason: counted[f"skipped_{reason}"] for reason in ("not_finite", "large", "other")},
        "not_finite_steps": sum(row.parameter is not None for row in rows),
        "accepted_not_finite": 0,
    }


def taken(table: Settings, batches: Sequence[int]) -> tuple[list[Row], int]:
    """The steps on these batches and the rebases: the guard sees each step first, the window what the guard lets in."""
    rows = []
    in_window = streak = rebases = 0
    for step, batch in enumerate(batches, 1):
        faults = [fault for fault in table.faults if fault.first <= batch < fault.first + fault.count]
        shifted = [batch - fault.first + 1 for fault in faults if fault.damage.outcome is Outcome.NEW_LEVEL]
        rebases += shifted == [REBASE_AFTER]
        overflowing = [fault.layer for fault in faults if fault.damage.outcome is Outcome.NOT_FINITE]
        parameter = f"decoder/layer_{overflowing[0]}/probe/w" if overflowing else None
        streak = streak + 1 if overflowing else 0
        assert streak <= MAX_CONSECUTIVE_ERRORS, "the guard gives up: the lines below do not hold"
        if overflowing:
            outcome = "skipped_not_finite"
        elif faults and not (shifted and shifted[0] >= REBASE_AFTER):
            outcome = "skipped_large"
        else:
            in_window = (in_window + 1) % EVERY_K
            outcome = "accumulated" if in_window else "applied"
        rows.append(Row(step, outcome, in_window, parameter, streak))
    return rows, rebases


def truth(table: Settings, steps: int | None = None, *, stops: bool = True) -> Truth:
    """What `table`'s faults come to: with a stop and a rollback at the first streak that is long enough."""
    batches = range(1, (steps or table.steps) + 1)
    rows, rebases = taken(table, batches)
    stop = next((row.step for row in rows if row.streak == STOP_AFTER), None)
    if stop is None or not stops:
        return Truth(rows, rows, rebases)
    clean = max(row.step for row in rows[:stop] if not row.outcome.startswith("skipped"))
    left_out = tuple(range(clean + 1, stop + 1))
    state, rebases = taken(table, [batch for batch in batches if batch not in left_out])
    assert all(row.streak < STOP_AFTER for row in state)
    restored = clean // SAVE_EVERY * SAVE_EVERY
    return Truth(rows[: stop + LAG] + state[restored:], state, rebases, left_out)


def assert_is(answer: Mapping[str, Any], expected: Truth) -> None:
    """The exporter's answer about a run that one process lived from its start to its end."""
    all_steps = totals(expected.rows)
    assert answer["totals"] == all_steps
    assert answer["state_totals"] == totals(expected.state)
    assert answer["gauges"]["not_finite_streak_peak"] == expected.longest_streak
    assert answer["gauges"]["not_finite_streak"] == 0
    assert answer["gauges"]["guard_rebases"] == expected.rebases == 1
    seen = [(p["parameter"], p["steps"], p["first_step"], p["last_step"]) for p in answer["parameters"]]
    assert sorted(seen) == expected.parameters
    assert [steps for _, steps, _, _ in seen] == sorted((steps for _, steps, _, _ in seen), reverse=True)
    assert all(p["values"] >= p["steps"] for p in answer["parameters"])
    assert answer["unseen"] == 0
    assert not any(answer["dropped"].values())
    assert answer["health"] == "finished"
    assert [attempt["state"] for attempt in answer["attempts"]] == ["finished"]
    of_process = {name: all_steps[name] for name in ("steps", "outcomes", "not_finite_steps")}
    of_process["outcomes"] = {name: n for name, n in all_steps["outcomes"].items() if n}
    assert [process["totals"] for process in answer["processes"]] == [of_process]


# --- running it ----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "examples.demo", "--quick", *arguments]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    # A shell starts background jobs with SIGINT ignored, and children inherit that; a handler they do not inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command(*arguments), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        # If the test has failed: SIGTERM, so that the demo stops its exporter.
        for number in (signal.SIGCONT, signal.SIGTERM):
            process.send_signal(number)
        try:
            process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()


def address_in(line: str) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+/", line)
    assert found is not None, line
    return found[0]


def page_of(process: subprocess.Popen[str]) -> str:
    """The address it prints first."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return address_in(line)


def wait_for_steps(url: str, steps: int) -> None:
    """Until the exporter has counted that many of run `demo`."""

    def ask() -> httpx.Response:
        return httpx.get(f"{url}/v1/runs/demo", trust_env=False)

    def counted() -> bool:
        answer = ask()
        return answer.is_success and answer.json()["totals"]["steps"] >= steps

    wait_until(counted, 120, problem=lambda: ask().text)


def wait_for_line(stream: IO[str] | None, words: str) -> None:
    assert stream is not None
    assert any(words in line for line in stream), f"it ended without {words!r}"


def assert_nobody_listens(page: str) -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get(page, trust_env=False)


def assert_one_line_says(ran: subprocess.CompletedProcess[str], *words: str) -> None:
    assert ran.returncode not in {0, -signal.SIGTERM}
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("demo: ")
    for word in words:
        assert word in ran.stderr
