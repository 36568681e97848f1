"""What the page shows of a run that is too large for one answer."""

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.page.desk import MakeReporter, OpenDesk

pytestmark = pytest.mark.programs("chromium")


def test_thinned_bad_steps_are_announced_and_zooming_in_shows_all(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """The chart draws what it gets. A notice says that bad steps are left out, until none is in the range."""
    desk, training = open_desk(), reporter()
    for _ in range(10):
        for step in range(1000):
            training.job.step("skipped_large" if step % 10 else "applied", 90.0)
        training.send()
    page = desk.open(training.run, window="all")
    notices = desk.part("notices")
    expect(notices).to_contain_text(re.compile(r"Steps 2 to 10,000: only the first and last of the 9,000 bad steps"))
    expect(desk.chart()).to_be_visible()
    desk.zoom(0.4, 0.45)
    expect(notices).to_be_hidden()
    assert page.locator(".chart").get_attribute("data-marks") not in {None, "0"}
    desk.check()
