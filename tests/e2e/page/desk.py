"""An operator's browser tab, and a training job that reports: what the page's tests are made of."""

import dataclasses
import re
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
    """An operator's browser tab, and what went wrong in it."""

    page: Page
    url: str
    problems: list[str]
    expected: re.Pattern[str] | None = None
    """What the console may say although it is an error."""

    def open(self, run: str | None = None, **query: str) -> Page:
        wanted = {"run": run, **query} if run else query
        self.page.goto(f"{self.url}/?{urlencode(wanted)}")
        return self.page

    def part(self, name: str) -> Locator:
        return self.page.locator(f"#{name}")

    def health(self, name: str) -> None:
        """Waits until the verdict is this health."""
        expect(self.part("verdict")).to_have_attribute("data-health", name)

    def chart(self) -> Locator:
        return self.page.locator(".chart")

    def zoom(self, since: float, until: float) -> None:
        """Drag over the chart, from one share of its width to another."""
        box = self.page.locator(".u-over").bounding_box()
        assert box is not None
        self.page.mouse.move(box["x"] + since * box["width"], box["y"] + 50)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + until * box["width"], box["y"] + 60, steps=8)
        expect(self.page.locator(".u-select")).not_to_have_css("width", "0px")
        self.page.mouse.up()

    def check(self) -> None:
        """The policy refused nothing, and nothing failed that the test did not expect to."""
        assert self.page.evaluate("window.refused") == []
        unexpected = [said for said in self.problems if not (self.expected and self.expected.search(said))]
        assert unexpected == []


@dataclasses.dataclass
class Reporter:
    """A job that reports to the exporter."""

    job: Job
    url: str

    @property
    def run(self) -> str:
        return self.job.run

    def send(self, state: str = "running") -> None:
        answer = httpx.post(f"{self.url}/v1/reports", json=self.job.report(state), trust_env=False)
        assert answer.status_code == 200, answer.text

    def good(self, count: int = 1, norm: float = 0.8) -> None:
        """Steps of an accumulation window of four, with finite gradients; then a report."""
        for _ in range(count):
            mini = (self.job.gauges.get("mini_step", 0) + 1) % 4
            self.job.gauges |= {"mini_step": mini, "guard_not_finite_count": 0}
            self.job.step("accumulated" if mini else "applied", norm)
        self.send()

    def bad(self, *, replica: dict[str, Any] | None = None, **offenders: int) -> None:
        """One step that the guard rejects; then a report."""
        self.job.gauges["guard_not_finite_count"] = self.job.gauges.get("guard_not_finite_count", 0) + 1
        self.job.step("skipped_not_finite", "NaN", replica=replica, **offenders)
        self.send()

    def large(self, norm: float = 90.0) -> None:
        self.job.step("skipped_large", norm)
        self.send()


OpenDesk = Callable[..., Desk]
MakeReporter = Callable[..., Reporter]
