"""The chart on the time axis: positions of steps, gaps, and the axis in the address."""

import copy
import itertools
import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.page.desk import MakeReporter, OpenDesk, Reporter
from tests.exporter.running import START, TurnedClock

pytestmark = pytest.mark.programs("chromium")

PAUSE = 600.0


def paused(training: Reporter) -> list[tuple[int, float]]:
    """Report 100 steps one second apart, a pause of ten minutes, and 50 more; return the bad steps with their times."""
    clock = training.job.clock
    assert isinstance(clock, TurnedClock)
    bad = []
    for step in range(1, 151):
        clock.advance(PAUSE if step == 101 else 1.0)
        if step in {30, 100, 120}:
            training.job.step("skipped_not_finite", "NaN", **{f"layer_{step}/w": 2})
            bad.append((step, clock()))
        else:
            training.job.step("applied", 1.0)
    training.send()
    return bad


@pytest.fixture
def training(reporter: MakeReporter) -> Reporter:
    """A job with a clock that the test sets."""
    return reporter(clock=TurnedClock())


def follow(page: Page, chart: Locator, marked: str) -> None:
    """Follow the run, and wait until the chart shows these marks."""
    page.get_by_label("Gradient norm over time").press("Escape")
    expect(chart).to_have_attribute("data-marked", marked)


# The columns of the plot that have a pixel of each colour, as fractions of its width.
COLOURED = """(colours) => {
    const over = document.querySelector(".chart .u-over").getBoundingClientRect();
    const canvas = document.querySelector(".chart canvas");
    const box = canvas.getBoundingClientRect();
    const part = [over.x - box.x, over.y - box.y, over.width, over.height].map((v) => Math.round(v * devicePixelRatio));
    const { data, width } = canvas.getContext("2d").getImageData(...part);
    return colours.map((colour) => {
      const wanted = getComputedStyle(document.documentElement).getPropertyValue(colour).trim();
      const [r, g, b] = [1, 3, 5].map((i) => parseInt(wanted.slice(i, i + 2), 16));
      const columns = new Set();
      for (let i = 0; i < data.length; i += 4) {
        if (Math.hypot(data[i] - r, data[i + 1] - g, data[i + 2] - b) < 6) columns.add((i / 4) % width);
      }
      return [...columns].sort((a, b) => a - b).map((x) => x / width);
    });
}"""


def test_pause_is_as_wide_as_it_was_long(open_desk: OpenDesk, training: Reporter) -> None:
    """On the time axis the line has a shaded gap during the pause; on the step axis it has none."""
    desk = open_desk()
    paused(training)
    page = desk.open(training.run, window="all", axis="time")
    expect(desk.chart()).to_have_attribute("data-marked", "30 100 120")
    expect(desk.chart()).to_have_attribute("data-gaps", "1")
    lined, ground = page.evaluate(COLOURED, ["--norm-line", "--sunken"])
    whole = 99 + PAUSE + 49
    part = 99 / whole
    before, after = [x for x in lined if x < 0.5], [x for x in lined if x >= 0.5]
    assert max(before) - min(before) == pytest.approx(part, abs=0.02)
    assert min(after) - max(before) == pytest.approx(PAUSE / whole, abs=0.02)
    assert min(ground) == pytest.approx(max(before), abs=0.01)
    assert max(ground) == pytest.approx(min(after), abs=0.01)

    page.get_by_role("button", name="by step").click()
    expect(desk.chart()).to_have_attribute("data-gaps", "0")
    page.wait_for_url(lambda url: "axis" not in url)
    (lined,) = page.evaluate(COLOURED, ["--norm-line"])
    assert max(b - a for a, b in itertools.pairwise(lined)) < 0.02


