"""Measure how long a browser takes to show a run of a million steps.

    python benchmarks/bench_page.py [--steps N] [--bad N] [--rounds N]

A real exporter stores a run with that many steps, some of them bad. A real Chromium opens its page, each time in a new
profile without a cache. The time is from the start of the navigation until the chart shows a mark for every bad step in
view, by the browser's clock. A run of a thousand steps is the baseline.
"""

import argparse
import random
import shutil
import statistics
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, sync_playwright

from tests.conftest import RunningExporter
from tests.e2e.page.desk import BAD, DESK, GUARD, Reporter
from tests.exporter.running import Job, TurnedClock

AT_ONCE = 8000

WATCH = """(wanted) => {
    new MutationObserver(() => {
        const chart = document.querySelector(".chart");
        if (window.shownAt || chart?.dataset.marks !== String(wanted) || document.getElementById("run").hidden) return;
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


def opened(browser: Browser, address: str, marks: list[int]) -> float:
    """Seconds until the page shows all of these bad steps."""
    context = browser.new_context(viewport=DESK)  # type: ignore[arg-type]  # playwright's TypedDict
    page = context.new_page()
    page.add_init_script(f"({WATCH})({len(marks)})")
    page.goto(address)
    page.wait_for_function("() => window.shownAt", timeout=60_000)
    seconds = page.evaluate("window.shownAt") / 1000
    marked = page.locator(".chart").get_attribute("data-marked")
    assert marked == " ".join(map(str, marks[-500:])), "a bad step in view has no mark"
    context.close()
    return float(seconds)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--bad", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        exporter = RunningExporter(Path(directory) / "data")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            runs = {"short": fill(exporter.url, "short", 1_000, 10)}
            runs["long"] = fill(exporter.url, "long", given.steps, given.bad)
            followed = [step for step in runs["long"] if step > given.steps - 2_000]
            cases = {
                "1,000 steps": ("short", {}, runs["short"]),
                f"{given.steps:,} steps, the last 2,000 in view": ("long", {}, followed),
                "... all in view": ("long", {"window": "all"}, runs["long"]),
                "... all in view, by time": ("long", {"window": "all", "axis": "time"}, runs["long"]),
            }
            taken: dict[str, list[float]] = {name: [] for name in cases}
            for _ in range(given.rounds):
                for name, (run, query, marks) in cases.items():
                    taken[name].append(opened(browser, f"{exporter.url}/?{urlencode({'run': run, **query})}", marks))
            base = statistics.median(taken["1,000 steps"])
            print("| in view | s, median (least to most) | of 1,000 steps |")
            print("|---|---|---|")
            for name, seconds in taken.items():
                median = statistics.median(seconds)
                print(f"| {name} | {median:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {median / base:.2f} |")
        finally:
            browser.close()
            exporter.stop()


if __name__ == "__main__":
    main()
