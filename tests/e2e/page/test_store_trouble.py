"""The page says that the exporter stores no reports, why, since when and what to do; and that it stores them again."""

import re

import pytest
from playwright.sync_api import expect

from tests.conftest import RunningExporter
from tests.e2e.page.desk import MakeReporter, OpenDesk

pytestmark = pytest.mark.programs("chromium")

UNAVAILABLE = re.compile(r"Failed to load resource: the server responded with a status of 503")


def test_the_page_has_a_banner_while_no_report_is_stored(
    exporter: RunningExporter, open_desk: OpenDesk, reporter: MakeReporter
) -> None:
    desk = open_desk()
    desk.expected = UNAVAILABLE
    training = reporter("char-lm", interval=1.0)
    training.good(3)
    page = desk.open("char-lm")
    desk.health("ok")
    banner = page.locator("#store")
    expect(banner).to_be_hidden()
    aside = exporter.data_dir.with_name("aside")
    exporter.data_dir.rename(aside)
    expect(banner).to_be_visible(timeout=15_000)
    expect(banner).to_contain_text("The exporter has stored no reports since")
    expect(banner).to_contain_text("its store is gone")
    expect(banner).to_contain_text("no longer there")
    expect(banner).to_contain_text(re.compile("What to do: .*put the same directory back"))
    expect(page.locator("#connection")).to_contain_text("Exporter unhealthy")
    # Its reports are refused, so nothing is known of the training: it is neither healthy nor silent.
    expect(page.locator("#health-word")).to_have_text("Last known: Healthy")
    expect(desk.part("health")).to_have_class("health lost")
    expect(desk.part("health")).to_contain_text("The current state of the run is unknown.")
    expect(page).to_have_title("⚠ Exporter stores no reports · optwrap")
    age = desk.part("health").locator(".since").text_content()
    # Whether it is still healthy is unknown, but how long ago its last step was is not.
    expect(desk.part("tiles").locator(".streak .foot")).to_contain_text(re.compile("at step 3, 1[0-9] s ago"))
    expect(desk.part("tiles").locator(".steps .unit")).to_have_text("")
    page.wait_for_timeout(13_000)  # longer than a process may be silent
    desk.health("ok")
    expect(desk.part("health").locator(".since")).to_have_text(age or "")
    expect(desk.part("incidents")).to_contain_text("No incidents so far.")
    assert page.locator("#favicon").get_attribute("data-tier") == "unhealthy"
    aside.rename(exporter.data_dir)
    expect(banner).to_be_hidden(timeout=15_000)
    expect(page.locator("#health-word")).to_have_text("Healthy")
    training.good(1)
    expect(page.locator(".tile.steps .value")).to_have_text("4")
    desk.check()
