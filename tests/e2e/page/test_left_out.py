"""What the page shows of a run that is too large for one answer."""

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.page.desk import MakeReporter, OpenDesk

pytestmark = pytest.mark.programs("chromium")


def test_bad_steps_that_are_too_many_to_send_are_counted_exactly(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """The shares in the strip and the summary count all 9,000, though not each of them is sent."""
    desk, training = open_desk(), reporter()
    for _ in range(10):
        for step in range(1000):
            training.job.step("skipped_large" if step % 10 else "applied", 90.0)
        training.send()
    page = desk.open(training.run, window="all")
    expect(page.locator("#norm-summary")).to_contain_text(
        "Steps 1 to 10,000: 9,000 bad steps (9,000 skipped, large norm)"
    )
    expect(desk.part("notices")).to_be_hidden()
    desk.zoom(0.4, 0.45)
    expect(desk.chart()).to_have_attribute("data-buckets", "0")
    summary = page.locator("#norm-summary").text_content() or ""
    since, until = (int(step.replace(",", "")) for step in re.findall(r"Steps ([\d,]+) to ([\d,]+)", summary)[0])
    bad = sum((step - 1) % 10 > 0 for step in range(since, until + 1))
    expect(page.locator("#norm-summary")).to_contain_text(f": {bad} bad steps (")
    desk.check()
