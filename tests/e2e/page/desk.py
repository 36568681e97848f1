"""A browser tab on the page, and a training job that reports: the parts of the page's tests."""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import httpx
from playwright.sync_api import Locator, Page, expect

from tests.exporter.running import Job

DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
GUARD = {"guard_not_finite_limit": 5, "every_k": 4, "gradient_norm_limit": 50.0}
BAD = ("skipped_not_finite", "skipped_large", "skipped_other", "accepted_not_finite")


@dataclasses.dataclass
class Desk:
    """A browser tab on the page, and the errors it logged."""

    page: Page
    url: str
    problems: list[str]
    expected: re.Pattern[str] | None = None
    """Console errors that the test expects."""

    def open(self, run: str | None = None, **query: str) -> Page:
        """Load the page, with the run and the other values in its address."""
        wanted = {"run": run, **query} if run else query
        self.page.goto(f"{self.url}/?{urlencode(wanted)}")
        return self.page

    def part(self, name: str) -> Locator:
        return self.page.locator(f"#{name}")

    def health(self, name: str) -> None:
        """Wait until the health panel shows this health."""
        expect(self.part("health")).to_have_attribute("data-health", name)

    def every_event(self) -> Locator:
        """List an event for each bad step, too; the list of events."""
        self.part("events").get_by_role("button", name="Every bad step").click()
        expect(self.part("events").get_by_role("button", name="Every bad step")).to_have_attribute(
            "aria-pressed", "true"
        )
        return self.part("events")

    def row(self, run: str) -> Locator:
        """The row of a run in the table of runs."""
        return self.part("runs").locator(f'tr[data-run="{run}"]')

    def chart(self) -> Locator:
        return self.page.locator(".chart")

    def wait_until(self, script: str, holds: Callable[[Any], bool], argument: Any = None) -> Any:
        """Evaluate the script until `holds` accepts its result, and return that; fails after 20 s."""
        deadline = time.monotonic() + 20
        while not holds(result := self.page.evaluate(script, argument)):
            assert time.monotonic() < deadline, f"last result: {result}"
            self.page.wait_for_timeout(50)
        return result

    def zoom(self, since: float, until: float) -> None:
        """Drag over the chart, from one fraction of its width to another."""
        chart = self.page.locator(".u-over")
        chart.scroll_into_view_if_needed()  # a long list of runs is above it
        box = chart.bounding_box()
        assert box is not None
        self.page.mouse.move(box["x"] + since * box["width"], box["y"] + 50)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + until * box["width"], box["y"] + 60, steps=8)
        expect(self.page.locator(".u-select")).not_to_have_css("width", "0px")
        self.page.mouse.up()

    def check(self) -> None:
        """The content security policy refused nothing, and there were no unexpected errors."""
        assert self.page.evaluate("window.refused") == []
        unexpected = [text for text in self.problems if not (self.expected and self.expected.search(text))]
        assert unexpected == []


@dataclasses.dataclass
class Reporter:
    """A job that reports to the exporter."""

    job: Job
    url: str
    token: str | None = None

    @property
    def run(self) -> str:
        return self.job.run

    def send(self, state: str = "running", **changes: Any) -> None:
        headers = {} if self.token is None else {"authorization": f"Bearer {self.token}"}
        report = self.job.report(state, **changes)
        # It is plain HTTP: loading the certificates would take longer than the request.
        answer = httpx.post(f"{self.url}/v1/reports", json=report, headers=headers, trust_env=False, verify=False)
        assert answer.status_code == 200, answer.text

    def good(self, count: int = 1, norm: float = 0.8) -> None:
        """Take steps with finite gradients in accumulation windows of four, and send a report."""
        for _ in range(count):
            mini = (self.job.gauges.get("mini_step", 0) + 1) % 4
            self.job.gauges |= {"mini_step": mini, "guard_not_finite_count": 0}
            self.job.step("accumulated" if mini else "applied", norm)
        self.send()

    def bad(self, *, replica: Any = None, **offenders: int) -> None:
        """Take one step that the guard rejects, and send a report."""
        self.job.gauges["guard_not_finite_count"] = self.job.gauges.get("guard_not_finite_count", 0) + 1
        self.job.step("skipped_not_finite", "NaN", replica=replica, **offenders)
        self.send()

    def large(self, norm: float = 90.0) -> None:
        """Take one step whose norm is above the limit, and send a report."""
        self.job.step("skipped_large", norm)
        self.send()


OpenDesk = Callable[..., Desk]
MakeReporter = Callable[..., Reporter]
