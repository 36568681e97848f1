"""The incidents panel: each trouble as one sentence, its events on request, acknowledged from the page."""

import re

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.page.desk import MakeReporter, OpenDesk

pytestmark = pytest.mark.programs("chromium")


def test_a_streak_is_one_row_that_opens_to_its_events(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """27 steps that three processes report are one incident; its events are those of its steps."""
    desk = open_desk()
    pod = [reporter(process=process, process_count=3, incarnation=f"e{process}") for process in range(3)]
    for training in pod:
        training.good(30)
        training.large()
        training.good(150)
    for _ in range(27):
        for training in pod:
            training.bad(encoder__block_1__conv=3)
    pod[0].send(diagnoses=[{"step": 208, "cause": "div returned inf at train.py:12", "remedy": "add an epsilon"}])
    page = desk.open(pod[0].run)
    panel = desk.part("incidents")
    expect(panel.locator(".incident")).to_have_count(2)
    streak = panel.locator(".incident").first
    expect(streak).to_contain_text("27")
    expect(streak).to_contain_text("encoder/block_1/conv")
    expect(streak).to_contain_text("Open")
    found = httpx.get(f"{desk.url}/v1/runs/{pod[0].run}/incidents", trust_env=False).json()["items"]
    sentences = [one["summary"][0].upper() + one["summary"][1:] for one in found]
    assert set(panel.locator(".incident .sentence").all_text_contents()) == set(sentences)
    expect(streak.locator(".feed li")).to_have_count(0)
    streak.locator("summary").focus()
    page.keyboard.press("Enter")
    events = streak.locator(".feed li")
    expect(events.filter(has_text="Skipped, non-finite")).to_have_count(27)
    expect(events.filter(has_text="Skipped, large norm")).to_have_count(0)
    expect(events.filter(has_text="Diagnosed")).to_contain_text("div returned inf at train.py:12 · add an epsilon")
    streak.get_by_role("button", name="step 208", exact=True).last.click()
    page.wait_for_url("**step=208*")
    # A further bad step joins the open incident and its list.
    for training in pod:
        training.bad(encoder__block_1__conv=3)
    expect(events.filter(has_text="Skipped, non-finite")).to_have_count(28)
    expect(panel.locator(".incident")).to_have_count(2)


def test_steps_applied_although_non_finite_stay_a_trouble_until_acknowledged(
    open_desk: OpenDesk, reporter: MakeReporter
) -> None:
    """Good steps do not make the run healthy again: the optimizer's state may hold NaN."""
    desk, training = open_desk(), reporter()
    training.good(20)
    training.job.step("accepted_not_finite", "NaN", w=1)
    training.send()
    training.good(200)
    page = desk.open(training.run)
    desk.health("gave_up")
    verdict = desk.part("health").locator(".sentence")
    summary = httpx.get(f"{desk.url}/v1/runs/{training.run}", trust_env=False).json()["summary"]
    expect(verdict).to_contain_text(summary[1:])
    expect(verdict).to_contain_text("20")
    tile = page.locator(".tile.accepted")
    expect(tile.locator(".value")).to_have_text("1")
    expect(tile).to_contain_text("not rolled back · last clean step 20")
    expect(page.locator(".tile.skipped .value")).to_have_text("0")
    desk.part("incidents").get_by_role("button", name="Acknowledge").press("Enter")
    desk.health("ok")
    expect(desk.part("incidents").locator("summary").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(desk.part("incidents").locator(".facts")).to_contain_text(re.compile(r"acknowledged at \d\d:\d\d:\d\d"))
    expect(desk.part("incidents").locator(".incident")).to_contain_text("Acknowledged")
    expect(desk.part("incidents").get_by_role("button", name="Acknowledge")).to_be_hidden()
    expect(tile.locator(".value")).to_have_text("1")


def test_a_run_without_trouble_says_so(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    desk, training = open_desk(), reporter()
    training.good(5)
    desk.open(training.run)
    expect(desk.part("incidents")).to_contain_text("No incidents so far.")


def test_a_late_older_list_of_incidents_can_be_shown(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """Every incident of a run with many of them, each once, on request."""
    desk, training = open_desk(), reporter()
    for _ in range(60):
        training.job.step("skipped_large", 90.0)
        for _ in range(150):
            training.job.step("applied", 1.0)
        training.send()
    desk.open(training.run)
    rows = desk.part("incidents").locator(".incident")
    expect(rows).to_have_count(20)
    for count in (40, 60):
        desk.part("incidents").get_by_role("button", name="Show older").click()
        expect(rows).to_have_count(count)
    expect(desk.part("incidents").get_by_role("button", name="Show older")).to_be_hidden()
    ids = desk.page.evaluate("[...document.querySelectorAll('[data-incident]')].map((one) => one.dataset.incident)")
    assert len(set(ids)) == 60
