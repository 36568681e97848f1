"""Take the pictures of the page for docs/guides/page.md: `python -m tools.picture_page` writes docs/images/.

It uses a real exporter, jobs that report like training processes, and a real Chromium. Run it after each visible change
of the page, and look at every picture.
"""

import itertools
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.conftest import RunningExporter
from tests.e2e.page.desk import DESK, GUARD, PHONE, Reporter
from tests.exporter.running import Job, TurnedClock

IMAGES = Path(__file__).parent.parent / "docs" / "images"
STEP_SECONDS = 0.4
LAYERS = tuple(f"decoder/layer_{layer}/{part}/w" for layer in range(6) for part in ("attention", "mlp"))


class Training:
    """A job with realistic gradient norms, which can also take bad steps."""

    def __init__(self, url: str, run: str, steps: int, **job: object) -> None:
        self.rng = random.Random(run)
        # The steps are in the past; the last one is taken about now.
        self.clock = TurnedClock(time.time() - steps * STEP_SECONDS)
        self.reporter = Reporter(Job(**{"run": run, "clock": self.clock, "interval": 30.0, **job}), url)  # type: ignore[arg-type]  # a test's own words
        self.reporter.job.gauges |= {**GUARD, "mini_step": 0, "guard_not_finite_count": 0}

    def good(self, count: int, seconds: float = STEP_SECONDS) -> None:
        """Take good steps in accumulation windows of four."""
        job = self.reporter.job
        for _ in range(count):
            self.clock.advance(seconds * self.rng.uniform(0.9, 1.1))
            mini = (job.gauges["mini_step"] + 1) % 4
            job.gauges |= {"mini_step": mini, "guard_not_finite_count": 0}
            height = 0.7 + 8 * 0.97 ** job.totals["steps"]
            job.step("accumulated" if mini else "applied", height * self.rng.lognormvariate(0, 0.25))
        self.reporter.send()

    def bad(self, outcome: str = "skipped_not_finite", **offenders: int) -> None:
        """Take one step with non-finite gradients. Offenders are named with `__` for `/`."""
        self.clock.advance(STEP_SECONDS)
        job = self.reporter.job
        job.gauges["guard_not_finite_count"] = min(5, job.gauges["guard_not_finite_count"] + 1)
        job.step(outcome, "NaN", None, **offenders)
        self.reporter.send()

    def large(self) -> None:
        """Take one step whose norm is above the limit."""
        self.clock.advance(STEP_SECONDS)
        self.reporter.job.step("skipped_large", 71.0)
        self.reporter.send()


def skipping(url: str) -> None:
    """A run with one bad step, a spike, and a streak that continues."""
    training = Training(url, "lm-7b", 610)
    training.good(180)
    training.bad(decoder__layer_2__mlp__w=384)
    training.good(230)
    training.large()
    training.good(190)
    for values in (3, 60, 262_144):
        more = {"decoder__layer_5__mlp__w": 27} if values > 3 else {}
        training.bad("skipped_not_finite", decoder__layer_4__attention__w=values, **more)


def healthy(url: str) -> None:
    """A healthy run with two streaks in its past."""
    training = Training(url, "vit-large", 420)
    training.good(150)
    training.bad(decoder__layer_2__mlp__w=384)
    training.good(230)
    for _ in range(3):
        training.bad(decoder__layer_1__attention__w=128)
    training.good(40)


def gave_up(url: str) -> None:
    """A run with a streak longer than the guard's limit."""
    training = Training(url, "diffusion", 310)
    training.good(300)
    for values in (1, 12, 12, 40, 44):
        training.bad(encoder__block_1__conv=values)
    training.bad("accepted_not_finite", encoder__block_1__conv=44)


def paused(url: str) -> None:
    """A run of an hour and a half with two pauses, and slow steps between them."""
    training = Training(url, "nightly", 13_500)
    for steps, seconds, pause in ((600, 1.0, 1800.0), (900, 0.5, 400.0), (300, 5.0, 120.0), (100, 1.0, 0.0)):
        for _ in range(steps // 50):
            training.good(50, seconds)
            if training.rng.random() < 0.4:
                training.bad(embed__table=2)
        training.clock.advance(pause)


def pod(url: str) -> None:
    """A run of 256 processes: one failed, three skip, two never reported."""
    for process in range(254):
        training = Training(url, "llama-pod", 60, process=process, process_count=256, incarnation=f"e{process}")
        training.rng = random.Random(1)
        training.good(60)
        if process in {17, 130, 131}:
            training.bad(decoder__layer_4__mlp__w=1)
        if process == 77:
            training.reporter.send("failed")


def main() -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        numbers = itertools.count()

        def exporter() -> RunningExporter:
            return RunningExporter(Path(directory) / f"data-{next(numbers)}")

        scenes: list[tuple[RunningExporter, Callable[[str], None]]] = [(exporter(), healthy)]
        try:
            one = scenes[0][0]
            healthy(one.url)
            picture(chromium, one.url, "vit-large", "page-dark", scheme="dark")
            picture(chromium, one.url, "vit-large", "page-phone", viewport=PHONE)
            many = exporter()
            scenes.append((many, skipping))
            skipping(many.url)
            picture(chromium, many.url, "lm-7b", "page")
            for scene in (healthy, gave_up, paused, pod):
                scene(many.url)
            picture(chromium, many.url, "diffusion", "page-gave-up")
            picture(chromium, many.url, "nightly", "page-time", query="&axis=time&window=all", part="#norm")
            picture(chromium, many.url, "llama-pod", "page-pod")
            picture(chromium, many.url, "lm-7b", "page-disconnected", before=many.kill9)
        finally:
            for running, _ in scenes:
                running.stop()
            chromium.close()


def picture(
    chromium: Browser,
    url: str,
    run: str,
    name: str,
    *,
    viewport: dict[str, int] = DESK,
    scheme: str = "light",
    query: str = "",
    part: str | None = None,
    before: Callable[[], None] | None = None,
) -> None:
    """Open the page of a run, call `before`, and write a screenshot to docs/images/`name`.png."""
    context = chromium.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]  # playwright's TypedDict and Literal
    page = context.new_page()
    page.goto(f"{url}/?run={run}{query}")
    page.locator(".chart[data-marks]").wait_for()
    if before is not None:
        before()
        page.locator("#lost").wait_for()
    page.wait_for_timeout(1500)
    target = IMAGES / f"{name}.png"
    if part is None:
        page.screenshot(path=target, full_page=True)
    else:
        page.locator(part).screenshot(path=target)
    context.close()


if __name__ == "__main__":
    main()
