"""A run that stopped itself: the page says why, and where to roll back to."""

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.page.desk import MakeReporter, OpenDesk

pytestmark = pytest.mark.programs("chromium")

REASON = "skipped: 5 of the last 100 steps were skipped"


def test_a_stop_is_shown_live_with_its_reason_and_the_step_to_roll_back_to(
    open_desk: OpenDesk, reporter: MakeReporter
) -> None:
    """In the health panel, and among the events. The reason is text, whatever is in it."""
    desk, training = open_desk(), reporter()
    training.good(8)
    desk.open(training.job.run)
    desk.health("ok")
    report = training.job.report("stopped", reason=f"{REASON} <b>", last_clean_step=1234)
    assert httpx.post(f"{desk.url}/v1/reports", json=report, trust_env=False).status_code == 200
    desk.health("stopped")
    expect(desk.part("health")).to_contain_text("Stopped")
    expect(desk.part("health")).to_contain_text(f"{REASON} <b>; restore a checkpoint at or before 1,234.")
    event = desk.part("events").locator('[data-kind="stopped"]')
    expect(event).to_contain_text("Stopped")
    expect(event).to_contain_text(f"after 8 steps · {REASON} <b> · roll back to step 1,234")