def test_address_holds_the_time_axis_and_its_range(open_desk: OpenDesk, training: Reporter) -> None:
    """A zoom stays while steps arrive and after a reload. Follow, arrow keys and links to steps work, too."""
    desk = open_desk()
    bad = paused(training)
    page = desk.open(training.run, window="all")
    page.get_by_role("button", name="by time").click()
    page.wait_for_url(re.compile(r"axis=time"))
    chart = desk.chart()
    expect(chart).to_have_attribute("data-gaps", "1")
    desk.zoom(0.5, 0.975)
    page.wait_for_url(re.compile(r"from=\d+(\.\d+)?&to="))
    expect(chart).to_have_attribute("data-marked", "120")
    training.job.clock.advance(1.0)  # type: ignore[attr-defined]  # it is a TurnedClock
    training.bad(w=1)
    expect(page.locator(".tile.steps .value")).to_have_text("151")
    expect(chart).to_have_attribute("data-marked", "120")
    page.reload()
    expect(chart).to_have_attribute("data-marked", "120")

    follow(page, chart, "30 100 120 151")
    readout = page.locator("#norm .readout")
    for step in (151, 120, 100):
        page.keyboard.press("ArrowLeft")
        expect(readout).to_contain_text(f"Step {step}")
    expect(readout).to_contain_text("layer_100/w (2 values)")
    page.wait_for_url(lambda url: f"step=100&at={bad[1][1]:.0f}" in url)

    desk.every_event().get_by_role("button", name="step 30").first.click()
    page.wait_for_url(lambda url: f"step=30&at={bad[0][1]:.0f}" in url)
    expect(readout).to_contain_text("Step 30")
    page.get_by_role("button", name="by step").click()
    expect(readout).to_contain_text("Step 30")
    expect(page.get_by_role("button", name="Follow", exact=True)).to_be_visible()


def test_repeated_step_is_shown_twice(open_desk: OpenDesk, training: Reporter) -> None:
    """After a rollback the bad step before it stays at its time, and the arrow keys reach both."""
    desk = open_desk()
    job, clock = training.job, training.job.clock
    assert isinstance(clock, TurnedClock)

    def take(count: int, *bad: int) -> None:
        for _ in range(count):
            clock.advance(1.0)
            offenders: dict[str, Any] = {"w": 1} if job.totals["steps"] + 1 in bad else {}
            job.step("skipped_not_finite" if offenders else "applied", "NaN" if offenders else 1.0, **offenders)
        training.send()

    take(40, 25)
    back = {**job.totals, "steps": 20, "outcomes": {**job.totals["outcomes"], "applied": 20, "skipped_not_finite": 0}}
    back |= {"gradient_steps": 20, "not_finite_steps": 0, "parameters": {}}
    job.incarnation, job.seq, job.totals, job.at_start = "e2", 0, back, copy.deepcopy(back)
    take(40, 50)
    page = desk.open(training.run, axis="time")
    expect(desk.chart()).to_have_attribute("data-marked", "25 50")
    page.get_by_label("Gradient norm over time").focus()
    for at in (40 + 30, 25):
        page.keyboard.press("ArrowLeft")
        page.wait_for_url(re.compile(f"at={START + at:.0f}"))
    page.get_by_role("button", name="by step").click()
    expect(desk.chart()).to_have_attribute("data-marked", "50")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"axis": "norm"}, "axis=norm is not “step” or “time”"),
        ({"axis": "time", "from": "soon", "to": "5"}, "from=soon is not a time"),
        ({"axis": "time", "from": "2026-01-02", "to": "2026-01-01"}, "The range from 2026-01-02 00:00:00"),
    ],
)
def test_wrong_times_in_the_address_are_reported(
    open_desk: OpenDesk, training: Reporter, query: dict[str, str], message: str
) -> None:
    """The page names the wrong value, and follows the run."""
    desk = open_desk()
    paused(training)
    desk.open(training.run, **query)
    expect(desk.part("notices")).to_contain_text(message)
    expect(desk.chart()).to_have_attribute("data-marked", "30 100 120")


def test_slow_steps_are_visible_among_many_fast_ones(open_desk: OpenDesk, training: Reporter) -> None:
    """After 20,000 steps in three minutes come 100 steps of a minute each; the pointer finds these."""
    clock = training.job.clock
    assert isinstance(clock, TurnedClock)
    fast, slow = 20_000, 100
    for seconds, count in ((0.01, fast), (60.0, slow)):
        for number in range(1, count + 1):
            clock.advance(seconds)
            training.job.step("applied", 1.0)
            if number % 5000 == 0:  # a report has a limit
                training.send()
    training.send()
    desk = open_desk()
    page = desk.open(training.run, window="all", axis="time")
    expect(desk.chart()).to_have_attribute("data-buckets", re.compile(r"^[1-9]"))
    expect(desk.chart()).to_have_attribute("data-gaps", "0")
    expect(page.locator(".connection.live")).to_be_visible()
    plot = page.locator(".u-over")
    box = plot.bounding_box()
    assert box is not None
    low, high = map(float, (desk.chart().get_attribute("data-range") or "").split())
    for number in (3, 40, 41, 77, 98):
        at = START + fast * 0.01 + number * 60.0
        plot.hover(position={"x": box["width"] * (at - low) / (high - low), "y": 50})
        expect(page.locator("#norm .readout")).to_contain_text(re.compile(rf"^Step {fast + number:,} "))
