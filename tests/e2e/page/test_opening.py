"""What the page asks for when it opens, and what it waits for."""

import pytest
from playwright.sync_api import Route, expect

from tests.e2e.page.desk import MakeReporter, OpenDesk

pytestmark = pytest.mark.programs("chromium")


class Gate:
    """Holds requests until it is opened."""

    def __init__(self) -> None:
        self._held: list[Route] = []
        self._is_open = False

    def __call__(self, route: Route) -> None:
        if self._is_open:
            route.continue_()
        else:
            self._held.append(route)

    def open(self) -> None:
        self._is_open = True
        while self._held:
            self._held.pop(0).continue_()


def test_a_run_in_the_address_is_shown_before_the_list_of_runs_is_there(
    open_desk: OpenDesk, reporter: MakeReporter
) -> None:
    """Its data is asked for at once. The list then completes the page."""
    desk, training = open_desk(), reporter()
    reporter("another-run").good()
    training.bad(w=1)
    gate = Gate()
    desk.page.route("**/v1/runs?*", gate)
    page = desk.open(training.run)
    desk.health("skipping")
    expect(page.locator(".tile.streak .value")).to_have_text("1")
    expect(desk.part("loading")).to_be_hidden()
    expect(desk.part("runs")).to_be_hidden()
    gate.open()
    expect(desk.row("another-run")).to_be_visible()


def test_panels_that_load_late_show_what_was_answered_before(open_desk: OpenDesk, reporter: MakeReporter) -> None:
    """The data is asked for while the browser still loads the panels."""
    desk, training = open_desk(), reporter()
    training.bad(w=1)
    gate = Gate()
    desk.page.route("**/page/main.js", gate)
    with desk.page.expect_response("**/incidents?*") as answered:
        desk.page.goto(f"{desk.url}/?run={training.run}", wait_until="commit")
    assert answered.value.ok
    gate.open()
    desk.health("skipping")


def test_the_newest_steps_of_a_long_run_are_asked_for_beside_all_of_them(
    open_desk: OpenDesk, reporter: MakeReporter
) -> None:
    """Neither request waits for the other, and no third one is made."""
    desk, training = open_desk(), reporter()
    for _ in range(2_999):
        training.job.step("applied", 0.8)
    training.bad(w=1)
    wanted: list[str] = []
    of_all = Gate()

    def note(route: Route) -> None:
        wanted.append(route.request.url)
        if "since=" in route.request.url:
            of_all.open()
        of_all(route)

    desk.page.route(f"**/v1/runs/{training.run}/steps*", note)
    desk.open(training.run)
    expect(desk.chart()).to_have_attribute("data-marked", "3000")
    of_chart = [url for url in wanted if "points=60" not in url]
    assert len(of_chart) == 2
    assert "since=1001&" in of_chart[1]
