"""Fixtures of the page's tests: a real Chromium, a real exporter, tabs that are watched, jobs that report."""

import re
import shutil
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Request, expect, sync_playwright

from tests.conftest import RunningExporter
from tests.e2e.page.desk import DESK, GUARD, Desk, MakeReporter, OpenDesk, Reporter
from tests.exporter.running import Job

WATCH = """
    window.refused = [];
    document.addEventListener("securitypolicyviolation", (e) => refused.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for a file of tests; each tab has a context of its own."""
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*arguments, "--disable-component-update", "--disable-sync"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningExporter]:
    """One exporter for the tests that look at their own run only."""
    running = RunningExporter(tmp_path_factory.mktemp("page") / "data")
    yield running
    running.stop()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """Where the exporter is: the shared one, unless the test asks for `exporter`, one of its own."""
    name = "exporter" if "exporter" in request.fixturenames else "shared"
    running: RunningExporter = request.getfixturevalue(name)
    return running.url


@pytest.fixture
def open_desk(browser: Browser, url: str) -> Iterator[OpenDesk]:
    """Opens tabs; after the test each must have asked nobody but the exporter, broken no policy and logged no error."""
    opened: list[tuple[BrowserContext, Desk]] = []

    def open_(viewport: dict[str, int] = DESK, scheme: str = "light") -> Desk:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]  # playwright's TypedDict and Literal
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.add_init_script(WATCH)
        desk = Desk(page, url, [])

        def asked(request: Request) -> None:
            target = urlsplit(request.url)
            if target.scheme != "data" and f"{target.scheme}://{target.netloc}" != url:
                desk.problems.append(f"another origin: {request.url}")

        def logged(said: ConsoleMessage) -> None:
            if said.type in {"error", "warning"}:
                desk.problems.append(said.text)

        def asks(dialog: Dialog) -> None:
            desk.problems.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("request", asked)
        page.on("pageerror", lambda error: desk.problems.append(f"exception: {error}"))
        page.on("console", logged)
        page.on("dialog", asks)
        opened.append((context, desk))
        return desk

    expect.set_options(timeout=20_000)
    yield open_
    for context, desk in opened:
        desk.check()
        context.close()


@pytest.fixture
def reporter(url: str, request: pytest.FixtureRequest) -> MakeReporter:
    """Makes jobs; the run is called after the test unless it says otherwise."""
    name = re.sub(r"\W+", "-", request.node.name)

    def make(run: str = name, **job: Any) -> Reporter:
        # A minute between reports: none of these jobs goes stale while its test looks.
        made = Reporter(Job(**{"run": run, "clock": time.time, "interval": 60.0, **job}), url)
        made.job.gauges |= {**GUARD, "mini_step": 0, "guard_not_finite_count": 0}
        return made

    return make
