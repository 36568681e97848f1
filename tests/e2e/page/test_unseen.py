"""What the page shows of steps that nobody observed: never plain green."""

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.page.desk import MakeReporter, OpenDesk
from tests.exporter.trainer import State

pytestmark = pytest.mark.programs("chromium")


@pytest.mark.parametrize("bad", [13, 0])
def test_a_run_with_unobserved_steps_is_not_green_and_says_how_many(
    open_desk: OpenDesk, reporter: MakeReporter, bad: int
) -> None:
    """With non-finite ones among them it is a warning."""
    desk, training = open_desk(), reporter()
    hidden = State()
    for step in range(39):
        hidden.step(*(("skipped_not_finite", {"w": 1}) if step < bad else ("applied", {})))
    training.job.totals = training.job.at_start = hidden.counters()
    training.good()
    desk.open(training.run)
    health = desk.part("health")
    expect(health).to_have_class(f"health {'warning' if bad else 'idle'}")
    expect(health).to_contain_text(f"39 steps were not observed{', 13 of them non-finite' if bad else ''}.")
    expect(desk.page.locator(".tile.steps .foot")).to_contain_text(
        re.compile(r"39 unseen \(13 non-finite\)" if bad else r"39 unseen$")
    )
    desk.check()
