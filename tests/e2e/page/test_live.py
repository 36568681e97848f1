"""The open page follows reports, a restart of the exporter, and a run that begins."""

import re

import pytest
from playwright.sync_api import expect

from tests.conftest import RunningExporter
from tests.e2e.page.desk import MakeReporter, OpenDesk

pytestmark = pytest.mark.programs("chromium")

# The browser logs these errors while the exporter is down.
GONE = re.compile(
    r"Failed to load resource: net::ERR_(CONNECTION_REFUSED|INCOMPLETE_CHUNKED_ENCODING|CONNECTION_RESET)"
)


@pytest.mark.usefixtures("exporter")
def test_open_page_follows_the_reports(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """From an empty exporter to a streak and its end, every panel shows the counters of the job."""
    desk, training = open_desk(), reporter("char-lm")
    page = desk.open()
    expect(page.get_by_role("heading", name="No run has reported yet")).to_be_visible()
    expect(desk.part("empty")).to_contain_text(desk.url)
    page.evaluate("window.loadedOnce = 'still the same page'")

    training.good(42)
    desk.health("ok")
    expect(page.get_by_role("heading", name="char-lm")).to_be_visible()
    expect(page).to_have_title("✓ Healthy · char-lm · optwrap")
    accumulation = page.locator(".tile.accumulation")
    expect(accumulation.locator(".value")).to_have_text("2")
    expect(accumulation.get_by_role("meter")).to_have_attribute("aria-valuetext", "2 of 4")
    expect(accumulation).to_contain_text("10 gradient steps")

    training.large()
    at = {"replica": 5, "process": 1, "device": "gpu:5", "count": 1, "of": 8}
    training.bad(replica=at, decoder__layer_3__mlp__w=262_144)
    training.bad(decoder__layer_3__mlp__w=4, embed__table=9)
    desk.health("skipping")
    expect(page).to_have_title("▲ Skipping · char-lm · optwrap")
    assert page.locator("#favicon").get_attribute("data-tier") == "warning"
    streak = page.locator(".tile.streak")
    expect(streak.locator(".value")).to_have_text("2")
    expect(streak.get_by_role("meter")).to_have_attribute("aria-valuetext", "2 of 5")
    expect(page.locator("[data-reason=not_finite] b")).to_have_text("2")
    expect(page.locator("[data-reason=large] b")).to_have_text("1")
    expect(page.locator("[data-reason=other] b")).to_have_text("0")
    expect(page.locator(".tile.norm-last .value")).to_have_text("NaN")

    # The health panel names the first non-finite parameter of this streak.
    first_bad = desk.part("health").locator(".first-bad")
    expect(first_bad).to_have_text("First non-finite: decoder/layer_3/mlp/w (262,144 values), at step 44")
    rows = desk.part("parameters").locator("tbody tr")
    expect(rows).to_have_count(2)
    worst = rows.first.locator("td")
    expect(worst).to_have_text(["firstdecoder/layer_3/mlp/w", "44", "45", "2", "262,148"])
    expect(rows.first.locator(".badge")).to_be_visible()
    expect(rows.nth(1).locator(".badge")).to_be_hidden()
    events = desk.every_event().locator("li")
    expect(events.filter(has_text="Skipped, non-finite")).to_have_count(2)
    expect(events.filter(has_text="Skipped, large norm")).to_have_count(1)
    expect(events.first).to_contain_text("step 45")
    expect(events.filter(has_text="Non-finite streak started")).to_contain_text("step 44")
    from_replica = "first from replica 5 (process 1, gpu:5), 1 of 8 replicas non-finite"
    expect(events.filter(has_text="Non-finite streak started")).to_contain_text(from_replica)
    expect(events.filter(has_text="Skipped, non-finite").filter(has_text=from_replica)).to_have_count(1)

    training.good(3)
    desk.health("ok")
    expect(first_bad).to_be_hidden()
    expect(rows.first.locator(".badge")).to_be_visible()
    expect(streak.locator(".value")).to_have_text("0")
    expect(streak).to_contain_text("longest so far 2")
    expect(desk.part("events").locator("li").first).to_contain_text("Non-finite streak ended")
    expect(page.locator(".tile.steps .value")).to_have_text("48")
    expect(desk.part("processes").locator("tbody tr")).to_have_count(1)
    expect(desk.part("processes").locator("tbody tr")).to_contain_text("node-0")
    # A new streak has its own first parameter. After it the first parameter of the whole run is marked again.
    training.bad(embed__table=3)
    expect(first_bad).to_contain_text("embed/table (3 values), at step 49")
    expect(rows.nth(1).locator(".badge")).to_be_visible()
    expect(rows.first.locator(".badge")).to_be_hidden()
    training.good(1)
    expect(rows.first.locator(".badge")).to_be_visible()
    training.send("finished")
    desk.health("finished")
    assert page.evaluate("window.loadedOnce") == "still the same page"


def test_page_shows_a_lost_connection_and_recovers(
    open_desk: OpenDesk, reporter: MakeReporter, exporter: RunningExporter
) -> None:
    """While the exporter is down the page says that its figures are old. Later it shows everything, each once."""
    desk, training = open_desk(), reporter()
    desk.expected = GONE
    training.good(10)
    training.bad(w=3)
    page = desk.open()
    desk.health("skipping")
    page.evaluate("window.loadedOnce = 'still the same page'")
    exporter.kill9()
    expect(page.locator("#lost")).to_be_visible()
    expect(page.locator("#lost")).to_contain_text("The exporter has not answered for")
    expect(page.locator("#connection")).to_contain_text("Disconnected")
    expect(page.locator("#health-word")).to_have_text("Last known: Skipping")
    # An outdated health is not shown in the colours of an alarm.
    idle = page.evaluate("getComputedStyle(document.getElementById('health')).getPropertyValue('--idle-back')")
    back = page.evaluate("getComputedStyle(document.getElementById('health')).backgroundColor")
    assert back == "rgb({}, {}, {})".format(*(int(idle.strip()[i : i + 2], 16) for i in (1, 3, 5)))
    expect(page).to_have_title("⚠ Disconnected · optwrap")

    exporter.restart()
    training.bad(w=4)
    training.good(5)
    expect(page.locator("#lost")).to_be_hidden()
    desk.health("ok")
    expect(page.locator(".tile.steps .value")).to_have_text("17")
    expect(desk.chart()).to_have_attribute("data-marked", "11 12")
    expect(desk.every_event().locator("li").filter(has_text="Skipped, non-finite")).to_have_count(2)
    training.bad(w=5)
    expect(desk.chart()).to_have_attribute("data-marked", "11 12 18")
    assert page.evaluate("window.loadedOnce") == "still the same page"


def test_unknown_run_appears_when_it_reports(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """A link to an unknown run shows a message until the run reports."""
    desk, training = open_desk(), reporter("tomorrow")
    desk.expected = re.compile("status of 404")
    page = desk.open("tomorrow")
    expect(page.get_by_role("heading", name="No run named tomorrow")).to_be_visible()
    training.good(4)
    desk.health("ok")
    expect(desk.part("missing")).to_be_hidden()


def test_steps_of_two_processes_are_counted_once(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Two processes of a data-parallel job give one step record, one event for each skip, and two rows of processes."""
    desk = open_desk()
    both = [reporter(process=process, process_count=2) for process in (0, 1)]
    for training in both:
        training.good(8)
    page = desk.open(both[0].run)
    desk.health("ok")
    for training in both:
        training.bad(w=1)
    desk.health("skipping")
    expect(desk.part("processes").locator("tbody tr")).to_have_count(2)
    expect(desk.part("processes").locator(".status.warning")).to_have_count(2)
    expect(page.locator(".tile.steps .value")).to_have_text("9")
    expect(desk.chart()).to_have_attribute("data-marked", "9")
    expect(desk.every_event().locator("li").filter(has_text="Skipped")).to_have_count(1)
