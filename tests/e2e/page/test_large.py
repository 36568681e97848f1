"""Runs with many parameters and events, norms of any size, and wrong addresses."""

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.page.desk import MakeReporter, OpenDesk

pytestmark = pytest.mark.programs("chromium")

PARAMETERS = 4000


def test_thousands_of_parameters_can_be_found(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Each of 4,000 parameters can be found by sorting, by the filter and by showing more rows."""
    desk, training = open_desk(), reporter()
    training.good(3)
    training.bad(**{"p_03999": 1})
    names = {f"p_{number:05}": 1 for number in range(PARAMETERS - 1)}
    for _ in range(2):
        training.bad(**names)
    page = desk.open(training.run)
    panel = desk.part("parameters")
    count = panel.locator(".count")
    expect(count).to_have_text("4,000 parameters")
    expect(panel.locator("tbody tr")).to_have_count(100)
    for _ in range(2):  # most first, then least
        panel.locator("thead button").filter(has_text="Steps").click()
    first = panel.locator("tbody tr").first
    expect(first).to_contain_text("p_03999")
    expect(first.locator(".badge")).to_be_visible()
    panel.get_by_role("searchbox").fill("p_0312")
    expect(panel.locator("tbody tr")).to_have_count(10)
    panel.get_by_role("searchbox").fill("")
    panel.get_by_role("button", name="Show more").click()
    expect(panel.locator("tbody tr")).to_have_count(1100)
    expect(panel.locator(".more")).to_contain_text("2,900 more.")

    # A message of the stream has only the worst thousand parameters; the page keeps the others.
    training.bad(p_03999=5)
    expect(page.locator(".tile.streak .value")).to_have_text("4")
    expect(count).to_have_text("4,000 parameters")
    expect(panel.locator("tbody tr").first.locator("td").nth(3)).to_have_text("2")
    training.bad(**{"brand new": 1})
    expect(count).to_have_text("4,001 parameters", timeout=60_000)


def test_copy_gives_the_parameters_as_a_table(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """One line per row, in the table's order, with invisible characters written out."""
    desk, training = open_desk(), reporter()
    training.bad(**{"a\u202eb": 2, "c": 3, "other": 1})
    training.bad(c=4)
    page = desk.open(training.run)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    panel = desk.part("parameters")
    expect(panel.locator("tbody tr")).to_have_count(3)
    panel.get_by_role("button", name="Copy").click()
    expect(panel.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").split("\n") == [
        "parameter\tfirst_step\tlast_step\tsteps\tvalues",
        "c\t1\t2\t2\t7",
        "a\\u202eb\t1\t1\t1\t2",
        "other\t1\t1\t1\t1",
    ]


def test_ten_thousand_events_can_be_shown(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """All events can be listed, from the newest to the first, each once; a new one is added on top."""
    desk, training = open_desk(), reporter()
    training.send("starting")
    for _ in range(10):
        for _ in range(1000):
            training.job.step("skipped_large", 90.0)
        training.send()
    page = desk.open(training.run)
    panel = desk.every_event()
    rows = panel.locator("li")
    expect(rows).to_have_count(200)
    older = panel.locator(".more button")
    for _ in range(11):
        before = rows.count()
        older.click()
        page.wait_for_function("(n) => document.querySelectorAll('#events li').length > n", arg=before)
        if not older.is_visible():
            break
    expect(older).to_be_hidden()
    assert page.locator("#events li[data-kind=skipped]").count() == 10_000
    expect(rows.last).to_contain_text("Started")
    ids = page.evaluate("[...document.querySelectorAll('#events li')].map((row) => Number(row.dataset.event))")
    assert ids == sorted(set(ids), reverse=True)
    training.large()
    expect(rows.first).to_contain_text("step 10,001")
    panel.locator("button[title='Show step 42 in the chart']").click()
    page.wait_for_url(re.compile(r"step=42\b"))
    expect(desk.chart()).to_have_attribute("data-marked", re.compile(r"\b42\b"))


AXIS = """() => {
    const over = document.querySelector(".chart .u-over").getBoundingClientRect();
    const canvas = document.querySelector(".chart canvas");
    const box = canvas.getBoundingClientRect();
    const part = [over.x - box.x, over.y - box.y, over.width, over.height].map((v) => Math.round(v * devicePixelRatio));
    const { data, width, height } = canvas.getContext("2d").getImageData(...part);
    const wanted = getComputedStyle(document.documentElement).getPropertyValue("--norm-line").trim();
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(wanted.slice(i, i + 2), 16));
    const rows = new Set();
    for (let i = 0; i < data.length; i += 4) {
      const hit = data[i + 3] > 200 && Math.hypot(data[i] - r, data[i + 1] - g, data[i + 2] - b) < 30;
      if (hit) rows.add(Math.floor(i / 4 / width));
    }
    return [Math.min(...rows) / height, Math.max(...rows) / height];
}"""


@pytest.mark.parametrize(("low", "high"), [(1e-3, 3e38), (1e-38, 1e-30), (0.5, 0.7)])
def test_norms_of_any_size_fit_the_plot(open_desk: OpenDesk, reporter: MakeReporter, low: float, high: float) -> None:
    """The line stays inside the plot, for the largest and smallest values of float32."""
    desk, training = open_desk(), reporter()
    for step in range(60):
        training.job.step("applied", high if step % 20 == 10 else low)
    training.send()
    page = desk.open(training.run)
    expect(page.locator("#norm .readout")).to_contain_text("Last step 60")
    least = 0.5 if high / low > 10 else 0.0
    desk.wait_until(AXIS, lambda rows: 0.01 < rows[0] < rows[1] < 0.97 and rows[1] - rows[0] > least)


def test_good_step_between_two_bad_ones_is_visible(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """The line reaches its norm, far above its neighbours."""
    desk, training = open_desk(), reporter()
    for step in range(1, 201):
        if step in {99, 101}:
            training.job.step("skipped_not_finite", "NaN", w=1)
        else:
            training.job.step("applied", 1000.0 if step == 100 else 1.0)
    training.send()
    page = desk.open(training.run)
    expect(desk.chart()).to_have_attribute("data-marked", "99 101")
    top, foot = page.evaluate(AXIS)
    assert foot - top > 0.5


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"from": "40", "to": "10"}, "The range from 40 to 10 is empty"),
        ({"from": "40"}, "A range needs both"),
        ({"step": "<b>x</b>"}, "step=<b>x</b> is not a whole number."),
        ({"window": "-3"}, "window=-3 is not “all” or a number"),
        ({"process": "7"}, "Process 7 has not reported in this run"),
    ],
)
def test_wrong_values_in_the_address_are_reported(
    open_desk: OpenDesk, reporter: MakeReporter, query: dict[str, str], message: str
) -> None:
    """The page names the wrong value and ignores it."""
    desk, training = open_desk(), reporter(f"wrong-{next(iter(query))}-{len(query)}")
    desk.expected = re.compile("status of 404")
    training.good(20)
    training.bad(w=1)
    page = desk.open(training.run, **query)
    expect(desk.part("notices")).to_contain_text(message)
    expect(desk.chart()).to_have_attribute("data-marked", "21")
    assert page.locator("#notices b").count() == 0


def test_range_beyond_the_run_is_reported(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """The page says that there are no steps in the range, and which steps there are."""
    desk, training = open_desk(), reporter()
    training.good(20)
    page = desk.open(training.run, **{"from": "5000", "to": "6000"})
    expect(page.locator("#norm .readout")).to_have_text(
        "No steps from 5,000 to 6,000. The recorded steps go from 1 to 20."
    )
    page.get_by_role("button", name="Follow", exact=True).click()
    expect(page.locator("#norm .readout")).to_contain_text("Last step 20")
