"""Measure how long a browser takes to show a run of a million steps, and the start page of many runs.

    python -m benchmarks.bench_page [--steps N] [--bad N] [--runs N] [--rounds N] [--data DIRECTORY]

A real exporter stores a run with that many steps, some of them bad, and with `--runs` another one so many short runs.
A real Chromium opens the page, each time in a new profile without a cache. The time is from the start of the
navigation until the chart shows a mark for every bad step in view, and on the start page also rows of the table, by
the browser's clock. A run of a thousand steps, alone, is the baseline. `--data` keeps what was filled, for the next
time.

On a machine that does other work every time is longer. So the table also has the exporter's CPU seconds, and the
seconds for which the page's main thread was busy.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from playwright.sync_api import Browser, sync_playwright

from tests.conftest import RunningExporter
from tests.e2e.page.desk import BAD, DESK, GUARD, Reporter
from tests.exporter.running import Job, TurnedClock

AT_ONCE = 8000

WATCH = """(wanted) => {
    new MutationObserver(() => {
        const chart = document.querySelector(".chart");
        const rows = document.querySelectorAll("#runs tr[data-run]").length;
        if (window.shownAt || chart?.dataset.marks !== String(wanted.marks) || rows < wanted.rows) return;
        if (document.getElementById("run").hidden) return;
        requestAnimationFrame(() => setTimeout(() => { window.shownAt = performance.now(); }));
    }).observe(document, { subtree: true, childList: true, attributes: true });
}"""


def fill(url: str, run: str, steps: int, bad: int) -> list[int]:
    """Report a run with steps of 0.1 s in accumulation windows of four; return its bad steps."""
    clock = TurnedClock()
    training = Reporter(Job(run=run, clock=clock, interval=3600.0), url)
    training.job.gauges |= {**GUARD, "mini_step": 0, "guard_not_finite_count": 0}
    rng = random.Random(steps)
    chosen = sorted(rng.sample(range(1, steps + 1), bad))
    marked = set(chosen)
    for step in range(1, steps + 1):
        clock.advance(0.1)
        if step in marked:
            outcome = rng.choice(BAD)
            if outcome in {"skipped_not_finite", "accepted_not_finite"}:
                training.job.step(outcome, "NaN", w=1)
            else:
                training.job.step(outcome, 90.0)
        else:
            training.job.gauges["mini_step"] = step % 4
            training.job.step("accumulated" if step % 4 else "applied", rng.lognormvariate(0, 0.5))
        if step % AT_ONCE == 0:
            training.send()
    training.send()
    return chosen


def fill_many(url: str, runs: int) -> list[int]:
    """Report so many runs of 120 steps, of which three are bad; return the bad steps of the first in the list."""
    for number in range(runs):
        clock = TurnedClock()
        training = Reporter(Job(run=f"run-{number:04}", clock=clock, interval=3600.0), url)
        training.job.gauges |= GUARD
        for step in range(1, 121):
            clock.advance(0.1)
            if step % 40 == number % 40:
                training.job.step("skipped_not_finite", "NaN", w=1)
            else:
                training.job.step("applied", 1 + step % 31 / 31)
        training.send()
    return [40, 80, 120]


class Case(NamedTuple):
    """An address to open, and what has to be seen."""

    url: str
    pid: int
    marks: list[int]
    rows: int = 0


class Opening(NamedTuple):
    """What an opening took, in seconds."""

    shown: float
    exporter: float
    """CPU time of the exporter."""
    page: float
    """How long the page's main thread was busy."""


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process until now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def opened(browser: Browser, case: Case) -> Opening:
    """Open the page until it shows all of it."""
    context = browser.new_context(viewport=DESK)  # type: ignore[arg-type]  # playwright's TypedDict
    page = context.new_page()
    page.add_init_script(f"({WATCH})({json.dumps({'marks': len(case.marks), 'rows': case.rows})})")
    protocol = context.new_cdp_session(page)
    protocol.send("Performance.enable")
    before = cpu_seconds(case.pid)
    page.goto(case.url)
    page.wait_for_function("() => window.shownAt", timeout=60_000)
    exporter = cpu_seconds(case.pid) - before
    metrics = {one["name"]: one["value"] for one in protocol.send("Performance.getMetrics")["metrics"]}
    seconds = page.evaluate("window.shownAt") / 1000
    marked = page.locator(".chart").get_attribute("data-marked")
    assert marked == " ".join(map(str, case.marks[-500:])), "a bad step in view has no mark"
    context.close()
    return Opening(float(seconds), exporter, float(metrics["TaskDuration"]))


@contextmanager
def filled(directory: Path, steps: int, bad: int, runs: int) -> Iterator[dict[str, Case]]:
    """The cases, with exporters that hold what they need. What is in the directory already is not filled again."""
    directory.mkdir(parents=True, exist_ok=True)
    exporters = [RunningExporter(directory / "steps", "--new-runs-per-minute", "1000000")]
    try:
        bad_steps: dict[str, list[int]] = {}
        found = directory / f"{steps}-{bad}.json"
        if found.exists():
            bad_steps = json.loads(found.read_text())
        else:
            bad_steps = {
                "short": fill(exporters[0].url, "short", 1_000, 10),
                "long": fill(exporters[0].url, "long", steps, bad),
            }
            found.write_text(json.dumps(bad_steps))
        newest = [step for step in bad_steps["long"] if step > steps - 2_000]

        def case(run: str, marks: list[int], **query: str) -> Case:
            return Case(f"{exporters[0].url}/?{urlencode({'run': run, **query})}", exporters[0].pid, marks)

        cases = {
            "1,000 steps": case("short", bad_steps["short"]),
            f"{steps:,} steps, the last 2,000 in view": case("long", newest),
            "... all in view": case("long", bad_steps["long"], window="all"),
            "... all in view, by time": case("long", bad_steps["long"], window="all", axis="time"),
        }
        if runs:
            exporters.append(RunningExporter(directory / f"runs-{runs}", "--new-runs-per-minute", "1000000"))
            done = directory / f"runs-{runs}.json"
            if not done.exists():
                done.write_text(json.dumps(fill_many(exporters[1].url, runs)))
            marks = json.loads(done.read_text())
            cases[f"the start page of {runs:,} runs"] = Case(exporters[1].url, exporters[1].pid, marks, min(runs, 100))
        yield cases
    finally:
        for exporter in exporters:
            exporter.stop()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--bad", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            with filled(given.data or Path(directory), given.steps, given.bad, given.runs) as cases:
                taken: dict[str, list[Opening]] = {name: [] for name in cases}
                for _ in range(given.rounds):
                    for name, one in cases.items():
                        taken[name].append(opened(browser, one))
        finally:
            browser.close()
    base = statistics.median(one.shown for one in taken["1,000 steps"])
    print("| in view | s, median (least to most) | of 1,000 steps | exporter, CPU s | page busy, s |")
    print("|---|---|---|---|---|")
    for name, openings in taken.items():
        shown = [one.shown for one in openings]
        median, exporter, page = (statistics.median(column) for column in zip(*openings, strict=True))
        print(
            f"| {name} | {median:.2f} ({min(shown):.2f} to {max(shown):.2f}) | {median / base:.2f} | {exporter:.2f} "
            f"| {page:.2f} |"
        )


if __name__ == "__main__":
    main()
