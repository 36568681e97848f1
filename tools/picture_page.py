"""Take the pictures of the page for docs/guides/page.md: `python -m tools.picture_page [NAME ...]` writes docs/images/.

Each picture has an exporter of its own, jobs that report like training processes, and a real Chromium. The clock of
exporter and jobs starts in the past and is turned to now, so that hours pass at once: each scene is rehearsed to learn
how long it lasts. Run this after each visible change of the page, and look at every picture.
"""

import argparse
import contextlib
import dataclasses
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import RunningExporter
from tests.e2e.page.desk import DESK, GUARD, PHONE, Reporter
from tests.exporter.running import Job, TurnedClock, served
from tools.page_scenes import (
    MovingClock,
    Site,
    conflict,
    degraded,
    diverged,
    failed,
    finished,
    gave_up,
    host,
    million,
    ok,
    paused,
    pod,
    runs,
    skipping,
    stale,
    stalled,
    starting,
    starved,
    stopped,
)

IMAGES = Path(__file__).parent.parent / "docs" / "images"
WIDE: Final = {"width": 1920, "height": 1080}


@dataclasses.dataclass(frozen=True)
class Picture:
    """How the page is opened for a picture, and which part of it is in it."""

    viewport: dict[str, int] = dataclasses.field(default_factory=lambda: DESK)
    scheme: str = "light"
    query: str = ""
    part: str | None = None
    whole: bool = False
    """Whether the whole page is in the picture, or only what is in view."""
    prepare: Callable[[Page], None] | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """Who reports, and the pictures that are taken of it."""

    play: Callable[[Site], None]
    pictures: dict[str, Picture]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def open_incident(page: Page) -> None:
    """Show the events of the first incident."""
    page.locator("#incidents summary").first.click()
    page.locator("#incidents .feed li").first.wait_for()


JOB: Final = {"scope": "job"}
SCENES: Final = (
    Scene(
        skipping,
        {
            "page": Picture(whole=True),
            "page-dark": Picture(whole=True, scheme="dark"),
            "page-phone": Picture(whole=True, viewport=PHONE),
        },
    ),
    Scene(gave_up, {"page-gave-up": Picture(), "page-wide": Picture(viewport=WIDE, whole=True, prepare=open_incident)}),
    Scene(stale, {"page-stale": Picture()}),
    Scene(conflict, {"page-conflict": Picture()}),
    Scene(diverged, {"page-diverged": Picture()}),
    Scene(failed, {"page-failed": Picture(whole=True)}),
    Scene(stopped, {"page-stopped": Picture()}),
    Scene(stalled, {"page-stalled": Picture()}),
    Scene(starved, {"page-starved": Picture()}),
    Scene(starting, {"page-starting": Picture()}),
    Scene(finished, {"page-finished": Picture()}),
    Scene(ok, {"page-healthy": Picture()}),
    Scene(degraded, {"page-degraded": Picture()}, JOB),
    Scene(host, {"page-host": Picture()}),
    Scene(paused, {"page-time": Picture(query="&axis=time&window=all", part="#norm")}),
    Scene(
        runs(40),
        {
            "page-runs": Picture(),
            "page-runs-dark": Picture(scheme="dark"),
            "page-runs-phone": Picture(viewport=PHONE),
        },
    ),
    Scene(runs(1000), {"page-runs-1000": Picture(viewport=WIDE)}),
    Scene(
        pod,
        {
            "page-pod": Picture(whole=True),
            "page-pod-dark": Picture(scheme="dark", part="#pod"),
            "page-pod-phone": Picture(viewport=PHONE, part="#pod"),
        },
        JOB,
    ),
    Scene(million, {"page-million": Picture(viewport=WIDE, query="&window=all")}),
)


def take(chromium: Browser, scene: Scene, wanted: dict[str, Picture], directory: Path) -> None:
    """Play the scene and write `wanted` of its pictures to docs/images/."""
    rehearsal = Site(TurnedClock(0.0))
    scene.play(rehearsal)
    clock = MovingClock(time.time() - rehearsal.clock.now)
    with served(directory, clock, new_runs_per_minute=100_000, **scene.settings) as exporter:
        site = Site(clock, exporter)
        scene.play(site)
        site.tick()
        for name, picture in wanted.items():
            page = open_page(chromium, exporter.url, picture)
            if picture.prepare is not None:
                picture.prepare(page)
            shoot(page, name, picture)


def open_page(chromium: Browser, url: str, wanted: Picture) -> Page:
    """The page, with its chart drawn."""
    context = chromium.new_context(viewport=wanted.viewport, color_scheme=wanted.scheme, reduced_motion="reduce")  # type: ignore[arg-type]  # playwright's TypedDict and Literal
    page = context.new_page()
    page.goto(f"{url}/?{wanted.query}")
    page.locator(".chart[data-marks]").wait_for()
    page.wait_for_timeout(2500)
    return page


def shoot(page: Page, name: str, wanted: Picture) -> None:
    """Write the picture, and close the page."""
    shot = page.screenshot(full_page=wanted.whole) if wanted.part is None else page.locator(wanted.part).screenshot()
    # A page has few colours: a palette makes the picture a third as large.
    picture = (
        Image.open(io.BytesIO(shot))
        .convert("RGB")
        .quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    )
    picture.save(IMAGES / f"{name}.png", optimize=True)
    page.context.close()


def main() -> None:
    """Take all pictures, or those that are named."""
    parser = argparse.ArgumentParser(prog="python -m tools.picture_page", description=__doc__)
    parser.add_argument("names", nargs="*", help="names of pictures; all without any")
    names = parser.parse_args().names
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for number, scene in enumerate(SCENES):
            wanted = {name: one for name, one in scene.pictures.items() if not names or name in names}
            if wanted:
                take(chromium, scene, wanted, Path(directory) / str(number))
        for name in TROUBLE:
            if not names or name in names:
                trouble(chromium, name, Path(directory))
        chromium.close()


TROUBLE: Final = ("page-disconnected", "page-ill")
"""Pictures of an exporter that is gone, or that cannot store."""


def trouble(chromium: Browser, name: str, directory: Path) -> None:
    """Write the picture of an exporter in trouble, while its job goes on."""
    (directory / name).mkdir()
    with contextlib.chdir(directory / name):  # so that the banner names no directory of this machine
        exporter = RunningExporter(Path("optwrap"))
        try:
            reporter = Reporter(Job(run="lm-7b", clock=time.time, interval=30.0), exporter.url)
            reporter.job.gauges |= {**GUARD, "mini_step": 0, "guard_not_finite_count": 0}
            reporter.good(80)
            reporter.bad(decoder__layer_4__attention__w=3)
            page = open_page(chromium, exporter.url, Picture())
            if name == "page-ill":
                exporter.data_dir.rename("aside")
                page.locator("#store").wait_for()
            else:
                exporter.kill9()
                page.locator("#lost").wait_for()
            page.wait_for_timeout(12_000)
            shoot(page, name, Picture())
        finally:
            exporter.stop()


if __name__ == "__main__":
    main()
