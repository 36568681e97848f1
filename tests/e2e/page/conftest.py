"""Fixtures for the tests of the page: a real Chromium, a real exporter, and jobs that report."""

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


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium for all test files of a worker; each tab has its own context.

    The headless shell is the same engine without a desktop browser around it: it takes 0.7 of the time.
    """
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, args=[*arguments, "--disable-component-update", "--disable-sync"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningExporter]:
    """One exporter of whole jobs per test file, for tests that look only at their own run."""
    running = RunningExporter(tmp_path_factory.mktemp("page") / "data", "--scope", "job")
    yield running
    running.stop()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """The address of the exporter: the shared one, or the test's own if it uses the fixture `exporter`."""
    name = "exporter" if "exporter" in request.fixturenames else "shared"
    running: RunningExporter = request.getfixturevalue(name)
    return running.url


@pytest.fixture
def open_desk(browser: Browser, url: str) -> Iterator[OpenDesk]:
    """Opens tabs. After the test it checks that they made no request elsewhere, broke no policy and logged no error."""
    opened: list[tuple[BrowserContext, Desk]] = []

    def open_(viewport: dict[str, int] = DESK, scheme: str = "light") -> Desk:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]  # playwright's TypedDict and Literal
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.add_init_script(WATCH)
        desk = Desk(page, url, [])

        def on_request(request: Request) -> None:
            target = urlsplit(request.url)
            if target.scheme != "data" and f"{target.scheme}://{target.netloc}" != url:
                desk.problems.append(f"another origin: {request.url}")

        def on_console(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"}:
                desk.problems.append(f"{message.text} {message.location.get('url', '')}".strip())

        def on_dialog(dialog: Dialog) -> None:
            desk.problems.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("request", on_request)
        page.on("pageerror", lambda error: desk.problems.append(f"exception: {error}"))
        page.on("console", on_console)
        page.on("dialog", on_dialog)
        opened.append((context, desk))
        return desk

    expect.set_options(timeout=20_000)
    yield open_
    for context, desk in opened:
        desk.check()
        context.close()


@pytest.fixture
def reporter(url: str, request: pytest.FixtureRequest) -> MakeReporter:
    """Makes jobs. By default the run has the name of the test."""
    name = re.sub(r"\W+", "-", request.node.name)

    def make(run: str = name, **job: Any) -> Reporter:
        # With a minute between reports no job becomes stale during its test.
        made = Reporter(Job(**{"run": run, "clock": time.time, "interval": 60.0, **job}), url)
        made.job.gauges |= {**GUARD, "mini_step": 0, "guard_not_finite_count": 0}
        return made

    return make
