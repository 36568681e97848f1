"""The heatmap of parameters: what it shows, its keyboard, its table and its filter."""

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.page.desk import MakeReporter, OpenDesk, Reporter
from tests.exporter.running import TurnedClock

pytestmark = pytest.mark.programs("chromium")

LAYERS = 12


@pytest.fixture
def training(reporter: MakeReporter) -> Reporter:
    """A NaN that spreads by one layer a step, from layer 11 down to layer 0, after 60 good steps; then a spike."""
    made = reporter(clock=TurnedClock())
    clock = made.job.clock
    assert isinstance(clock, TurnedClock)

    def step(*args: object, **offenders: int) -> None:
        clock.advance(1.0)
        made.job.step(*args, **offenders)  # type: ignore[arg-type]  # passed on as they are

    for _ in range(60):
        step("applied", 1.0)
    for reached in range(1, LAYERS + 1):
        step("skipped_not_finite", "NaN", **{f"layer_{layer}/w": 2 for layer in range(LAYERS - reached, LAYERS)})
    for _ in range(20):
        step("applied", 1.0)
    step("skipped_large", 90.0)
    made.job.offenders += [{"step": made.job.totals["steps"], "parameter": "embed/table", "norm_share": 0.75}]
    made.send()
    return made


def test_heatmap_shows_the_spread_and_is_used_with_the_keyboard(open_desk: OpenDesk, training: Reporter) -> None:
    """Each layer begins a step after the one above it. Enter shows the time of a cell in the chart."""
    desk = open_desk()
    page = desk.open(training.run)
    panel = desk.part("parameters")
    plot = panel.locator(".heat-plot")
    expect(plot).to_have_attribute("data-rows", str(LAYERS + 1))
    # Every non-finite gradient is in a cell of its own: a column is shorter than a step.
    expect(plot).to_have_attribute("data-cells", str(sum(range(1, LAYERS + 1))))
    labels = panel.locator(".heat-labels li")
    expect(labels).to_have_text(["embed/table", *(f"layer_{layer}/w" for layer in range(LAYERS))])
    panel.get_by_role("button", name="by first step").click()
    expect(labels).to_have_text([*(f"layer_{layer}/w" for layer in reversed(range(LAYERS))), "embed/table"])

    plot.focus()
    cell = panel.locator("#heat-cell")
    page.keyboard.press("End")
    for _ in range(LAYERS):
        page.keyboard.press("ArrowDown")
    expect(cell).to_contain_text("embed/table")
    for _ in range(3):
        if "75 %" in (cell.text_content() or ""):
            break
        page.keyboard.press("ArrowLeft")
    expect(cell).to_contain_text("up to 75 % of a norm that was skipped as too large")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"from=\d+&to=\d+"))
    expect(desk.chart()).to_have_attribute("data-marked", "93")


def test_table_and_filter_of_the_heatmap(open_desk: OpenDesk, training: Reporter) -> None:
    """The table has the figures of the rows; the filter chooses among all parameters."""
    desk = open_desk()
    desk.open(training.run)
    panel = desk.part("parameters")
    panel.get_by_text("As a table").click()
    rows = panel.locator("details tbody tr")
    expect(rows).to_have_count(LAYERS + 1)
    expect(rows.nth(1)).to_contain_text(re.compile(r"layer_0/w721\D"))
    expect(rows.nth(12)).to_contain_text(re.compile(r"layer_11/w6112\D"))
    expect(rows.nth(0)).to_contain_text("75 %")
    panel.get_by_role("searchbox").fill("LAYER_1")
    expect(rows).to_have_count(3)
    panel.get_by_role("searchbox").fill("no such path")
    expect(panel.locator(".heatmap")).to_be_hidden()
    panel.get_by_role("searchbox").fill("")
    expect(rows).to_have_count(LAYERS + 1)


def test_a_run_without_bad_steps_has_no_heatmap(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    desk, training = open_desk(), reporter()
    training.good(30)
    desk.open(training.run)
    desk.health("ok")
    expect(desk.part("parameters").locator(".heatmap")).to_be_hidden()
